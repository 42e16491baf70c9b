"""What `up` writes down: the file, with the ports and etcd that the cluster had before; and what it refuses."""

from collections.abc import Iterator, Sequence

import msgspec

from veccluster.model.rules import invalid, refused_changes
from veccluster.model.spec import VecCluster, VecClusterSpec
from veccluster.model.support import unsupported
from veccluster.model.validation import FieldError
from veccluster_cli.local import LocalFailure, etcd, ports
from veccluster_cli.local.state import Desired

DEFAULT_PORT = 8001


def require_supported(cluster: VecCluster) -> None:
    """Raise InvalidSpec naming every field whose feature the local runtime has not."""
    if refused := unsupported(cluster.spec, "local"):
        raise invalid(refused)


def require_possible(old: Desired | None, new: Desired) -> None:
    """Raise InvalidSpec naming every field that cannot be changed on the cluster that exists."""
    if old and (refused := list(_refusals(old, new))):
        raise invalid(refused)


def desired_of(cluster: VecCluster, old: Desired | None, port: int | None, running: bool) -> Desired:
    """What the file asks for, with the ports and etcd of before where there was a before."""
    spec = cluster.spec
    first = port or (old.node_ports[0] if old else DEFAULT_PORT)
    if old and running and first != old.node_ports[0]:
        raise LocalFailure(
            f"{old.name} runs on port {old.node_ports[0]}. To change that: `veccluster down`, then `up` again."
        )
    members = _members(cluster, old)
    return Desired(
        generation=old.generation + 1 if old else 1,
        name=cluster.metadata.name,
        namespace=cluster.metadata.namespace,
        spec=spec.as_written(),
        node_ports=tuple(range(first, first + spec.nodes)),
        zones=tuple(spec.zones),
        etcd=(old.etcd if old and running else etcd.find()) if members else None,
        members=members,
        endpoints=tuple(spec.metadata.endpoints or ()),
    )


def _members(cluster: VecCluster, old: Desired | None) -> tuple[etcd.Member, ...]:
    managed = cluster.spec.metadata.managed
    if managed is None:
        return ()
    kept = old.members if old else ()
    free = ports.free_internal_ports(2 * managed.nodes)
    fresh = [etcd.Member(f"etcd-{n}", free[2 * n], free[2 * n + 1]) for n in range(len(kept), managed.nodes)]
    return (*kept[: managed.nodes], *fresh)


def with_free_ports(members: Sequence[etcd.Member]) -> tuple[etcd.Member, ...]:
    """A lone member may move to other ports when its own were taken meanwhile; several know each other by theirs."""
    mine = [p for m in members for p in (m.client_port, m.peer_port)]
    if all(ports.is_free(p) for p in mine):
        return tuple(members)
    if len(members) > 1:
        ports.require_free(mine)
    client, peer = ports.free_internal_ports(2)
    return tuple(msgspec.structs.replace(m, client_port=client, peer_port=peer) for m in members)


def _refusals(old: Desired, new: Desired) -> Iterator[FieldError]:
    """What cannot be changed on a cluster that exists; pure."""
    yield from refused_changes(VecClusterSpec.parse(old.spec), VecClusterSpec.parse(new.spec), "spec")
    if new.name != old.name:
        yield _refusal("metadata.name", f"must stay {old.name} here; for another cluster choose another --data-dir")
    if new.namespace != old.namespace:
        yield _refusal("metadata.namespace", f"cannot be changed; must stay {old.namespace}")
    have = len(old.node_ports)
    if len(new.node_ports) < have:
        reason = f"must be at least {have}: drain is not there yet, and a node that goes would take its shards along"
        yield _refusal("spec.nodes", reason)
    if old.members and new.members and len(new.members) != len(old.members):
        yield _refusal("spec.metadata.managed.nodes", f"cannot be changed yet; must stay {len(old.members)}")
    if old.endpoints and new.endpoints and new.endpoints != old.endpoints:
        reason = f"cannot be changed: the state of the cluster is in {', '.join(old.endpoints)}"
        yield _refusal("spec.metadata.endpoints", reason)


def _refusal(field: str, reason: str) -> FieldError:
    return {"field": field, "reason": reason}
