"""Work in steps on a machine: it ends with the machine, stands still with it, and may end between any two steps."""

from collections.abc import Callable, Generator, Mapping
from typing import Any

from simulation.atomic.node import ShardNode

Wait = Callable[[Callable[[Any], None]], None]
"""Starts something and has it call back, once or more; the first call counts."""
Steps = Generator[Wait, Any, Any]
Ask = Callable[[Callable[[Any], None]], None]


class Task:
    def __init__(self, node: ShardNode, steps: Steps, dies: float = 0.0) -> None:
        self.node, self.steps, self.dies = node, steps, dies
        self.boot = node.boot
        self._go(None)

    def _go(self, result: Any) -> None:
        world = self.node.world
        if not self.node.up or self.node.boot != self.boot:
            return
        if not world.calm and world.chance(self.dies):
            world.tell(self.node.id, "a coordinator dies")
            return
        try:
            wait = self.steps.send(result)
        except StopIteration:
            return
        came: list[bool] = []

        def resume(result: Any) -> None:
            if not came and self.node.boot == self.boot:
                came.append(True)
                self.node.guarded(0, lambda: self._go(result))

        wait(resume)


def ask_all(node: ShardNode, asks: Mapping[int, Ask], patience: float) -> Wait:
    """The answers by shard, when all are there or after some time those that are, without those that say nothing."""

    def start(resume: Callable[[Any], None]) -> None:
        answers: dict[int, Any] = {}

        def note(shard: int, answer: Any) -> None:
            answers.setdefault(shard, answer)
            if len(answers) == len(asks):
                end()

        def end() -> None:
            resume({shard: answer for shard, answer in answers.items() if answer is not None})

        for shard, ask in asks.items():
            ask(lambda answer, shard=shard: note(shard, answer))
        node.world.after(patience, end)

    return start


def etcd(node: ShardNode, work: Callable[[], object]) -> Wait:
    """The result, as a tuple of one; None when that is unknown."""
    return lambda resume: node.etcd.request(node.id, lambda: (work(),), resume)


def pause(node: ShardNode, seconds: float) -> Wait:
    return lambda resume: node.world.after(seconds, lambda: resume(None))
