"""What a VecCluster file may say, and what a person reads when it is wrong."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from yaml import safe_load

from veccluster.errors import InvalidSpec
from veccluster.model import support
from veccluster.model.limits import Limits
from veccluster.model.rules import refused_changes
from veccluster.model.spec import VecClusterSpec, VecCollection, parse_vecclusters
from veccluster.model.support import unsupported
from veccluster.model.units import Duration, Percent, Size

unhurried = settings(deadline=None)
"""A machine that does other things as well is not a failure."""

EXAMPLES = Path(__file__).parents[1] / "examples"

HEAD = "apiVersion: veccluster.io/v1alpha1\nkind: VecCluster\nmetadata: {name: demo}\n"


def spec(yaml: str) -> VecClusterSpec:
    (cluster,) = parse_vecclusters(HEAD + f"spec: {yaml}")
    return cluster.spec


def refusals(yaml: str) -> dict[str, str]:
    with pytest.raises(InvalidSpec) as caught:
        parse_vecclusters(HEAD + f"spec: {yaml}")
    return {e["field"]: e["reason"] for e in caught.value.errors}


# --- what is right ---


def test_a_cluster_needs_no_more_than_a_name():
    default = spec("{}")
    assert default.nodes == 3
    assert default.metadata.managed is not None
    assert default.metadata.managed.nodes == 3
    assert default.tuning.max_memory == 0.8
    assert default.failover.timeout == 3.0
    assert default.storage.size == 10 << 30
    assert default.tuning.limits() == Limits()


def test_values_are_typed_once_they_are_parsed():
    tuning = spec("{tuning: {queryTimeout: 1m30s, maxBodySize: 1.5Mi, maxMemory: 65%, maxWALSize: 500M}}").tuning
    assert tuning.query_timeout == 90.0
    assert tuning.max_body_size == 3 << 19
    assert tuning.max_memory == 0.65
    assert tuning.max_wal_size == 500_000_000


def test_what_is_left_out_follows_from_what_is_there():
    assert [spec(f"{{nodes: {n}}}").effective_replication_factor for n in (1, 2, 3, 9)] == [1, 1, 3, 3]
    assert [spec(f"{{nodes: {n}}}").effective_min_in_sync for n in (1, 2, 3, 9)] == [1, 1, 2, 2]
    assert spec("{replicationFactor: 3}").effective_min_in_sync == 2


def test_null_counts_as_left_out():
    assert spec("{nodes: null, tuning: null, storage: {className: ~}}") == spec("{}")


def test_null_inside_of_what_kubernetes_checks_is_kept():
    pod = spec(
        "{affinity: {podAffinity: ~}, podTemplate: {metadata: ~, spec: {containers: [{name: node, lifecycle: ~}]}}}"
    )
    assert pod.affinity == {"podAffinity": None}
    assert pod.pod_template.spec == {"containers": [{"name": "node", "lifecycle": None}]}


def test_what_was_asked_is_what_differs_from_the_defaults():
    text = "{nodes: 3, tuning: {maxK: 5, maxBatch: 10000}, topologySpread: [{topologyKey: rack, maxSkew: 1}]}"
    asked = spec(text).as_asked()
    assert asked == {"tuning": {"maxK": 5}, "topologySpread": [{"topologyKey": "rack"}]}
    assert VecClusterSpec.parse(asked) == spec(text)


def test_several_documents_are_several_clusters():
    text = HEAD + "spec: {}\n---\n" + HEAD.replace("demo", "other") + "spec: {nodes: 1}\n---\n"
    assert [(c.metadata.name, c.spec.nodes) for c in parse_vecclusters(text)] == [("demo", 3), ("other", 1)]


def test_what_kubectl_prints_can_be_read_again():
    text = HEAD.replace(
        "{name: demo}",
        "{name: demo, uid: x, generation: 3, resourceVersion: '7', creationTimestamp: 2026-01-01T00:00:00Z,"
        " managedFields: [{manager: kubectl}]}",
    )
    (cluster,) = parse_vecclusters(text + "spec: {}\nstatus: {health: healthy, nodes: {desired: 3, ready: 3}}")
    assert cluster.metadata.creation_timestamp == "2026-01-01T00:00:00Z"
    assert cluster.status is not None


def test_a_collection_is_named_after_its_resource_unless_it_says_otherwise():
    resource = {
        "apiVersion": "veccluster.io/v1alpha1",
        "kind": "VecCollection",
        "metadata": {"name": "words"},
        "spec": {"cluster": "demo", "dimension": 384, "index": {"efConstruction": 200}},
    }
    collection = VecCollection.parse(resource)
    assert collection.collection_name == "words"
    assert collection.spec.index.parameters().ef_construction == 200
    resource["spec"] = {"cluster": "demo", "dimension": 384, "name": "all_words"}
    assert VecCollection.parse(resource).collection_name == "all_words"


@pytest.mark.parametrize("file", ["cluster.yaml", "laptop.yaml"])
def test_the_examples_of_clusters_are_right(file):
    assert parse_vecclusters((EXAMPLES / file).read_text())


def test_the_example_of_a_collection_is_right_and_belongs_to_that_of_a_cluster():
    collection = VecCollection.parse(safe_load((EXAMPLES / "collection.yaml").read_text()))
    (cluster,) = parse_vecclusters((EXAMPLES / "cluster.yaml").read_text())
    assert collection.spec.cluster == cluster.metadata.name
    assert collection.metadata.namespace == cluster.metadata.namespace


def test_no_example_is_left_out_here():
    assert {f.name for f in EXAMPLES.glob("*.yaml")} == {"cluster.yaml", "collection.yaml", "laptop.yaml"}


def test_kubernetes_can_do_all_that_its_example_asks_for():
    (cluster,) = parse_vecclusters((EXAMPLES / "cluster.yaml").read_text())
    assert unsupported(cluster.spec, "kubernetes") == []


def test_a_laptop_can_do_all_that_its_example_asks_for():
    (cluster,) = parse_vecclusters((EXAMPLES / "laptop.yaml").read_text())
    assert unsupported(cluster.spec, "local") == []
    assert (cluster.metadata.name, cluster.spec.nodes) == ("demo", 3)


# --- what is wrong ---

WRONG = {
    "{autoscaling: {minNodes: 5, maxNodes: 3}}": {"spec.autoscaling.minNodes": "must be at most maxNodes (3), is 5"},
    "{nodes: 0}": {"spec.nodes": "must be at least 1, is 0"},
    "{nodes: '3'}": {"spec.nodes": "must be a whole number, is a string"},
    "{nodes: 2.5}": {"spec.nodes": "must be a whole number, is 2.5"},
    "{nodes: yes}": {"spec.nodes": "must be a whole number, is a boolean"},
    "{nodes: .nan}": {"spec.nodes": "must be a whole number, is NaN"},
    "{replicationFactor: 5}": {"spec.replicationFactor": "must be at most nodes (3), is 5"},
    "{replicationFactor: 2, minInSync: 3}": {"spec.minInSync": "must be at most replicationFactor (2), is 3"},
    "{shards: 200}": {"spec.shards": 'must be "auto" or a whole number from 1 to 128, is 200'},
    "{shards: true}": {"spec.shards": 'must be "auto" or a whole number from 1 to 128, is true'},
    "{consistency: {read: sometimes}}": {
        "spec.consistency.read": "must be 'eventual', 'session', 'quorum' or 'strong', is \"sometimes\""
    },
    "{storage: {size: 10GB}}": {
        "spec.storage.size": 'must be a size such as 10Gi or 512Mi, from 1Gi to 64Ti; is "10GB"'
    },
    "{failover: {heartbeat: 500}}": {
        "spec.failover.heartbeat": "must be a duration such as 500ms, 3s or 15m, from 50ms to 1m; is a number"
    },
    "{tuning: {maxMemory: 0.8}}": {"spec.tuning.maxMemory": "must be a percentage from 1% to 100%, is a number"},
    "{metadata: {managed: {nodes: 2}}}": {"spec.metadata.managed.nodes": "must be 1 or 3, is 2"},
    "{metadata: {managed: {nodes: true}}}": {"spec.metadata.managed.nodes": "must be 1 or 3, is true"},
    "{metadata: {endpoints: [localhost:2379]}}": {
        "spec.metadata.endpoints[0]": 'must be a URL such as http://etcd-0.example:2379, is "localhost:2379"'
    },
    "{zones: [a, b, a]}": {"spec.zones": "must not repeat items, has a more than once"},
    "{tolerations: [{key: 1}]}": {"spec.tolerations[0].key": "must be a string, is 1"},
    "{topologySpread: [{}]}": {"spec.topologySpread[0].topologyKey": "must be given"},
    "{tuning: {maxWalSize: 1Gi}}": {"spec.tuning.maxWalSize": 'is not a known field; did you mean "maxWALSize"?'},
    "{replication_factor: 1}": {
        "spec.replication_factor": 'is not a known field; did you mean "replicationFactor"?'
    },
    "{tolerations: [{efect: x}]}": {
        "spec.tolerations[0].efect": 'is not a known field; did you mean "effect"?'
    },
    "{blockchain: 1}": {"spec.blockchain": "is not a known field"},
    "[]": {"spec": "must be an object, is a list"},
    "null": {"spec": "must be given"},
}  # fmt: skip


@pytest.mark.parametrize("yaml", WRONG)
def test_an_error_names_the_field_and_says_what_would_be_right(yaml):
    assert refusals(yaml) == WRONG[yaml]


def test_all_that_is_wrong_is_said_at_once():
    found = refusals("{nodes: 0, paused: 1, autoscaling: {minNodes: 5, maxNodes: 3}, tuning: {maxK: 0, nope: 1}}")
    assert found.keys() == {
        "spec.nodes",
        "spec.paused",
        "spec.autoscaling.minNodes",
        "spec.tuning.maxK",
        "spec.tuning.nope",
    }


NOT_YAML = {
    "spec: [": "line 4, column 8",
    "spec: {nodes: 1, nodes: 2}": "line 4, column 18",
    "spec: &a {affinity: *a}": "line 4, column 21",
    "spec: !!python/object:os.system {}": "line 4, column 7",
    "spec: {? [a] : 1}": "line 4, column 10",
    "spec:\n\tnodes: 1": "line 5, column 1",
    "spec: " + "[" * 5000: "the file",
    "spec: \x01": "the file",
}


@pytest.mark.parametrize("text", NOT_YAML, ids=[t[:20] for t in NOT_YAML])
def test_what_is_not_yaml_is_refused_with_its_line(text):
    with pytest.raises(InvalidSpec) as caught:
        parse_vecclusters(HEAD + text)
    assert [e["field"] for e in caught.value.errors] == [NOT_YAML[text]]


@pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing"])
def test_a_file_without_a_cluster_is_refused(text):
    with pytest.raises(InvalidSpec, match="there is no VecCluster in this file"):
        parse_vecclusters(text)


def test_another_kind_is_refused():
    with pytest.raises(InvalidSpec, match="kind must be 'VecCluster', is \"ConfigMap\""):
        parse_vecclusters(HEAD.replace("kind: VecCluster", "kind: ConfigMap") + "spec: {}")


def test_the_document_that_is_wrong_is_named():
    with pytest.raises(InvalidSpec, match=r"^document 2: spec\.nodes must be at least 1, is 0$"):
        parse_vecclusters(HEAD + "spec: {}\n---\n" + HEAD + "spec: {nodes: 0}")


def test_the_same_cluster_twice_is_refused():
    with pytest.raises(InvalidSpec, match='"demo" is there twice'):
        parse_vecclusters(HEAD + "spec: {}\n---\n" + HEAD + "spec: {nodes: 1}")


@unhurried
@given(st.text(max_size=60))
def test_no_text_gives_another_error(text):
    try:
        parse_vecclusters(HEAD + f"spec: {text}")
    except InvalidSpec as error:
        assert error.errors


# --- units ---


@unhurried
@given(st.integers(0, 64 << 40))
def test_sizes_survive_being_written_and_read(size):
    unit = Size("0", "64Ti")
    assert unit.parse(unit.format(size)) == size


@unhurried
@given(st.integers(0, 24 * 3600 * 1000))
def test_durations_survive_being_written_and_read(milliseconds):
    unit = Duration("0s", "24h")
    assert unit.parse(unit.format(milliseconds / 1000)) == milliseconds / 1000


@unhurried
@given(st.integers(1, 100))
def test_percentages_survive_being_written_and_read(percent):
    assert Percent().parse(Percent().format(percent / 100)) == percent / 100


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.5, "500ms"), (3.0, "3s"), (180.0, "3m"), (5400.0, "1h30m"), (0.0, "0s"), (86400.0, "24h"), (1.25, "1s250ms")],
)
def test_durations_are_written_as_a_person_would(seconds, written):
    assert Duration("0s", "24h").format(seconds) == written


# --- what is not there yet ---

MISSING_LOCALLY = {
    "{autoscaling: {enabled: true, minNodes: 1, maxNodes: 3}}": {
        "spec.autoscaling.enabled": "set nodes",
        "spec.autoscaling.minNodes": "set nodes",
        "spec.autoscaling.maxNodes": "set nodes",
    },
    "{security: {tls: {enabled: true}, auth: {method: mtls}}}": {
        "spec.security.tls.enabled": "security is not there yet",
        "spec.security.auth.method": "security is not there yet",
    },
    "{security: {auth: {method: basic, secretName: a}, acl: {}}}": {
        "spec.security.auth.method": "security",
        "spec.security.auth.secretName": "security",
        "spec.security.acl.grants": "security",
    },
    "{paused: true, hibernate: true}": {"spec.paused": "not there yet", "spec.hibernate": "`veccluster down`"},
    "{image: a, imagePullPolicy: Never}": {"spec.image": "is for pods", "spec.imagePullPolicy": "is for pods"},
    "{resources: {limits: {cpu: 2}}}": {"spec.resources.limits.cpu": "tuning.maxMemory"},
    "{storage: {size: 20Gi, className: a, retain: false, autogrow: {max: 30Gi}}}": {
        "spec.storage.size": "is for volumes",
        "spec.storage.className": "is for volumes",
        "spec.storage.retain": "--delete-data",
        "spec.storage.autogrow.max": "is for volumes",
        "spec.storage.autogrow.atPercent": "is for volumes",
    },
    "{affinity: {}, podTemplate: {spec: {}}, tolerations: [{}], topologySpread: [{topologyKey: a}]}": {
        "spec.affinity": "is for pods",
        "spec.podTemplate.metadata.labels": "is for pods",
        "spec.podTemplate.metadata.annotations": "is for pods",
        "spec.podTemplate.spec": "is for pods",
        "spec.tolerations": "is for pods",
        "spec.topologySpread": "is for pods",
    },
    "{metadata: {endpoints: ['https://a:1'], tls: {secretName: a}, credentialsSecret: b}}": {
        "spec.metadata.tls.secretName": "a Secret cannot be read on a laptop",
        "spec.metadata.credentialsSecret": "a Secret cannot be read on a laptop",
    },
    "{tuning: {compactionInterval: 10m, maxTail: 500}}": {"spec.tuning.compactionInterval": "is not there yet"},
}


@pytest.mark.parametrize("yaml", MISSING_LOCALLY)
def test_what_a_laptop_cannot_do_yet_is_refused_by_name(yaml):
    found = {e["field"]: e["reason"] for e in unsupported(spec(yaml), "local")}
    assert found.keys() == MISSING_LOCALLY[yaml].keys()
    for field, reason in found.items():
        assert MISSING_LOCALLY[yaml][field] in reason


@pytest.mark.parametrize(
    "yaml",
    [
        "{}",
        "{nodes: 7, replicationFactor: 7, minInSync: 4, shards: 7, consistency: {read: strong, write: all}}",
        "{failover: {heartbeat: 100ms, timeout: 10s}}",
        "{zones: [a, b], metadata: {managed: {nodes: 1}}}",
        "{metadata: {endpoints: ['http://127.0.0.1:2379']}}",
        "{tuning: {walSync: interval, walSyncInterval: 1s, maxWALSize: 64Mi, queryTimeout: 1s, maxConnections: 10}}",
        "{tuning: {batchSize: 1, maxMemory: 50%, maxBodySize: 1Mi, maxBatch: 1, maxK: 1, maxDimension: 3}}",
        "{tuning: {maxMetadataSize: 1Ki, maxMetadataDepth: 1, maxFilterDepth: 1}}",
        "{storage: {retain: true}, security: {auth: {method: none}}, autoscaling: {enabled: false}, paused: false}",
    ],
)
def test_what_a_laptop_can_do_is_not_refused(yaml):
    assert unsupported(spec(yaml), "local") == []


MISSING_IN_KUBERNETES = {
    "{autoscaling: {enabled: true, minNodes: 1, maxNodes: 3}}": {
        "spec.autoscaling.enabled": "set nodes",
        "spec.autoscaling.minNodes": "set nodes",
        "spec.autoscaling.maxNodes": "set nodes",
    },
    "{security: {tls: {enabled: true}, auth: {method: mtls}}}": {
        "spec.security.tls.enabled": "NetworkPolicy",
        "spec.security.auth.method": "security is not there yet",
    },
    "{storage: {size: 20Gi, autogrow: {max: 30Gi}}}": {
        "spec.storage.autogrow.max": "set storage.size",
        "spec.storage.autogrow.atPercent": "set storage.size",
    },
    "{hibernate: true}": {"spec.hibernate": "keeps its volumes"},
    "{tuning: {compactionInterval: 10m, maxTail: 500}}": {"spec.tuning.compactionInterval": "is not there yet"},
}


@pytest.mark.parametrize("yaml", MISSING_IN_KUBERNETES)
def test_what_kubernetes_cannot_do_yet_is_refused_by_name(yaml):
    found = {e["field"]: e["reason"] for e in unsupported(spec(yaml), "kubernetes")}
    assert found.keys() == MISSING_IN_KUBERNETES[yaml].keys()
    for field, reason in found.items():
        assert MISSING_IN_KUBERNETES[yaml][field] in reason


@pytest.mark.parametrize(
    "yaml",
    [
        "{}",
        "{nodes: 7, replicationFactor: 7, minInSync: 4, shards: 7, consistency: {read: strong, write: all}}",
        "{failover: {heartbeat: 100ms, timeout: 10s}}",
        "{image: a, imagePullPolicy: Never, resources: {requests: {cpu: 2}, limits: {memory: 1Gi}}}",
        "{storage: {size: 20Gi, className: a, retain: false}}",
        "{zones: [a, b], affinity: {}, tolerations: [{}], topologySpread: [{topologyKey: a}]}",
        "{podTemplate: {metadata: {labels: {a: b}}, spec: {priorityClassName: high}}, paused: true}",
        "{metadata: {managed: {nodes: 1, storage: {size: 4Gi, className: a}}}}",
        "{metadata: {endpoints: ['https://a:1'], tls: {secretName: a}, credentialsSecret: b}}",
        "{tuning: {walSync: interval, maxWALSize: 64Mi, maxMemory: 50%, maxFilterDepth: 1}}",
    ],
)
def test_what_kubernetes_can_do_is_not_refused(yaml):
    assert unsupported(spec(yaml), "kubernetes") == []


def test_a_field_that_no_table_names_is_refused_everywhere(monkeypatch):
    monkeypatch.setattr(support, "_TABLES", {"local": {}, "kubernetes": {}})
    for runtime in ("local", "kubernetes"):
        assert unsupported(spec("{nodes: 5}"), runtime) == [
            {"field": "spec.nodes", "reason": "is not there yet; leave it out"}
        ]


def test_changes_that_cannot_be_made_are_named():
    found = refused_changes(
        spec("{metadata: {managed: {nodes: 1}}, storage: {size: 20Gi}}"),
        spec("{metadata: {endpoints: ['http://a:1']}, nodes: 5}"),
        "spec",
    )
    assert [e["field"] for e in found] == ["spec.storage.size", "spec.metadata.managed"]
    assert refused_changes(spec("{nodes: 3}"), spec("{nodes: 5, storage: {size: 20Gi}}"), "spec") == []
