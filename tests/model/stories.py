"""What happens without some rules, step by step, where chance would take long to get there.

With the rule, each of these cannot go on at some step.
"""

from model.replication import Bounds

STORIES: dict[str, tuple[Bounds, *tuple[str, ...]]] = {
    "5 promise not durable": (
        Bounds(epochs=3, changes=2),
        "n0 writes 1",
        "n0 syncs",
        "n2 follows epoch 1 to 1",
        "n2 syncs",
        "the leader: epoch 2, primary n1, in sync n0+n1+n2",
        "n1 serves epoch 2",
        "the leader: epoch 3, primary n2, in sync n0+n2",
        "n2 serves epoch 3",
        "n0 follows epoch 3 to 1",
        "n0 syncs",
        "n2 commits 1 in epoch 3",
        "n0 crashes with 1, promised 1",
        "n0 follows epoch 2 to 0",
        "n0 syncs",
    ),
    "6 anyone": (
        Bounds(epochs=2, changes=2),
        "n0 asks for epoch 1, primary n0, in sync n0+n2",
        "etcd: epoch 1, primary n0, in sync n0+n2",
        "n0 sees revision 2",
        "n0 writes 1",
        "n0 syncs",
        "n2 follows epoch 1 to 1",
        "n2 syncs",
        "n0 commits 1 in epoch 1",
        "the leader: epoch 2, primary n1, in sync n0+n2",
        "n1 serves epoch 2",
        "n2 follows epoch 2 to 0",
        "n2 syncs",
    ),
    "6 any disk": (
        Bounds(epochs=2, changes=1, wipes=1),
        "n0 writes 1",
        "n0 syncs",
        "n1 follows epoch 1 to 1",
        "n1 syncs",
        "n2 follows epoch 1 to 1",
        "n2 syncs",
        "n0 commits 1 in epoch 1",
        "n1 gets an empty disk",
        "the leader: epoch 2, primary n1', in sync n0+n1+n2",
        "n1 serves epoch 2",
        "n2 follows epoch 2 to 0",
        "n2 syncs",
    ),
    "13 no confirmation": (
        Bounds(epochs=2, changes=1, reads=1),
        "the leader: epoch 2, primary n1, in sync n1+n2",
        "n1 serves epoch 2",
        "n1 writes 1",
        "n1 syncs",
        "n2 follows epoch 2 to 1",
        "n2 syncs",
        "n1 commits 1 in epoch 2",
        "n0 is asked for a strong read",
        "n0 answers a strong read",
    ),
}
