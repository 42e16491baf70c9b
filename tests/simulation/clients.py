"""Clients: each asks one thing at a time, tries a write again under its name when it hears nothing, and remembers."""

from simulation.checks import Checks, Shown, Written
from simulation.node import Node
from simulation.world import World
from veccluster.decisions.replication import reading
from veccluster.decisions.replication.values import Configuration, Position
from veccluster.model.state import ReadConsistency, Seq

PATIENCE = 0.4
TRIES = 4


class Client:
    def __init__(self, number: int, world: World, nodes: list[Node], checks: Checks, asks_anyone: bool) -> None:
        self.number, self.world, self.nodes, self.checks = number, world, nodes, checks
        self.token = Seq(0)
        self.asks_anyone = asks_anyone
        self.done = 0
        self.acknowledged = 0
        self.guess = nodes[0]
        self.stopped = False

    def start(self) -> None:
        self.world.after(self.world.rng.uniform(0, 0.1), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        rng = self.world.rng
        self.done += 1
        if rng.random() < self.world.weather.writes:
            keys = rng.sample(range(self.world.weather.keys), rng.randint(1, min(2, self.world.weather.keys)))
            changes = {f"k{k}": rng.random() < 0.3 for k in sorted(keys)}
            op_id = f"c{self.number}.{self.done}"
            write = Written(self.number, op_id, changes, rng.choice(self.world.weather.levels), self.world.now)
            self.checks.writes[op_id] = write
            self._try(write, TRIES)
        else:
            level = rng.choice(list(ReadConsistency))
            self._read(f"k{rng.randrange(self.world.weather.keys)}", level)

    def _later(self) -> None:
        self.world.after(self.world.rng.expovariate(10.0 if self.world.calm else self.world.weather.haste), self._next)

    def _try(self, write: Written, tries: int) -> None:
        """Ask whom it takes for the primary; whoever refuses, another is asked."""
        answered: list[bool] = []
        node = self.guess

        def answer(outcome: str, position: Position | None) -> None:
            if answered:
                return
            answered.append(True)
            if outcome == "acknowledged" and position:
                write.acknowledged, write.position = self.world.now, position
                self.token = max(self.token, position.seq)
                self.acknowledged += 1
                self._later()
            else:
                again()

        def again() -> None:
            self._guess_again(node)
            if tries > 1 and not self.stopped:
                self.world.after(self.world.rng.uniform(0.01, 0.1), lambda: self._try(write, tries - 1))
            else:
                self._later()

        self.world.send("client", node.id, lambda: node.write(write.op_id, write.keys, write.level, answer))
        self.world.after(PATIENCE, lambda: answer("uncertain", None))

    def _guess_again(self, node: Node) -> None:
        """Ask whom that node takes for the primary, as it would itself, or anyone."""
        known = node.replica.configuration
        hints = [n for n in self.nodes if known and n.id == known.primary.node and n is not node]
        self.guess = hints[0] if hints and self.world.rng.random() < 0.7 else self.world.rng.choice(self.nodes)

    def _read(self, key: str, level: ReadConsistency) -> None:
        strong = level is ReadConsistency.strong
        node = self.guess if strong and self.world.rng.random() < 0.6 else self.world.rng.choice(self.nodes)
        asked, known = self.world.now, node.replica.configuration
        ended: list[bool] = []

        def end() -> None:
            if not ended:
                ended.append(True)
                self._later()

        def answer(version: tuple[str, bool] | None, position: Position | None) -> None:
            if ended:
                return
            if position is not None:
                self._shown(Shown(self.number, level, key, version, asked, self.world.now, position, at_least), known)
            elif strong:
                self._guess_again(node)
            end()

        at_least = self.token if level is ReadConsistency.session else Seq(0)
        self.world.after(PATIENCE, end)
        if level is ReadConsistency.quorum:
            self._ask_quorum(key, known, answer)
        else:
            self.world.send("client", node.id, lambda: node.read(key, level, at_least, answer))

    def _shown(self, shown: Shown, known: Configuration | None) -> None:
        if shown.level in (ReadConsistency.session, ReadConsistency.strong):
            self.token = max(self.token, shown.position.seq)
        if shown.level is ReadConsistency.quorum:
            shown.current = known is not None and known.revision == self.checks.etcd.key.revision
        self.checks.reads.append(shown)

    def _ask_quorum(self, key: str, known: Configuration | None, answer: object) -> None:
        """Ask as many replicas as it takes how far they are, then read from one of them."""
        if known is None:
            return
        members = known.in_sync | known.learners if self.asks_anyone else known.in_sync
        asked = self.world.rng.sample(sorted(members), reading.enough(known))
        nodes = {n.id: n for n in self.nodes}
        positions: dict[str, Position] = {}

        def heard(node: Node, position: Position) -> None:
            positions[node.id] = position
            if len(positions) == reading.enough(known) and not node.world.calm:
                node.read(key, ReadConsistency.session, reading.reach(positions.values()), answer)  # type: ignore[arg-type]

        for member in asked:
            node = nodes[member.node]
            if node.member == member and node.up:
                self.world.send(
                    "client", node.id, lambda node=node: node.position(lambda at, node=node: heard(node, at))
                )
