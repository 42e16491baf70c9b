"""How nodes reach each other. What it is good for is shown where a machine dies: e2e/test_pods.py."""

import re
import socket
from pathlib import Path

import veccluster_node
from veccluster_node.peer import connections


def test_a_connection_whose_other_end_acknowledges_nothing_is_given_up_long_before_a_search_is() -> None:
    with connections.impatient_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        limit = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)  # milliseconds
    assert 1000 <= limit <= 5000


def test_nodes_connect_to_each_other_in_one_place() -> None:
    """So that encryption, when it comes, cannot be forgotten somewhere."""
    root = Path(veccluster_node.__file__).parent
    makes = re.compile(r"ClientSession\(|TCPConnector\(|http://\{")
    found = {str(path.relative_to(root)) for path in root.rglob("*.py") if makes.search(path.read_text())}
    others = {"etcd_member/member.py", "etcd_member/bootstrap.py"}  # etcd's members
    own = {"runtime/door.py"}  # names the address at which this node listens
    assert found - others - own == {"peer/connections.py"}
