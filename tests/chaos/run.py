"""Cycle after cycle: clients work, a nemesis strikes, everything heals, and the judges look at what was seen."""

import asyncio
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import requests

from chaos import judges
from chaos.clients import COLLECTION, DIMENSION, Client, Load, vector_of
from chaos.history import History, Outcome
from chaos.machines import Cluster, Node, NotRecovered
from chaos.nemeses import NEMESES, Figures, Scene
from veccluster import AsyncClient
from veccluster.decisions import hashing
from veccluster.errors import VecClusterError

SURVIVED = frozenset(
    {"kill", "primary", "search", "slow-filters", "stop", "partition", "clock", "wipe"}
    | {"etcd", "etcd-away", "etcd-restore", "bad-key"}
    | {"oversized-delete", "forged"}
)
"""Nemeses at which no process ends but those that they kill."""
FULL_LOOK = 25
"""Cycles after which everything ever written is looked at, not only what the last cycle wrote."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says."""

    nemesis: str
    cycles: int
    seed: int
    operations: int
    duration: float
    recovery: float
    clients: int
    pause: float


@dataclass
class Tally:
    """All cycles together."""

    cycles: int = 0
    operations: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    strong: int = 0
    lost: int = 0
    violations: int = 0
    unrecovered: int = 0
    fewest: int = 0
    """Operations of the shortest history."""
    figures: Figures = field(default_factory=Figures)

    @property
    def good(self) -> bool:
        errors = self.figures.search_errors or self.figures.get_errors
        return not (self.lost or self.violations or self.unrecovered or errors)


class Run:
    """A run on one cluster; `say` prints a line."""

    def __init__(self, cluster: Cluster, asked: Asked, keep: Path, say: Callable[[str], None]) -> None:
        self.cluster, self.asked, self.keep, self.say = cluster, asked, keep, say
        self.tally = Tally()
        self.history = History()
        self.shards = 0

    async def all(self) -> Tally:
        """Every cycle; stops at the first that shows something wrong."""
        await asyncio.to_thread(self._create)
        for number in range(self.asked.cycles):
            if not await self._cycle(number):
                break
        return self.tally

    def _create(self) -> None:
        """The collection of the run; a wrong number of replicas would make every figure a lie."""
        body: dict[str, Any] = {"dimension": DIMENSION, "metric": "l2", "filterable": ["group"]}
        reply = requests.put(f"{self.cluster.urls[0]}/v1/collections/{COLLECTION}", json=body, timeout=60)
        reply.raise_for_status()
        made = reply.json()
        if made["replication_factor"] != self.cluster.factor:
            raise RuntimeError(f"asked for {self.cluster.factor} replicas, got {made}")
        self.shards = int(made["shards"])

    async def _cycle(self, number: int) -> bool:
        asked, began = self.asked, time.monotonic()
        load = Load(
            self.cluster.urls,
            self.history.fork(),
            f"{number}.",
            self.shards,
            groups=max(3, min(40, asked.operations // 400)),
            clients=asked.clients,
            pause=asked.pause,
        )
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            cycle = _Cycle(self, load, http, random.Random(f"{asked.seed} {number}"), number)
            wrong = await cycle.run()
            lost: list[str] = []
            try:
                lost = [] if cycle.unrecovered else await self._look(cycle, number)
            except NotRecovered as error:
                cycle.unrecovered += 1
                wrong.append(str(error))
            wrong += await asyncio.to_thread(judges.everything, load.history)
        self._count(load.history, cycle, wrong, lost)
        self._tell(number, cycle, load.history, time.monotonic() - began, [*wrong, *lost])
        return not (wrong or lost)

    async def _look(self, cycle: "_Cycle", number: int) -> list[str]:
        """What is lost or back when all is in order again; now and then of everything that was ever written."""
        history = cycle.load.history
        ids = sorted({*cycle.load.all_ids(), *history.writes})
        lost = judges.final(history, await cycle.look(ids))
        self.history.add(history)
        if (number + 1) % FULL_LOOK == 0 or number + 1 == self.asked.cycles:
            lost += judges.final(self.history, await cycle.look(None))
        return lost

    def _count(self, history: History, cycle: "_Cycle", wrong: list[str], lost: list[str]) -> None:
        tally, operations = self.tally, history.operations()
        tally.fewest = min(tally.fewest or operations, operations)
        tally.cycles += 1
        tally.operations += operations
        tally.strong += sum(map(len, judges.strong_operations(history).values()))
        tally.acknowledged += history.count(Outcome.stored)
        tally.unknown += history.count(Outcome.unknown)
        tally.refused += history.count(Outcome.refused)
        tally.lost += len(lost)
        tally.violations += len(wrong) - cycle.unrecovered
        tally.unrecovered += cycle.unrecovered

    def _tell(self, number: int, cycle: "_Cycle", history: History, took: float, wrong: list[str]) -> None:
        figures = cycle.scene.figures
        outage = f", outage {figures.outages[-1]:.1f} s" if figures.outages else ""
        recovered = f", in order after {figures.recoveries[-1]:.1f} s" if figures.recoveries else ""
        self.say(
            f"cycle {number + 1}/{self.asked.cycles} {took:.0f} s: {'; '.join(cycle.scene.story)}: "
            f"{history.operations()} operations, writes {history.count(Outcome.stored)} acknowledged "
            f"{history.count(Outcome.unknown)} unknown {history.count(Outcome.refused)} refused{outage}{recovered}: "
            + (f"{len(wrong)} WRONG" if wrong else "good")
        )
        if wrong:
            self.keep.mkdir(parents=True, exist_ok=True)
            history.save(self.keep / f"cycle-{number + 1}.jsonl")
            self.cluster.keep_logs(self.keep)
            (self.keep / f"cycle-{number + 1}.txt").write_text("\n".join(wrong) + "\n")
            for at, line in enumerate(wrong[:12]):
                self.say(f"  {line if at == 0 else line.splitlines()[0]}")
            self.say(f"  all of it, history and logs: {self.keep}")


class _Cycle:
    """One cycle under way."""

    def __init__(self, run: Run, load: Load, http: aiohttp.ClientSession, chance: random.Random, number: int) -> None:
        self.run_, self.load, self.http, self.number = run, load, http, number
        self.cluster, self.asked = run.cluster, run.asked
        self.loop = asyncio.get_running_loop()
        self.unrecovered = 0
        self.observer = Client(99, load, http, "observer")
        self.prober = Client(98, load, http, "prober")
        self.prober.backoff = 0.05
        self.scene = Scene(
            cluster=self.cluster,
            chance=chance,
            duration=self.asked.duration,
            figures=Figures(),
            primaries=lambda: self.cluster.primaries(COLLECTION),
            probe=self._from_thread(self.probe),
            searching=self._search_under,
        )

    def _from_thread(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments: asyncio.run_coroutine_threadsafe(call(*arguments), self.loop).result()

    async def run(self) -> list[str]:
        """Work, strike, heal; what was wrong on the way."""
        clients = [
            Client(n, self.load, self.http, f"{self.asked.seed} {self.number}") for n in range(self.load.clients)
        ]
        tasks = [asyncio.create_task(client.run()) for client in clients]
        wrong: list[str] = []
        try:
            await self._worked(self.asked.operations // 10)
            await asyncio.to_thread(NEMESES[self.asked.nemesis], self.scene)
            wrong += [s for s in self.scene.story if s.startswith("BROKEN")]
            before = self.load.history.operations()
            await asyncio.to_thread(self.cluster.heal)
            took = await asyncio.to_thread(self.cluster.wait_healthy, self.asked.recovery)
            self.scene.figures.recoveries.append(took)
            await self._worked(max(self.asked.operations, before + self.asked.operations // 10))
            wrong += self._surprises()
        except NotRecovered as error:
            self.unrecovered += 1
            wrong.append(str(error))
        finally:
            self.load.stopped.set()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        self._note_figures()
        return wrong + [f"a client ended: {type(e).__name__}: {e}" for e in ended if isinstance(e, BaseException)]

    def _surprises(self) -> list[str]:
        """Nodes that ended by themselves; only a broken disk may bring one to that."""
        found = self.cluster.surprises()
        self.scene.story.extend(found)
        return found if self.asked.nemesis in SURVIVED else []

    def _note_figures(self) -> None:
        mine, all_ = self.scene.figures, self.run_.tally.figures
        mine.writes_stored = self.load.history.count(Outcome.stored)
        mine.writes_failed = self.load.history.count(Outcome.unknown) + self.load.history.count(Outcome.refused)
        for name in ("outages", "recoveries", "gets"):
            getattr(all_, name).extend(getattr(mine, name))
        for name in ("searches", "search_errors", "get_errors", "writes_stored", "writes_failed"):
            setattr(all_, name, getattr(all_, name) + getattr(mine, name))

    async def _worked(self, operations: int) -> None:
        """Until the clients have done so much, or nothing for too long."""
        last, at = -1, time.monotonic()
        while (done := self.load.history.operations()) < operations:
            if done != last:
                last, at = done, time.monotonic()
            elif time.monotonic() - at > self.asked.recovery:
                raise NotRecovered("clients to be answered")
            await asyncio.sleep(0.05)

    async def probe(self, number: int) -> float:
        """Write to a shard until it is acknowledged; the seconds that it took."""
        starts = hashing.starts(self.load.shards)
        ids = (f"{self.load.prefix}p-{i}" for i in range(10_000))
        one = next(i for i in ids if int(hashing.shards_of([i], starts)[0]) == number)
        began = time.monotonic()
        while not all(w.stored for w in await self.prober.write([one])):
            if time.monotonic() - began > self.asked.recovery:
                raise NotRecovered(f"shard {number} to take writes")
        return time.monotonic() - began

    def _search_under(self, blow: Callable[[], None]) -> None:
        self._from_thread(self._search_while)(blow)

    async def _search_while(self, blow: Callable[[], None]) -> None:
        """Searches as the Python client does them by itself; each error counts."""
        striking = asyncio.create_task(asyncio.to_thread(blow))
        figures, chance = self.scene.figures, random.Random(self.number)
        async with AsyncClient(self.cluster.urls) as client:
            while not striking.done():
                try:
                    await client.search(COLLECTION, vector_of(chance.randrange(99)), k=10)
                except VecClusterError as error:
                    figures.search_errors += 1
                    self.scene.did(f"search error: {error.detail}")
                figures.searches += 1
                await asyncio.sleep(0.02)
        await striking

    async def look(self, ids: list[str] | None) -> Mapping[str, int]:
        """What the ids hold by a strong look, all ids if None; every replica must come to show the same."""
        held = await self._list(self.cluster.nodes[0], ids, "strong")
        ends = time.monotonic() + 15.0
        for node in self.cluster.nodes:
            while (shown := await self._list(node, ids, "eventual")) != held:
                if time.monotonic() > ends:
                    different = sorted(set(shown.items()) ^ set(held.items()))
                    self.load.history.wrong.append(f"{node.name} still shows other things: {different[:10]}")
                    break
                await asyncio.sleep(0.1)
        return held

    async def _list(self, node: Node, ids: list[str] | None, level: str) -> dict[str, int]:
        """A whole listing, by one node."""
        held: dict[str, int] = {}
        for part in [None] if ids is None else [ids[i : i + 200] for i in range(0, len(ids), 200)]:
            cursor = None
            while True:
                query = {"consistency": level, "limit": "1000", **({"cursor": cursor} if cursor else {})}
                if part is not None:
                    query["filter"] = json.dumps({"$id": {"$in": part}})
                page = await self._page(node, query)
                held |= {v["id"]: self.observer.value_of(v) for v in page["vectors"]}
                if (cursor := page["cursor"]) is None:
                    break
        return held

    async def _page(self, node: Node, query: dict[str, str]) -> dict[str, Any]:
        """One page; the cluster is in order, so that failures may only be of the moment."""
        ends = time.monotonic() + 20.0
        while True:
            try:
                async with self.http.get(f"{node.url}/v1/collections/{COLLECTION}/vectors", params=query) as reply:
                    said: dict[str, Any] = await reply.json(content_type=None)
                if reply.status == 200:
                    return said
                why = str(said.get("detail"))
            except (aiohttp.ClientError, TimeoutError) as error:
                why = f"{type(error).__name__}: {error}"
            if time.monotonic() > ends:
                raise NotRecovered(f"{node.name} to list what it holds: {why}")
            await asyncio.sleep(0.2)
