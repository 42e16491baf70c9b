"""What is done to the cluster while its clients work. Each blow takes back what it did, or leaves it to `Cluster.heal`.

A blow is chosen by a seed; which request it meets is the machine's to say, so a seed gives the same plan and not the
same run.
"""

import asyncio
import errno
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import requests

from chaos import checkpoints, clocks, forging, load
from chaos.arena import CLIENTS, Direction
from chaos.machines import NAME, Cluster, Member, Node, NotRecovered, end_at_once
from veccluster import operation_ids
from veccluster.model.state import NodeId


@dataclass
class Figures:
    """What is measured on the way, in seconds and numbers."""

    outages: list[float] = field(default_factory=list)
    """From the death of a primary to the next acknowledged write of its shard."""
    searches: int = 0
    search_errors: int = 0
    gets: list[float] = field(default_factory=list)
    """How long gets took under slow filters."""
    get_errors: int = 0
    recoveries: list[float] = field(default_factory=list)
    """From the end of the faults until everything is in order."""
    writes_stored: int = 0
    writes_failed: int = 0


@dataclass
class Scene:
    """One cycle, as a nemesis sees it."""

    cluster: Cluster
    chance: random.Random
    duration: float
    figures: Figures
    primaries: Callable[[], dict[int, Node]]
    probe: Callable[[int], float]
    """Writes to a shard until it is acknowledged; the seconds that it took."""
    searching: Callable[[Callable[[], None]], None]
    """Searches with the Python client for as long as what it is given takes."""
    story: list[str] = field(default_factory=list)
    taken: set[str] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def did(self, what: str) -> None:
        self.story.append(what)

    def rest(self, least: float, most: float) -> None:
        """Let it work for a while."""
        self.over.wait(self.chance.uniform(least, most))

    @contextmanager
    def nodes(self, most: int = 1) -> Iterator[list[Node]]:
        """Up to `most` nodes that no other nemesis has its hands on."""
        with self._lock:
            free = [n for n in self.cluster.nodes if n.name not in self.taken]
            chosen = self.chance.sample(free, min(most, len(free)))
            self.taken.update(n.name for n in chosen)
        try:
            yield chosen
        finally:
            with self._lock:
                self.taken.difference_update(n.name for n in chosen)


def names(processes: Sequence[object]) -> str:
    return "+".join(str(getattr(p, "name", p)) for p in processes)


def kill(scene: Scene) -> None:
    """kill -9 of a node, sometimes of several at once, and another start after a while."""
    size = scene.cluster.size
    with scene.nodes(scene.chance.choice([1, 1, 1, 1, 2, size])) as nodes:
        scene.did(f"kill -9 {names(nodes)}")
        end_at_once(nodes)
        scene.rest(0, 4)
        for node in nodes:
            node.start()
        scene.rest(0.5, 3)


def primary(scene: Scene) -> None:
    """kill -9 of the primary of a shard: how long until the shard takes writes again?"""
    found = scene.primaries()
    number = scene.chance.choice(sorted(found))
    node = found[number]
    scene.did(f"kill -9 {node.name}, primary of shard {number}")
    node.kill()
    scene.figures.outages.append(scene.probe(number))
    node.start()


def search(scene: Scene) -> None:
    """kill -9 of a node under searches with the client's defaults."""

    def blow() -> None:
        scene.rest(0.5, 1)
        with scene.nodes() as nodes:
            scene.did(f"kill -9 {names(nodes)} under searches")
            for node in nodes:
                node.kill()
            scene.rest(8, 10)
            for node in nodes:
                node.start()
            scene.rest(2, 3)

    scene.searching(blow)


def slow_filters(scene: Scene) -> None:
    """Clients count what takes minutes to count, and give up after a second; gets of the same rows go on."""
    load.fill(scene.cluster.urls)
    ends = time.monotonic() + scene.chance.uniform(6, 12)
    scene.did(f"{load.CLIENTS} clients count with filters of {load.CLAUSES} conditions, and give up")
    impatient = [
        threading.Thread(target=load.count_until, args=(ends, random.Random(scene.chance.random()), scene.cluster.urls))
        for _ in range(load.CLIENTS)
    ]
    for thread in impatient:
        thread.start()
    took, errors = load.get_until(ends, scene.cluster.urls)
    for thread in impatient:
        thread.join()
    scene.figures.gets += took
    scene.figures.get_errors += len(errors)
    for error in errors:
        scene.did(f"get error: {error}")


def stop(scene: Scene) -> None:
    """SIGSTOP of a node, for less or more than it takes to be replaced; then it goes on as if nothing had been."""
    with scene.nodes(scene.chance.choice([1, 1, 1, 2])) as nodes:
        scene.did(f"SIGSTOP {names(nodes)}")
        for node in nodes:
            node.stop()
        scene.rest(0.2, scene.chance.choice([2, 12]))
        for node in nodes:
            node.go_on()


def partition(scene: Scene) -> None:
    """A node loses packets from or to others: nodes, etcd, clients, one of them or several."""
    cluster = scene.cluster
    victim = scene.chance.choice(cluster.nodes)
    others = [n.ip for n in cluster.nodes if n is not victim]
    etcd = [m.ip for m in cluster.etcd]
    ends = {
        "the other nodes": others,
        "one node": others[:1],
        "etcd": etcd,
        "one member of etcd": etcd[:1],
        "nodes and etcd": [*others, *etcd],
        "clients and etcd": [CLIENTS, *etcd],
        "everybody": [*others, *etcd, CLIENTS],
    }
    whom, direction = scene.chance.choice(sorted(ends)), scene.chance.choice([Direction.both, *Direction])
    scene.did(f"{victim.name} loses packets ({direction}) of {whom}")
    victim.host.cut(ends[whom], direction)
    scene.rest(1, 12)
    victim.host.heal()


def etcd(scene: Scene) -> None:
    """Members of etcd are killed, stand still or lose packets of each other: one, two or all."""
    members = scene.chance.sample(scene.cluster.etcd, scene.chance.choice([1, 1, 2, 3]))
    how = scene.chance.choice(["kill -9", "SIGSTOP", "cut off"])
    scene.did(f"{how} {names(members)}")
    if how == "kill -9":
        end_at_once(members)
    for member in members:
        if how == "kill -9":
            continue
        if how == "SIGSTOP":
            member.stop()
        else:
            member.host.cut(["10.77.0.0/24"], scene.chance.choice(list(Direction)))
    scene.rest(1, 10)
    for member in members:
        member.host.heal()
        member.go_on()
        member.start()


def etcd_away(scene: Scene) -> None:
    """All of etcd away for DURATION seconds."""
    scene.did(f"etcd away for {scene.duration:.0f} s")
    end_at_once(scene.cluster.etcd)
    scene.over.wait(scene.duration)
    for member in scene.cluster.etcd:
        member.start()


def etcd_restore(scene: Scene) -> None:
    """All of etcd goes back to what it was some seconds before, from a snapshot or from copies of its disks.

    Meanwhile there were failovers, and a collection was deleted; nodes may be away, or all of them start anew.
    """
    cluster, chance = scene.cluster, scene.chance
    how = chance.choice(["a snapshot", "a snapshot, as the same cluster", "copies of its disks"])
    _collection(scene, "PUT", "short-lived")
    snapshot = None if how == "copies of its disks" else cluster.base / "etcd.snapshot"
    if snapshot:
        snapshot.unlink(missing_ok=True)
        cluster.etcd[0].ctl("snapshot", "save", str(snapshot))
    else:
        _each_etcd(scene, Member.copy)
    _collection(scene, "DELETE", "short-lived")
    with scene.nodes(chance.choice([1, 1, 1, cluster.size])) as nodes:
        scene.did(f"kill -9 {names(nodes)}")
        for node in nodes:
            node.kill()
        scene.rest(1, 8)
        is_back = chance.random() < 0.5
        for node in nodes if is_back else ():
            node.start()
        scene.rest(0, 4)
        scene.did(f"etcd restored from {how}, {names(nodes)} {'back' if is_back else 'away'}")
        token = "etcd-cluster" if how.endswith("same cluster") else f"restored-{chance.random()}"
        _each_etcd(scene, lambda member: member.restore(snapshot, token))
        scene.rest(0, 2)
        for node in nodes:
            node.start()
    _collection(scene, "DELETE", "short-lived")  # it is back
    _collection(scene, "PUT", "later")
    _collection(scene, "DELETE", "later")


def _each_etcd(scene: Scene, do: Callable[[Member], None]) -> None:
    """Do something to every member while none of them runs."""
    for member in scene.cluster.etcd:
        member.kill()
    for member in scene.cluster.etcd:
        do(member)
    for member in scene.cluster.etcd:
        member.start()
    scene.cluster.wait_for_etcd()


def _collection(scene: Scene, method: str, name: str) -> None:
    """Create or delete a collection, with any node that does it."""
    until = time.monotonic() + 60
    body = {"dimension": 4, "metric": "l2", "shards": 2} if method == "PUT" else None
    while True:
        for url in scene.cluster.urls:
            try:
                reply = requests.request(method, f"{url}/v1/collections/{name}", json=body, timeout=20)
            except requests.RequestException:
                continue
            if reply.ok or (method == "DELETE" and reply.status_code == 404):
                return
        if time.monotonic() > until:
            raise RuntimeError(f"{method} of a collection is not done")
        time.sleep(0.2)


BAD_KEYS = {
    "nodes/evil": "{}",
    "nodes/n0": "7",
    "alive/evil": '{"id":"evil"}',
    "alive/n1": "[]",
    "collections/odd": '{"name":"odd","metric":"hamming"}',
    "shards/x/y": "{}",
    "shards/x/0": "null",
    "intents/drop/x": "[",
    "atomic/x/decisions/y/1": '{"verdict":"postponed"}',
}


def bad_key(scene: Scene) -> None:
    """Somebody writes what makes no sense into etcd, among it over keys of nodes; a node starts while it is there."""
    prefix = f"/veccluster/default/{NAME}/"
    chosen = scene.chance.sample(sorted(BAD_KEYS), scene.chance.randint(1, len(BAD_KEYS)))
    scene.did(f"bad keys {', '.join(chosen)}")
    for path in chosen:
        scene.cluster.etcd[0].ctl("put", prefix + path, BAD_KEYS[path])
    with scene.nodes() as nodes:
        scene.rest(0.5, 3)
        for node in nodes:
            node.kill()
        scene.rest(0, 3)
        for node in nodes:
            node.start()
        scene.rest(1, 4)
    _collection(scene, "PUT", "later")
    _collection(scene, "DELETE", "later")
    for path in chosen:
        if not path.endswith(("/n0", "/n1")):  # those the nodes put right
            scene.cluster.etcd[0].ctl("del", prefix + path)


def full_disk(scene: Scene) -> None:
    """A disk is full, or nearly, and later is not; nobody helps the node."""
    with scene.nodes() as nodes:
        for node in nodes:
            leave = scene.chance.choice([0, 0, 200_000, 20 << 20])
            scene.did(f"disk of {node.name} full but for {leave >> 10} KiB")
            node.disk.fill(leave)
            scene.rest(1, 8)
            node.disk.relieve()


FAILPOINTS = ("log.write", "log.write", "log.sync", "log.sync", "records.commit", "current.write")


def io_error(scene: Scene) -> None:
    """A node's log or rows get an error from the disk, once or a few times, at some moment after its start."""
    with scene.nodes() as nodes:
        for node in nodes:
            where, skip = scene.chance.choice(FAILPOINTS), scene.chance.randrange(0, 40)
            times, number = scene.chance.choice([1, 1, 5]), scene.chance.choice(["EIO", "ENOSPC"])
            scene.did(f"{number} for {node.name} at {where}, {times} times after {skip}")
            node.kill()
            before = node.log_file.stat().st_size
            node.start(f"{where}={skip}-{times}*error:{number}")
            scene.rest(4, 10)
            told = node.log_file.read_text(errors="replace")[before:]
            words = (os.strerror(getattr(errno, number)), "log_sealed", "failpoint ")
            scene.did("met" if any(word in told for word in words) else "not met, or not told")


def broken_disk(scene: Scene) -> None:
    """A disk fails under a running node: every access, or every sync while there seems to be space. Then a reboot."""
    with scene.nodes() as nodes:
        for node in nodes:
            if scene.chance.random() < 0.5:
                scene.did(f"disk of {node.name} dead")
                node.disk.shut_down()
            else:
                scene.did(f"disk of {node.name} cannot sync")
                node.disk.starve()
            scene.rest(1, 6)
            node.kill()
            node.disk.relieve()
            node.reboot()


def power(scene: Scene) -> None:
    """Power cut of one node, of some or of all: only what was synced is there afterwards."""
    with scene.nodes(scene.chance.randint(1, scene.cluster.size)) as nodes:
        scene.did(f"power cut of {names(nodes)}")
        for node in nodes:
            node.stop()
        for node in nodes:
            node.lose_power()
        scene.rest(0, 3)
        for node in nodes:
            node.start()
        scene.rest(0.5, 3)


def clock(scene: Scene) -> None:
    """Wall clocks of nodes jump, by seconds or by days, forward and back."""
    for _ in range(scene.chance.randint(1, 5)):
        node = scene.chance.choice(scene.cluster.nodes)
        ahead = scene.chance.choice([-1, 1]) * 10 ** scene.chance.uniform(0, 6)
        scene.did(f"clock of {node.name} {ahead:+.0f} s")
        node.clock.set(ahead)
        scene.rest(0.2, 3)


def wipe(scene: Scene) -> None:
    """A node comes back with an empty disk. One at a time, once the others have everything."""
    if scene.cluster.factor < 2:
        raise ValueError("with one replica a wiped disk is a lost one")
    scene.cluster.wait_healthy(60)
    with scene.nodes() as nodes:
        for node in nodes:
            scene.did(f"{node.name} gets an empty disk")
            node.kill()
            node.disk.unmount()  # once nothing writes to it any more
            node.disk.wipe()
            node.start()
            scene.rest(1, 5)


LARGE = "large"
LONG_IDS, PART = 24_000, 4_000
"""Ids of 500 bytes: a delete of all of them is several records."""


def oversized_delete(scene: Scene) -> None:
    """A delete by filter that is several records, while the primary is killed; repeated until it is answered."""
    urls = [n.url for n in scene.cluster.nodes]
    body = {"dimension": 2, "metric": "l2", "shards": 1}
    _insist("PUT", urls, f"/v1/collections/{LARGE}", body)
    for first in range(0, LONG_IDS, PART):
        vectors = [
            {"id": f"{n:06}".ljust(500, "x"), "vector": [n, 1], "metadata": {"gone": True}}
            for n in range(first, first + PART)
        ]
        _insist("POST", urls, f"/v1/collections/{LARGE}/vectors", {"vectors": vectors})
    _insist("POST", urls, f"/v1/collections/{LARGE}/vectors", {"vectors": [{"id": "stays", "vector": [0, 1]}]})
    victim = scene.cluster.primaries(LARGE).get(0) if scene.chance.random() < 0.7 else None
    scene.did(f"delete of {LONG_IDS} long ids" + (f", kill -9 {victim.name}, its primary" if victim else ""))
    if victim:
        threading.Timer(scene.chance.uniform(0, 0.6), victim.kill).start()
    said = _insist("POST", urls, f"/v1/collections/{LARGE}/vectors/delete", {"filter": {"gone": True}})
    if victim:
        scene.rest(0.7, 2)
        victim.start()
    left = _insist("POST", urls, f"/v1/collections/{LARGE}/count", {"consistency": "strong"})["count"]
    if left != 1 or said["deleted"] != LONG_IDS:
        scene.did(f"BROKEN: {left} vectors are left where 1 should be, after {said}")


def _insist(method: str, urls: Sequence[str], path: str, body: object, seconds: float = 60.0) -> dict[str, Any]:
    """The answer, however often it takes; a write always under one operation id."""
    ends, headers = time.monotonic() + seconds, {"Operation-Id": operation_ids.new()}
    for url in itertools.cycle(urls):
        try:
            reply = requests.request(method, url + path, json=body, headers=headers, timeout=10)
            if reply.ok:
                found: dict[str, Any] = reply.json()
                return found
            why = reply.text
        except requests.RequestException as error:
            why = str(error)
        if time.monotonic() > ends:
            raise NotRecovered(f"an answer to {method} {path}: {why[:300]}")
        time.sleep(0.2)
    raise AssertionError("there is always another node")


def forged(scene: Scene) -> None:
    """What strangers ask at the peer ports, and what a node says there that etcd does not allow it to say."""

    async def attack() -> None:
        refused = said = 0
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
            for _ in range(scene.chance.randint(20, 60)):
                known = forging.known(scene.cluster)
                if known is None:
                    continue
                me, to = scene.chance.sample(scene.cluster.nodes, 2)
                statuses = await forging.strangers(to.ip, to.name, sorted(known.shards), http)
                if set(statuses) != {401}:
                    scene.did(f"BROKEN: {to.name} answers strangers with {statuses}")
                refused += len(statuses)
                said += await forging.liar(known, NodeId(me.name), NodeId(to.name), scene.chance, http)
                await asyncio.sleep(scene.chance.uniform(0, 0.2))
        scene.did(f"{refused} requests of strangers, {said} forged messages")

    asyncio.run(attack())


def disk(scene: Scene) -> None:
    """A full disk or an I/O error, from which the node recovers by itself."""
    scene.chance.choice([full_disk, io_error])(scene)


def mixed(scene: Scene) -> None:
    """Two or three at once, of all that cannot take away what was synced."""
    able = [n for n in _MIXED if n is not clock or scene.cluster.clocks]
    chosen = scene.chance.sample(able, scene.chance.choice([2, 2, 3]))
    threads = [threading.Thread(target=_guarded, args=(one, scene), daemon=True) for one in chosen]
    for thread in threads:
        thread.start()
        scene.rest(0, 2)
    for thread in threads:
        thread.join()


def _guarded(nemesis: Callable[[Scene], None], scene: Scene) -> None:
    try:
        nemesis(scene)
    except Exception as error:  # noqa: BLE001 - another thread's
        scene.did(f"BROKEN {nemesis.__name__}: {type(error).__name__}: {error}")


_MIXED = (kill, stop, partition, etcd, full_disk, io_error, broken_disk, power, clock)

NEMESES: dict[str, Callable[[Scene], None]] = {
    "kill": kill,
    "primary": primary,
    "search": search,
    "slow-filters": slow_filters,
    "stop": stop,
    "partition": partition,
    "etcd": etcd,
    "etcd-away": etcd_away,
    "etcd-restore": etcd_restore,
    "bad-key": bad_key,
    "full-disk": full_disk,
    "io-error": io_error,
    "broken-disk": broken_disk,
    "disk": disk,
    "power": power,
    "checkpoint": checkpoints.checkpoint,
    "clock": clock,
    "wipe": wipe,
    "oversized-delete": oversized_delete,
    "forged": forged,
    "mixed": mixed,
}


def why_not(name: str) -> str | None:
    """Why a nemesis cannot work here."""
    return clocks.missing() if name == "clock" else None
