"""Judge whether an etcd continues what was seen of it, or went back: was restored from a snapshot or an old disk.

Pure. Revisions only grow within one history. One that went back counts them anew, so that the same revision stands for
something else, and nothing that compares revisions from before may be believed. The same cluster id proves nothing:
`etcdutl snapshot restore` with the same members and token makes the same one.
"""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field

from veccluster.model.state import Revision

NO_REVISION = Revision(0)

LEAP = 2
"""By how much the epoch of a shard goes up when its record was older than what nodes know (restored.py): a primary of
before may have asked etcd for the next one, and that is carried out late, or never."""


@dataclass(slots=True)
class Seen:
    """What was seen of an etcd: its cluster id (0: nothing yet), and all keys of a range as of a revision."""

    cluster: int = 0
    revision: Revision = NO_REVISION
    keys: MutableMapping[str, Revision] = field(default_factory=dict)
    """Each with the revision of its last change."""


def went_back(before: Seen, cluster: int, revision: Revision, keys: Mapping[str, Revision] | None = None) -> str:
    """Why the etcd that is `cluster` at `revision` does not continue `before`, in words; empty if it may.

    With all `keys` of the range it certainly does not where one has changed at a revision that had been seen, and was
    not seen to: then it went back, and has come further again since.
    """
    if before.cluster and cluster != before.cluster:
        return f"another etcd cluster answers: its id is {cluster:x}, and was {before.cluster:x}"
    if revision < before.revision:
        return f"etcd is at revision {revision}, and had been at {before.revision}: it was restored to an older state"
    for key, changed in (keys or {}).items():
        if changed <= before.revision and before.keys.get(key) != changed:
            return (
                f"etcd says that {key} was changed at revision {changed}, which had not happened when it was at "
                f"{before.revision}: it was restored to an older state"
            )
    return ""
