"""What is asked for: the VecCluster and VecCollection resources, the same in a file on a laptop and in Kubernetes.

The CRDs in crds/ are generated from these classes (`model/crd.py`), descriptions included, and a test holds both equal.
What is part of the model but not there yet is refused by `model/support.py`, not here.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from veccluster.errors import InvalidSpec
from veccluster.model.documents import read_yaml
from veccluster.model.limits import DEFAULTS, MAX_FILTERABLE, MAX_REPLICATION_FACTOR, Limits
from veccluster.model.names import (
    AS_SET,
    ClusterName,
    CollectionName,
    FieldPath,
    HostName,
    ImageName,
    LabelName,
    Labels,
    ObjectName,
    Origin,
    Url,
    ZoneName,
    unique,
)
from veccluster.model.pods import PodTemplate, Resources, Storage, Toleration, TopologySpread
from veccluster.model.rules import Lasting, Part, Rule, invalid
from veccluster.model.security import Security
from veccluster.model.state import IndexParameters, Metric, Precision, ReadConsistency, WriteConsistency
from veccluster.model.status import VecClusterStatus, VecCollectionStatus
from veccluster.model.units import Anything, Duration, GiB, Percent, ShardCount, Shards, Size, wrong
from veccluster.model.validation import FieldError, shown

API_VERSION = "veccluster.io/v1alpha1"

MAX_NODES = 100


class Consistency(Part):
    """Defaults for requests that do not say."""

    read: ReadConsistency = ReadConsistency.session
    """What a read may miss: "eventual" anything recent, "session" nothing that the same client wrote, "quorum" and
    "strong" nothing acknowledged."""
    write: WriteConsistency = WriteConsistency.quorum
    """How many in-sync replicas must have a write on disk before it is acknowledged."""


class Autoscaling(Part):
    """Let the number of nodes follow the load."""

    rules = (
        Rule(
            "minNodes",
            "must be at most maxNodes ({maxNodes}), is {minNodes}",
            "!has(self.minNodes) || !has(self.maxNodes) || self.minNodes <= self.maxNodes",
            lambda a: a.min_nodes is None or a.max_nodes is None or a.min_nodes <= a.max_nodes,
        ),
        Rule(
            "minNodes",
            "must be given when autoscaling is enabled",
            "!self.enabled || has(self.minNodes)",
            lambda a: not a.enabled or a.min_nodes is not None,
        ),
        Rule(
            "maxNodes",
            "must be given when autoscaling is enabled",
            "!self.enabled || has(self.maxNodes)",
            lambda a: not a.enabled or a.max_nodes is not None,
        ),
    )

    enabled: bool = False
    """Whether the number of nodes follows the load; `nodes` is then only where it starts."""
    min_nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    """Never fewer nodes than this."""
    max_nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] | None = None
    """Never more nodes than this."""
    target_cpu: Annotated[float, Field(alias="targetCPU", ge=0.1, le=0.95)] = 0.7
    """Fraction of the requested CPU that nodes should use on average."""
    target_memory: Annotated[float, Field(ge=0.1, le=0.95)] = 0.75
    """Fraction of the memory limit that nodes should use on average."""
    target_latency: Annotated[float, Duration("1ms", "1m")] = 0.05
    """95th percentile of search latency that should not be exceeded."""
    scale_up_cooldown: Annotated[float, Duration("0s", "24h")] = 180.0
    """Rest after a change before nodes are added."""
    scale_down_cooldown: Annotated[float, Duration("0s", "24h")] = 900.0
    """Rest after a change before a node is removed."""


class ManagedStorage(Part):
    """Each etcd member's volume."""

    size: Annotated[int, Size("256Mi", "1Ti")] = 2 * GiB
    """Size of each etcd member's volume."""
    class_name: ObjectName | None = None
    """StorageClass of the volumes; the cluster's default class when left out."""


def _no_boolean(value: object) -> object:
    if isinstance(value, bool):  # which Python takes for 1
        raise wrong(f"must be 1 or 3, is {shown(value)}")
    return value


class ManagedMetadata(Part):
    """An etcd of the cluster's own."""

    nodes: Annotated[Literal[1, 3], BeforeValidator(_no_boolean)] = 3
    """Members of etcd: 3 survive the loss of one; 1 is for a laptop."""
    storage: ManagedStorage = ManagedStorage()
    """Each member's volume."""


class MetadataTls(Part):
    """How to speak TLS with an etcd that exists."""

    secret_name: ObjectName
    """Secret with ca.crt, and tls.crt and tls.key where etcd asks clients for a certificate."""


class MetadataStore(Part):
    """The etcd that is the one store of truth about the cluster: one of its own, or one that exists."""

    rules = (
        Rule(
            "managed",
            "must be left out when endpoints are given: it is one or the other",
            "!has(self.managed) || !has(self.endpoints)",
            lambda m: m.managed is None or m.endpoints is None,
        ),
        Rule(
            "endpoints",
            "must be given, or else managed: one of the two",
            "has(self.managed) || has(self.endpoints)",
            lambda m: m.managed is not None or m.endpoints is not None,
        ),
        Rule(
            "tls",
            "is used only with endpoints; leave it out or give endpoints",
            "!has(self.tls) || has(self.endpoints)",
            lambda m: m.tls is None or m.endpoints is not None,
        ),
        Rule(
            "credentialsSecret",
            "is used only with endpoints; leave it out or give endpoints",
            "!has(self.credentialsSecret) || has(self.endpoints)",
            lambda m: m.credentials_secret is None or m.endpoints is not None,
        ),
    )
    lasting = (
        Lasting(
            "managed",
            "cannot be changed between managed and endpoints: the state of the cluster is in there",
            "has(self.managed) == has(oldSelf.managed)",
            lambda old, new: (old.managed is None) == (new.managed is None),
        ),
    )

    managed: ManagedMetadata | None = None
    """An etcd of the cluster's own."""
    endpoints: (
        Annotated[tuple[Url, ...], Field(min_length=1, max_length=9, json_schema_extra=AS_SET), AfterValidator(unique)]
        | None
    ) = None
    """Client URLs of an etcd that exists."""
    tls: MetadataTls | None = None
    """How to speak TLS with it."""
    credentials_secret: ObjectName | None = None
    """Secret with username and password for it."""


class Failover(Part):
    """How soon a node counts as failed."""

    rules = (
        Rule(
            "timeout",
            "must be at least twice heartbeat ({heartbeat}), is {timeout}",
            "duration(self.timeout) >= duration(self.heartbeat) + duration(self.heartbeat)",
            lambda f: f.timeout >= 2 * f.heartbeat,
        ),
    )

    heartbeat: Annotated[float, Duration("50ms", "1m")] = 0.5
    """How often a node says that it is there."""
    timeout: Annotated[float, Duration("200ms", "5m")] = 3.0
    """After which silence a node counts as failed."""


class Cors(Part):
    """Which web pages may use the cluster from a browser."""

    origins: Annotated[tuple[Origin, ...], Field(max_length=64, json_schema_extra=AS_SET), AfterValidator(unique)] = ()
    """Origins of web pages, such as https://app.example, whose requests are answered. The requests of all other pages
    are refused, so that none that a user opens can read or write here."""


class Tuning(Part):
    """How a node works; the defaults suit most."""

    batch_size: Annotated[int, Field(ge=1, le=10_000)] = 1_000
    """Rows of a streamed upload (NDJSON, Arrow) that are applied at a time."""
    max_connections: Annotated[int, Field(ge=8, le=100_000)] = 1_024
    """Client connections that a node keeps open at once."""
    query_timeout: Annotated[float, Duration("10ms", "10m")] = 10.0
    """After which a search that has not ended is given up."""
    wal_sync: Literal["always", "interval"] = "always"
    """When a write is on disk: "always" before it is acknowledged; "interval" soon after, so that a crash loses the
    acknowledged writes of up to one walSyncInterval."""
    wal_sync_interval: Annotated[float, Duration("1ms", "10s")] = 0.1
    """With walSync "interval": how often the log is synced."""
    max_wal_size: Annotated[int, Field(alias="maxWALSize"), Size("16Mi", "1Ti")] = GiB
    """Log that a shard may keep before it is folded into its index and trimmed."""
    snapshot_interval: Annotated[float, Duration("1s", "24h")] = 60.0
    """How long a written vector may stay in the log and the exact tail before it is built into the index."""
    compaction_interval: Annotated[float, Duration("1s", "24h")] = 300.0
    """How often the index is looked through for parts worth merging or building anew."""
    max_tail: Annotated[int, Field(ge=100, le=1_000_000)] = 4_096
    """Vectors of a shard that are scanned exactly before they are built into the index."""
    max_generation: Annotated[int, Field(ge=10_000, le=100_000_000)] = 1_000_000
    """Vectors in one graph of the index; a larger shard has several."""
    max_memory: Annotated[float, Percent()] = 0.8
    """Share of the memory that a node has (the pod's limit, or the machine's) beyond which it refuses upserts."""
    max_body_size: Annotated[int, Size("64Ki", "1Gi")] = DEFAULTS.max_body_size
    """Body of one request that is not streamed, after decompression."""
    max_batch: Annotated[int, Field(ge=1, le=100_000)] = DEFAULTS.max_batch
    """Vectors of one upsert, and ids of one delete."""
    max_k: Annotated[int, Field(ge=1, le=100_000)] = DEFAULTS.max_k
    """Results of one query."""
    max_dimension: Annotated[int, Field(ge=1, le=65_536)] = DEFAULTS.max_dimension
    """Components of a vector."""
    max_metadata_size: Annotated[int, Size("1Ki", "16Mi")] = DEFAULTS.max_metadata_size
    """One vector's metadata, as JSON."""
    max_metadata_depth: Annotated[int, Field(ge=1, le=64)] = DEFAULTS.max_metadata_depth
    """Objects and lists inside each other in metadata."""
    max_filter_depth: Annotated[int, Field(ge=1, le=64)] = DEFAULTS.max_filter_depth
    """$and, $or and $not inside each other in a filter."""
    cors: Cors = Cors()
    """Which web pages may use the cluster from a browser."""
    allowed_hosts: Annotated[
        tuple[HostName, ...], Field(max_length=64, json_schema_extra=AS_SET), AfterValidator(unique)
    ] = ()
    """Names, beside localhost and its addresses, by which a node that listens on the loopback may be asked: a web page
    could have the name of its own host lead there."""

    def limits(self) -> Limits:
        """What one request may ask for."""
        return Limits(
            max_body_size=self.max_body_size,
            max_batch=self.max_batch,
            max_k=self.max_k,
            max_dimension=self.max_dimension,
            max_metadata_size=self.max_metadata_size,
            max_metadata_depth=self.max_metadata_depth,
            max_filter_depth=self.max_filter_depth,
        )


Factor = Annotated[int, Field(ge=1, le=MAX_REPLICATION_FACTOR)]


class VecClusterSpec(Part):
    """What a cluster should be."""

    rules = (
        Rule(
            "replicationFactor",
            "must be at most nodes ({nodes}), is {replicationFactor}",
            "!has(self.replicationFactor) || self.replicationFactor <= self.nodes",
            lambda s: s.replication_factor is None or s.replication_factor <= s.nodes,
        ),
        Rule(
            "minInSync",
            "must be at most replicationFactor ({replicationFactor}), is {minInSync}",
            "!has(self.minInSync) || !has(self.replicationFactor) || self.minInSync <= self.replicationFactor",
            lambda s: None in (s.min_in_sync, s.replication_factor) or s.min_in_sync <= s.replication_factor,
        ),
        Rule(
            "minInSync",
            "must be at most nodes ({nodes}), is {minInSync}",
            "!has(self.minInSync) || self.minInSync <= self.nodes",
            lambda s: s.min_in_sync is None or s.min_in_sync <= s.nodes,
        ),
        Rule(
            "autoscaling.minNodes",
            "must be at least replicationFactor ({replicationFactor}), is {autoscaling.minNodes}",
            "!self.autoscaling.enabled || !has(self.autoscaling.minNodes) || !has(self.replicationFactor)"
            " || self.autoscaling.minNodes >= self.replicationFactor",
            lambda s: (
                not s.autoscaling.enabled
                or None in (s.autoscaling.min_nodes, s.replication_factor)
                or s.autoscaling.min_nodes >= s.replication_factor
            ),
        ),
    )

    nodes: Annotated[int, Field(ge=1, le=MAX_NODES)] = 3
    """How many data nodes there should be."""
    replication_factor: Factor | None = None
    """Copies of each shard, unless its collection says otherwise. When left out: 3 where there are three nodes or more,
    else 1."""
    min_in_sync: Factor | None = None
    """Copies that must be in sync for a shard to accept writes. When left out: more than half of replicationFactor."""
    shards: Annotated[Shards, ShardCount()] = "auto"
    """Shards of a collection that does not say: a number from 1 to 128, or "auto" for one a node."""
    consistency: Consistency = Consistency()
    """Defaults for requests that do not say."""
    image: ImageName | None = None
    """Image of the nodes; the one that belongs to the operator's version when left out."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When to pull the image."""
    resources: Resources = Resources()
    """CPU and memory of each node."""
    storage: Storage = Storage()
    """Each node's volume."""
    zones: Annotated[tuple[ZoneName, ...], Field(max_length=16, json_schema_extra=AS_SET), AfterValidator(unique)] = ()
    """Zones to spread the nodes over, one after the other; replicas of a shard go to distinct zones. In Kubernetes
    these are values of topology.kubernetes.io/zone, and every zone may be used when left out."""
    affinity: Annotated[dict[str, Any], Anything()] | None = None
    """Affinity of the pods, as in any pod."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that the pods put up with."""
    topology_spread: Annotated[tuple[TopologySpread, ...], Field(max_length=8)] = ()
    """How to spread the pods beyond zones."""
    pod_template: PodTemplate | None = None
    """Overrides that are merged over the pods that the operator builds."""
    autoscaling: Autoscaling = Autoscaling()
    """Let the number of nodes follow the load."""
    metadata: MetadataStore = MetadataStore(managed=ManagedMetadata())
    """The etcd that is the one store of truth about the cluster."""
    failover: Failover = Failover()
    """How soon a node counts as failed."""
    tuning: Tuning = Tuning()
    """How a node works."""
    security: Security = Security()
    """Who may talk to the cluster, and how."""
    paused: bool = False
    """Have the operator leave everything as it is."""
    hibernate: bool = False
    """Stop all nodes and keep their data."""

    @property
    def effective_replication_factor(self) -> int:
        """Copies of each shard of a collection that does not say."""
        return self.replication_factor or (3 if self.nodes >= 3 else 1)

    @property
    def effective_min_in_sync(self) -> int:
        """In-sync copies that a shard needs for writes, of a collection that does not say."""
        return self.min_in_sync or self.effective_replication_factor // 2 + 1


class ObjectMeta(Part):
    """What every Kubernetes object has. A file says name, perhaps namespace, labels and annotations; the API server
    adds the rest."""

    name: LabelName
    """Name of the resource."""
    namespace: ObjectName = "default"
    """Namespace of the resource."""
    labels: Labels = Field(default={})
    """Labels of the resource."""
    annotations: Labels = Field(default={})
    """Annotations of the resource."""
    uid: str | None = None
    resource_version: str | None = None
    generation: int | None = None
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[dict[str, Any], ...] = ()
    managed_fields: tuple[dict[str, Any], ...] = ()
    generate_name: str | None = None
    self_link: str | None = None


class ClusterMeta(ObjectMeta):
    """The same, with a name that leaves room for the names of what is created for a cluster."""

    name: ClusterName
    """Name of the cluster."""


class VecCluster(Part):
    """A vector database: nodes that hold shards of collections, and the etcd that knows about them."""

    api_version: Literal["veccluster.io/v1alpha1"]
    """Always veccluster.io/v1alpha1."""
    kind: Literal["VecCluster"]
    """Always VecCluster."""
    metadata: ClusterMeta
    """Name, namespace, labels and annotations."""
    spec: VecClusterSpec
    """What the cluster should be."""
    status: VecClusterStatus | None = None
    """What the cluster says about itself."""


class IndexSpec(Part):
    """Parameters of the graph that answers searches."""

    m: Annotated[int, Field(ge=2, le=128)] = IndexParameters().m
    """Edges of each vertex; more cost memory and give better recall."""
    ef_construction: Annotated[int, Field(ge=8, le=4_096)] = IndexParameters().ef_construction
    """Candidates kept while building."""
    ef_search: Annotated[int, Field(ge=1, le=10_000)] = IndexParameters().ef_search
    """Candidates kept while searching, unless the request says otherwise."""
    precision: Precision = IndexParameters().precision
    """Type in which the graph keeps vectors; answers are scored with the vectors as they were given."""

    def parameters(self) -> IndexParameters:
        """The same as etcd keeps it."""
        return IndexParameters(self.m, self.ef_construction, self.ef_search, self.precision)


def _fixed(field: str, attribute: str) -> Lasting:
    return Lasting(
        field,
        "cannot be changed: create another collection and copy the vectors",
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        lambda old, new: bool(getattr(old, attribute) == getattr(new, attribute)),
    )


class VecCollectionSpec(Part):
    """What a collection should be."""

    rules = (
        Rule(
            "minInSync",
            "must be at most replicationFactor ({replicationFactor}), is {minInSync}",
            "!has(self.minInSync) || !has(self.replicationFactor) || self.minInSync <= self.replicationFactor",
            lambda s: None in (s.min_in_sync, s.replication_factor) or s.min_in_sync <= s.replication_factor,
        ),
    )
    lasting = tuple(_fixed(f, f) for f in ("cluster", "name", "dimension", "metric", "shards"))

    cluster: ClusterName
    """Name of the VecCluster in the same namespace."""
    name: CollectionName | None = None
    """Name of the collection for clients; the resource's own name when left out."""
    dimension: Annotated[int, Field(ge=1, le=65_536)]
    """Components of each vector."""
    metric: Metric = Metric.cosine
    """How far apart two vectors are."""
    shards: Annotated[Shards, ShardCount()] | None = None
    """A number from 1 to 128, or "auto" for one a node; as the cluster says when left out."""
    replication_factor: Factor | None = None
    """Copies of each shard; as the cluster says when left out."""
    min_in_sync: Factor | None = None
    """Copies that must be in sync for a shard to accept writes; as the cluster says when left out."""
    index: IndexSpec = IndexSpec()
    """Parameters of the graph that answers searches."""
    filterable: Annotated[
        tuple[FieldPath, ...], Field(max_length=MAX_FILTERABLE, json_schema_extra=AS_SET), AfterValidator(unique)
    ] = ()
    """Metadata fields with an index of their own, for filters that use them often."""
    deletion_policy: Literal["Delete", "Retain"] = "Retain"
    """What becomes of the vectors when this resource is deleted."""


class VecCollection(Part):
    """A set of vectors of one dimension under one metric."""

    api_version: Literal["veccluster.io/v1alpha1"]
    """Always veccluster.io/v1alpha1."""
    kind: Literal["VecCollection"]
    """Always VecCollection."""
    metadata: ObjectMeta
    """Name, namespace, labels and annotations."""
    spec: VecCollectionSpec
    """What the collection should be."""
    status: VecCollectionStatus | None = None
    """What the collection says about itself."""

    @property
    def collection_name(self) -> str:
        """The name that clients use."""
        return self.spec.name or self.metadata.name


def parse_vecclusters(text: str) -> list[VecCluster]:
    """The VecClusters of a YAML file with one or more documents, at least one.

    `InvalidSpec` lists everything that is wrong in the first document that is not right; its fields are paths as they
    were written, or the line of what is not YAML.
    """
    documents = list(read_yaml(text))
    found: list[VecCluster] = []
    for number, document in enumerate(documents, start=1):
        try:
            cluster = VecCluster.parse(document)
        except InvalidSpec as error:
            which = f"document {number}: " if len(documents) > 1 else ""
            raise InvalidSpec(which + error.detail, error.errors) from None
        if any(_key(c) == _key(cluster) for c in found):
            raise invalid([FieldError(field="metadata.name", reason=f'"{cluster.metadata.name}" is there twice')])
        found.append(cluster)
    if not found:
        raise invalid([FieldError(field="", reason="there is no VecCluster in this file")])
    return found


def _key(cluster: VecCluster) -> tuple[str, str]:
    return cluster.metadata.namespace, cluster.metadata.name
