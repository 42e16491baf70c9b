"""What a test holds of the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field

from e2e.cluster import binaries, built, kind
from e2e.cluster.faults import Faults
from e2e.cluster.process import run
from e2e.cluster.settings import Settings
from e2e.cluster.tools import Helm, Kubectl


@dataclass(frozen=True)
class Cluster:
    """A running cluster that the harness made."""

    settings: Settings
    kubectl: Kubectl = field(repr=False)
    helm: Helm = field(repr=False)
    faults: Faults = field(repr=False)

    @property
    def nodes(self) -> dict[str, str]:
        """The zone of each worker node."""
        workers = self.kubectl.items("nodes", "-l", "topology.kubernetes.io/zone")
        return {n["metadata"]["name"]: n["metadata"]["labels"]["topology.kubernetes.io/zone"] for n in workers}

    def tag_image(self, image: str, another: str) -> None:
        """Give an image that the nodes have a second name: as good as a new version that needs no building."""
        self.make_sure_it_is_ours()
        for node in self.nodes:
            where = ("docker", "exec", node) if kind.usable() else ()
            socket = () if kind.usable() else ("-a", self.settings.node(node).socket)
            run(*where, "ctr", *socket, "-n", "k8s.io", "images", "tag", "--force", image, another)

    def make_sure_it_is_ours(self) -> None:
        """Raise unless this is the very cluster that the harness made: to be called before anything is destroyed."""
        built.make_sure_it_is_ours(self.settings, self.kubectl)


def bring_up(settings: Settings) -> bool:
    """Make sure that a cluster runs, with images of the present code; say whether there was none before."""
    maker = kind if kind.usable() else built
    maker.make_sure_it_can()
    was_down = bool(maker.problems(settings))
    maker.up(settings)
    return was_down


def take_down(settings: Settings) -> None:
    """Remove the cluster."""
    (kind if kind.usable() else built).down(settings)


def connect(settings: Settings) -> Cluster:
    """The running cluster, having made sure that it is ours."""
    tools = binaries.tools(settings.cache)
    kubectl = Kubectl(tools / "kubectl", settings.kubeconfig)
    faults = Faults(settings, kubectl, on_kind=kind.usable())
    cluster = Cluster(settings, kubectl, Helm(tools / "helm", settings.kubeconfig), faults)
    cluster.make_sure_it_is_ours()
    return cluster
