"""Frames and requests at the peer ports that are from nobody, or from a node that says what is not so (rule 16).

What strangers ask must be refused. Who proves to be a node tells, with that node's name, what etcd does not allow it to
tell; none of it may have any effect.
"""

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
import requests

from chaos.machines import NAME, PEER_PORT, Cluster
from support.peers import SHARD
from veccluster.decisions.replication.messages import Accepted, Contradicted, Header, Message, Rejected, Replicate
from veccluster.decisions.replication.values import Incarnation, Lineage, Member, Record, Run
from veccluster.model.state import Epoch, Node, NodeId, Seq, Shard, ShardId
from veccluster_node.metadata.keys import Keys, decode_node, decode_shard
from veccluster_node.peer import links, snapshots, wire
from veccluster_node.peer import messages as m
from veccluster_node.peer.client import MEDIA_TYPE, PATH
from veccluster_node.peer.proofs import Introductions, Secret

KEYS = Keys("default", NAME)
STRANGER = {"Authorization": f"VecCluster n0 {'0' * 64}"}


@dataclass(frozen=True)
class Known:
    """What somebody knows who can read etcd, which is more than a stranger can."""

    shards: dict[ShardId, Shard]
    nodes: dict[NodeId, Node]
    secret: bytes


def known(cluster: Cluster) -> Known | None:
    """What etcd has; None while no member answers."""
    for member in cluster.etcd:
        try:
            found = dict(_read(f"http://{member.ip}:2379"))
        except requests.RequestException:
            continue
        shards, nodes = KEYS.prefix + "shards/", KEYS.prefix + "nodes/"
        ids = {key: key.removeprefix(shards).split("/") for key in found if key.startswith(shards)}
        return Known(
            {ShardId(u, int(n)): decode_shard(ShardId(u, int(n)), found[key], 0) for key, (u, n) in ids.items()},
            {NodeId(k.removeprefix(nodes)): decode_node(v) for k, v in found.items() if k.startswith(nodes)},
            found[KEYS.secret],
        )
    return None


def _read(url: str) -> Iterator[tuple[str, bytes]]:
    first, last = (base64.b64encode(key.encode()).decode() for key in (KEYS.prefix, KEYS.prefix[:-1] + "0"))
    reply = requests.post(f"{url}/v3/kv/range", json={"key": first, "range_end": last}, timeout=3)
    reply.raise_for_status()
    for kv in reply.json().get("kvs", ()):
        yield base64.b64decode(kv["key"]).decode(), base64.b64decode(kv["value"])


async def strangers(ip: str, to: str, shards: list[ShardId], http: aiohttp.ClientSession) -> list[int]:
    """The statuses with which what nobody may ask is answered."""
    at, statuses = f"http://{ip}:{PEER_PORT}", []
    for shown in ({}, STRANGER):
        for shard in shards or [SHARD]:
            body = msgspec.msgpack.encode(m.DeleteWhere(shard=shard, op_id="forged", filter=b"{}"))
            async with http.post(at + PATH, data=body, headers={"Content-Type": MEDIA_TYPE, **shown}) as reply:
                statuses.append(reply.status)
        async with http.get(f"{at}{snapshots.PATH}/x/CURRENT", headers=shown) as reply:
            statuses.append(reply.status)
        try:
            async with http.ws_connect(at + links.PATH, params={"from": "n0", "to": to}, headers=shown):
                statuses.append(101)
        except aiohttp.WSServerHandshakeError as error:
            statuses.append(error.status)
    return statuses


async def liar(known: Known, me: NodeId, to: NodeId, chance: random.Random, http: aiohttp.ClientSession) -> int:
    """Say as the node `me` to another one what etcd does not allow it to say; how much was said."""
    proof = await Introductions(me, Secret(known.secret)).to(known.nodes[to], http)
    at = f"http://{known.nodes[to].peer_address}{links.PATH}"
    said = 0
    async with http.ws_connect(at, params={"from": me, "to": to}, headers=proof) as link:
        for shard, record in known.shards.items():
            lies = list(_lies(record, me, to, chance))
            await link.send_bytes(wire.frame([wire.encode(shard, lie) for lie in lies]))
            said += len(lies)
    return said


def _lies(record: Shard, me: NodeId, to: NodeId, chance: random.Random) -> Iterator[Message]:
    huge = Epoch((1 << 60) + chance.randrange(99))
    mine, theirs = record.member_on(me), record.member_on(to)
    unknown = Member(me, Incarnation("of no disk"))
    for other in (member for member in record.members if member.node != me):
        yield Accepted(record.epoch, other, Seq(1 << 40), 1 << 40)
        yield Rejected(huge, other)
        yield Contradicted(record.epoch, other, "forged")
        if theirs:
            yield _orders(other, theirs, record.epoch)
    yield Rejected(huge, unknown)
    yield Contradicted(record.epoch, unknown, "forged")
    yield Accepted(record.epoch, unknown, Seq(1 << 40), 1 << 40)
    for sender in filter(None, (mine, unknown)):
        if theirs:
            yield _orders(sender, theirs, huge)
            if sender != record.primary:
                yield _orders(sender, theirs, record.epoch)


def _orders(sender: Member, to: Member, epoch: Epoch) -> Message:
    runs = Lineage((Run(Epoch(1), Seq(1)), Run(epoch, Seq(2))))
    record: Any = Record(epoch, Seq(2), 1, "forged", b"")
    return Replicate(Header(epoch, sender, to, runs, Seq(1), 0, True, Seq(0)), (record,))
