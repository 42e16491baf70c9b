"""How nodes reach each other. What it is good for is shown where a machine dies: e2e/test_pods.py."""

import socket

from veccluster_node.peer import client


def test_a_connection_whose_other_end_acknowledges_nothing_is_given_up_long_before_a_search_is() -> None:
    with client.impatient_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 1))) as made:
        limit = made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)  # milliseconds
    assert 1000 <= limit <= 5000
