"""The local runtime: it reads a VecCluster file and keeps a real etcd and the nodes running as child processes.

It stands in for the operator on one machine (docs/decisions/0007-local-runtime.md): `veccluster up` writes down what is
wanted and starts a supervisor; the supervisor observes its children, asks `veccluster.decisions.local` and acts.
"""

from veccluster.errors import VecClusterError


class LocalFailure(VecClusterError):
    """The local runtime cannot do what was asked; the detail says why, and what to do."""

    slug, title = "local-runtime", "Local runtime"
