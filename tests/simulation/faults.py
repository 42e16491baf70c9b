"""What goes wrong, at random times, until the calm at the end."""

from collections.abc import Callable

from simulation.checks import Checks
from simulation.etcd import Etcd
from simulation.node import Node
from simulation.world import World


class Faults:
    def __init__(
        self, world: World, etcd: Etcd, nodes: list[Node], start: Callable[[Node], None], checks: Checks
    ) -> None:
        self.world, self.etcd, self.nodes, self.checks = world, etcd, nodes, checks
        self._start = start
        self._kinds: list[Callable[[], None]] = [self._crash, self._crash, self._stall, self._cut, self._cut_one_way]
        self._kinds += [self._isolate] * world.weather.isolations
        self._kinds += [self._slow_disk, self._fail_disk, self._fill_disk, self._crash_all]
        if world.weather.etcd_away:
            self._kinds += [self._etcd_away, self._etcd_away_from_one]
        if world.weather.wipes:
            self._kinds += [self._wipe, self._corrupt]

        if world.weather.moves:
            self._kinds += [self._move, self._move]

    def start(self) -> None:
        self.world.after(self.world.rng.expovariate(1 / self.world.weather.faults_every), self._strike)

    def _strike(self) -> None:
        if not self.world.calm:
            self.world.rng.choice(self._kinds)()
            self.start()

    def heal(self) -> None:
        """Everything works from now on, and every node is up; one that stands still does so to the end of its time."""
        self.world.calm = True
        self.world.cut.clear()
        self.etcd.away.clear()
        if self.world.weather.moves:
            self._move()
        spared = self.nodes[-1] if self.world.weather.dead else None
        for node in self.nodes:
            node.disk.slow, node.disk.full, node.disk.failing, node.disk.failing_rows = 1.0, False, False, 0.0
            if node is not spared:
                self._start(node)
            else:
                node.crash()

    def _one(self) -> Node:
        return self.world.rng.choice(self.nodes)

    def _some_time(self) -> float:
        return self.world.rng.choice([0.05, 0.3, 0.8, 2.0])

    def _crash(self) -> None:
        node = self._one()
        node.crash()
        self.world.after(self._some_time(), lambda: self._start(node))

    def _crash_all(self) -> None:
        for node in self.nodes:
            node.crash()
            self.world.after(self._some_time(), lambda node=node: self._start(node))

    def _stall(self) -> None:
        node, how_long = self._one(), self._some_time()
        self.world.tell(node.id, f"stands still for {how_long} s")
        node.stalled_until = self.world.now + how_long

    def _sever(self, pairs: set[tuple[str, str]], how_long: float) -> None:
        self.world.tell("net", f"cuts {sorted(pairs)} for {how_long} s")
        self.world.cut |= pairs
        self.world.after(how_long, lambda: self.world.cut.difference_update(pairs))

    def _cut(self) -> None:
        a, b = self._one().id, self._one().id
        self._sever({(a, b), (b, a)}, self._some_time())

    def _cut_one_way(self) -> None:
        self._sever({(self._one().id, self._one().id)}, self._some_time())

    def _isolate(self) -> None:
        """From all nodes, and perhaps from etcd."""
        one, how_long = self._one().id, self.world.rng.choice([0.3, 1.2, 2.5])
        self._sever({p for n in self.nodes for p in ((one, n.id), (n.id, one))}, how_long)
        if self.world.chance(0.5):
            self._lose_etcd({one}, how_long)

    def _lose_etcd(self, nodes: set[str], how_long: float) -> None:
        self.world.tell("etcd", f"is away for {sorted(nodes)} for {how_long} s")
        self.etcd.away |= nodes  # type: ignore[arg-type]
        self.world.after(how_long, lambda: self.etcd.away.difference_update(nodes))

    def _etcd_away(self) -> None:
        self._lose_etcd({n.id for n in self.nodes}, self._some_time())

    def _etcd_away_from_one(self) -> None:
        self._lose_etcd({self._one().id}, self._some_time())

    def _slow_disk(self) -> None:
        disk = self._one().disk
        disk.slow = 50.0
        self.world.after(self._some_time(), lambda: setattr(disk, "slow", 1.0))

    def _fail_disk(self) -> None:
        disk = self._one().disk
        disk.failing = True
        self.world.after(self._some_time() / 4, lambda: setattr(disk, "failing", False))

    def _fill_disk(self) -> None:
        disk = self._one().disk
        disk.full = True
        self.world.after(self._some_time(), lambda: setattr(disk, "full", False))

    def _move(self) -> None:
        """No fault, but it happens at the same time."""
        names = self.world.rng.sample([n.id for n in self.nodes], self.etcd.key.replicas)
        self.etcd.placed = tuple(names)
        self.world.tell("", f"the shard should be on {names}")

    def _wipe(self) -> None:
        self._lose_disk(corrupt=False)

    def _corrupt(self) -> None:
        self._lose_disk(corrupt=True)

    def _lose_disk(self, *, corrupt: bool) -> None:
        node = self._one()
        others = [m for m in self.etcd.key.in_sync if m.node != node.id and self._is_there(m)]
        if not others and not self.world.weather.may_lose_all:
            return  # the only copy: nothing is promised without it
        node.crash()
        node.lose(corrupt=corrupt)
        if not any(map(self._is_there, self.etcd.key.in_sync)):
            self.checks.doomed = True
        self.world.after(self._some_time(), lambda: self._start(node))

    def _is_there(self, member: object) -> bool:
        return any(n.member == member for n in self.nodes)
