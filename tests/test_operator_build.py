"""What the operator builds for a VecCluster: each test is a promise about an object."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.podsecurity import containers, violations
from support.vecclusters import CONTEXT, EXTERNAL, built, cluster, container, data_pod, pod_of
from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecClusterSpec
from veccluster_node.etcd_member import bootstrap
from veccluster_node.main import PEER_HOST
from veccluster_operator.build import (
    client_endpoints,
    etcd_endpoints,
    etcd_quota,
    immutable_differences,
    in_words_of_the_spec,
    manifests,
    with_immutable_of,
)

NODE_OBJECTS = [
    ("ConfigMap", "demo-config"),
    ("Service", "demo-nodes"),
    ("Service", "demo"),
    ("NetworkPolicy", "demo"),
    ("PodDisruptionBudget", "demo"),
    ("StatefulSet", "demo"),
]
ETCD_OBJECTS = [
    ("ConfigMap", "demo-etcd"),
    ("Service", "demo-etcd"),
    ("NetworkPolicy", "demo-etcd"),
    ("PodDisruptionBudget", "demo-etcd"),
    ("StatefulSet", "demo-etcd"),
]
SPECS = {
    "nothing said": "{}",
    "one of each": "{nodes: 1, metadata: {managed: {nodes: 1, storage: {size: 1Gi, className: fast}}}}",
    "external etcd": f"{{{EXTERNAL}}}",
    "everything said": """
      nodes: 5
      image: registry.example/own:7
      zones: [a, b]
      resources: {requests: {cpu: 2}, limits: {memory: 8Gi}}
      storage: {size: 20Gi, className: fast, retain: false}
      tolerations: [{key: dedicated, operator: Exists}]
      topologySpread: [{topologyKey: rack}]
      tuning: {maxK: 50}
      podTemplate:
        metadata: {labels: {team: search}}
        spec:
          imagePullSecrets: [{name: registry}]
          containers: [{name: node, env: [{name: TZ, value: UTC}]}]
    """,
}
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def stateful_sets(spec):
    return [m for (kind, _), m in built(spec).items() if kind == "StatefulSet"]


# All objects


def test_there_is_what_a_cluster_needs_in_an_order_in_which_nothing_waits_for_what_comes_later():
    assert list(built()) == [("ServiceAccount", "demo"), *ETCD_OBJECTS, *NODE_OBJECTS]


def test_an_etcd_that_exists_gets_no_objects():
    assert list(built(SPECS["external etcd"])) == [("ServiceAccount", "demo"), *NODE_OBJECTS]


@every_spec
def test_every_object_is_found_by_its_labels_and_goes_with_its_cluster(spec):
    for (_, name), manifest in built(spec).items():
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "search"
        assert metadata["labels"] == {
            "app.kubernetes.io/name": "veccluster",
            "app.kubernetes.io/instance": "demo",
            "app.kubernetes.io/managed-by": "veccluster-operator",
            "app.kubernetes.io/component": "etcd" if name == "demo-etcd" else "node",
            "veccluster.io/cluster": "demo",
        }
        assert metadata["ownerReferences"] == [
            {
                "apiVersion": "veccluster.io/v1alpha1",
                "kind": "VecCluster",
                "name": "demo",
                "uid": "8f5c",
                "controller": True,
                "blockOwnerDeletion": False,
            }
        ]


@every_spec
def test_the_same_cluster_always_gives_the_same_text(spec):
    first, second = (json.dumps(manifests(cluster(spec), CONTEXT)) for _ in range(2))
    assert first == second


@every_spec
def test_what_was_built_once_is_not_changed_by_building_again(spec):
    first = manifests(cluster(spec), CONTEXT)
    before = json.dumps(first)
    for manifest in manifests(cluster(spec), CONTEXT):
        manifest["metadata"]["labels"].clear()
        manifest["spec" if "spec" in manifest else "metadata"].clear()
    assert json.dumps(first) == json.dumps(manifests(cluster(spec), CONTEXT)) == before


@every_spec
def test_manifests_say_nothing_that_the_api_server_would_leave_out(spec):
    """An object that is compared with what is there must not seem different for ever."""

    def empties(value, path):
        if isinstance(value, dict):
            for k, v in value.items():
                yield from empties(v, f"{path}.{k}")
        elif isinstance(value, list):
            for v in value:
                yield from empties(v, path + "[]")
        if value in ({}, [], "", None) or (value == 0 and value is not False and not path.endswith("maxUnavailable")):
            yield path

    for (kind, name), manifest in built(spec).items():
        assert list(empties(manifest, f"{kind}/{name}")) == []


# Pods of both kinds


@every_spec
def test_every_pod_may_run_where_only_restricted_ones_may(spec):
    for manifest in stateful_sets(spec):
        assert violations(pod_of(manifest)) == []


@every_spec
def test_every_container_has_a_read_only_root_requests_and_a_last_word(spec):
    for manifest in stateful_sets(spec):
        for each in containers(pod_of(manifest)):
            assert each["securityContext"]["readOnlyRootFilesystem"] is True
            assert {"cpu", "memory"} <= each["resources"]["requests"].keys() | each["resources"].get(
                "limits", {}
            ).keys()
            assert each["terminationMessagePolicy"] == "FallbackToLogsOnError"


@every_spec
def test_no_pod_holds_an_api_token_nor_hears_of_services_by_environment(spec):
    for manifest in stateful_sets(spec):
        pod = pod_of(manifest)
        assert pod["serviceAccountName"] == "demo"
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
    assert built(spec)["ServiceAccount", "demo"]["automountServiceAccountToken"] is False


@every_spec
def test_pods_start_together_and_only_the_operator_restarts_them(spec):
    for manifest in stateful_sets(spec):
        assert manifest["spec"]["podManagementPolicy"] == "Parallel"
        assert manifest["spec"]["updateStrategy"] == {"type": "OnDelete"}


@every_spec
def test_selectors_find_the_pods_and_are_the_two_labels_that_never_change(spec):
    for manifest in stateful_sets(spec):
        wanted = manifest["spec"]["selector"]["matchLabels"]
        assert wanted.keys() == {"veccluster.io/cluster", "app.kubernetes.io/component"}
        assert wanted.items() <= manifest["spec"]["template"]["metadata"]["labels"].items()


@pytest.mark.parametrize(("retain", "when_deleted"), [("true", "Retain"), ("false", "Delete")])
def test_volumes_outlive_the_cluster_unless_told_otherwise_and_scaling_always(retain, when_deleted):
    for manifest in stateful_sets(f"{{storage: {{retain: {retain}}}}}"):
        policy = manifest["spec"]["persistentVolumeClaimRetentionPolicy"]
        assert policy == {"whenDeleted": when_deleted, "whenScaled": "Retain"}


@every_spec
def test_every_volume_that_is_mounted_is_there(spec):
    for manifest in stateful_sets(spec):
        pod, claims = pod_of(manifest), manifest["spec"]["volumeClaimTemplates"]
        there = {v["name"] for v in pod["volumes"]} | {c["metadata"]["name"] for c in claims}
        mounted = [m["name"] for c in containers(pod) for m in c["volumeMounts"]]
        assert set(mounted) == there


@every_spec
def test_every_config_map_that_is_mounted_is_built(spec):
    objects = built(spec)
    for manifest in stateful_sets(spec):
        for volume in pod_of(manifest)["volumes"]:
            if "configMap" in volume:
                assert ("ConfigMap", volume["configMap"]["name"]) in objects


@every_spec
def test_names_of_pods_resolve_by_the_service_of_their_stateful_set(spec):
    for manifest in stateful_sets(spec):
        service = built(spec)["Service", manifest["spec"]["serviceName"]]["spec"]
        assert service["clusterIP"] == "None"
        assert service["publishNotReadyAddresses"] is True
        assert service["selector"] == manifest["spec"]["selector"]["matchLabels"]


# Data pods


def test_a_node_learns_from_its_pod_who_and_where_it_is():
    node = container(data_pod(), "node")
    assert node["command"] == ["veccluster-node"]
    assert " ".join(node["args"]) == (
        "--config /etc/veccluster/node.json --id $(POD_NAME) --advertise $(POD_NAME).demo-nodes.search.svc"
        " --zone-file /etc/veccluster-pod/zone"
    )
    assert node["env"] == [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
        {"name": PEER_HOST, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
    ]
    (zone,) = next(v for v in data_pod()["volumes"] if v["name"] == "pod")["downwardAPI"]["items"]
    assert zone["path"] == "zone"
    assert zone["fieldRef"]["fieldPath"] == "metadata.annotations['veccluster.io/zone']"


def test_a_node_has_time_to_recover_leaves_before_it_stops_and_is_restarted_only_when_its_loop_stands_still():
    pod = data_pod()
    node = container(pod, "node")
    assert node["startupProbe"]["httpGet"]["path"] == node["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert node["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert node["startupProbe"]["periodSeconds"] * node["startupProbe"]["failureThreshold"] == 3600
    assert node["livenessProbe"]["periodSeconds"] * node["livenessProbe"]["failureThreshold"] == 60
    assert node["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert pod["terminationGracePeriodSeconds"] == 60


def test_there_are_as_many_data_pods_as_the_operator_decided():
    assert built("{nodes: 7}", replace(CONTEXT, replicas=4))["StatefulSet", "demo"]["spec"]["replicas"] == 4


@pytest.mark.parametrize(("spec", "image"), [("{}", "registry.example/node:1"), ("{image: 'own:7'}", "own:7")])
def test_the_image_is_the_operators_unless_one_is_asked_for(spec, image):
    assert container(data_pod(spec), "node")["image"] == image


@pytest.mark.parametrize(
    ("resources", "wanted"),
    {
        "{}": {"requests": {"cpu": "250m", "memory": "512Mi"}},
        "{requests: {cpu: 2}}": {"requests": {"cpu": "2", "memory": "512Mi"}},
        "{limits: {memory: 8Gi}}": {"requests": {"cpu": "250m"}, "limits": {"memory": "8Gi"}},
        "{limits: {memory: 8Gi, cpu: 4}}": {"limits": {"memory": "8Gi", "cpu": "4"}},
    }.items(),
)
def test_something_is_reserved_for_a_node_even_when_nothing_is_asked(resources, wanted):
    assert container(data_pod(f"{{resources: {resources}}}"), "node")["resources"] == wanted


@pytest.mark.parametrize(
    ("storage", "wanted"),
    {
        "{}": {"resources": {"requests": {"storage": "10Gi"}}},
        "{size: 1536Mi}": {"resources": {"requests": {"storage": "1536Mi"}}},
        "{className: fast}": {"resources": {"requests": {"storage": "10Gi"}}, "storageClassName": "fast"},
    }.items(),
)
def test_each_node_has_a_volume_of_the_size_and_class_asked_for(storage, wanted):
    (claim,) = built(f"{{storage: {storage}}}")["StatefulSet", "demo"]["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == "data"
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], **wanted}


# Where pods run


def spread(spec):
    return [
        (c["topologyKey"], c["maxSkew"], c["whenUnsatisfiable"]) for c in data_pod(spec)["topologySpreadConstraints"]
    ]


ZONE, HOST = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
ANYWAY = "ScheduleAnyway"


@pytest.mark.parametrize(
    ("asked", "wanted"),
    {
        "[]": [(ZONE, 1, ANYWAY), (HOST, 1, ANYWAY)],
        "[{topologyKey: rack}]": [(ZONE, 1, ANYWAY), (HOST, 1, ANYWAY), ("rack", 1, ANYWAY)],
        f"[{{topologyKey: {ZONE}, maxSkew: 2, whenUnsatisfiable: DoNotSchedule}}]": [
            (HOST, 1, ANYWAY),
            (ZONE, 2, "DoNotSchedule"),
        ],
    }.items(),
)
def test_data_pods_spread_over_zones_and_machines_and_as_asked(asked, wanted):
    assert spread(f"{{topologySpread: {asked}}}") == wanted


def test_data_pods_are_counted_with_their_own_kind_only():
    for constraint in data_pod("{topologySpread: [{topologyKey: rack}]}")["topologySpreadConstraints"]:
        assert constraint["labelSelector"] == {
            "matchLabels": built()["StatefulSet", "demo"]["spec"]["selector"]["matchLabels"]
        }


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
IN_ZONES = {"key": ZONE, "operator": "In", "values": ["a", "b"]}
SSD, GPU = {"key": "ssd", "operator": "Exists"}, {"key": "gpu", "operator": "DoesNotExist"}


@pytest.mark.parametrize(
    ("affinity", "wanted"),
    [
        ({}, [{"matchExpressions": [IN_ZONES]}]),
        ({"nodeAffinity": {REQUIRED: None}}, [{"matchExpressions": [IN_ZONES]}]),
        (
            {
                "nodeAffinity": {
                    REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [SSD]}, {"matchExpressions": [GPU]}]}
                }
            },
            [{"matchExpressions": [SSD, IN_ZONES]}, {"matchExpressions": [GPU, IN_ZONES]}],
        ),
    ],
)
@pytest.mark.parametrize("given", ["affinity: {}", "podTemplate: {{spec: {{affinity: {}}}}}"])
def test_zones_hold_in_every_alternative_whatever_else_is_asked(affinity, wanted, given):
    text = given.format(json.dumps(affinity))
    found = data_pod(f"{{zones: [a, b], {text}}}")["affinity"]["nodeAffinity"]
    assert found[REQUIRED]["nodeSelectorTerms"] == wanted


@pytest.mark.parametrize(
    ("affinity", "field"),
    {
        "{nodeAffinity: [a]}": "nodeAffinity",
        f"{{nodeAffinity: {{{REQUIRED}: a}}}}": f"nodeAffinity.{REQUIRED}",
        f"{{nodeAffinity: {{{REQUIRED}: {{nodeSelectorTerms: {{}}}}}}}}": f"nodeAffinity.{REQUIRED}.nodeSelectorTerms",
    }.items(),
)
def test_what_is_no_affinity_is_refused_by_name(affinity, field):
    with pytest.raises(InvalidSpec) as refused:
        built(f"{{zones: [a], affinity: {affinity}}}")
    assert [e["field"] for e in refused.value.errors] == [f"spec.affinity.{field}"]


def test_affinity_beyond_zones_is_as_asked():
    affinity = {"nodeAffinity": {PREFERRED: [{"weight": 1, "preference": {"matchExpressions": [SSD]}}]}}
    assert data_pod(f"{{affinity: {json.dumps(affinity)}}}")["affinity"] == affinity
    both = data_pod(f"{{zones: [a], affinity: {json.dumps(affinity)}}}")["affinity"]["nodeAffinity"]
    assert both.keys() == {PREFERRED, REQUIRED}
    assert "affinity" not in data_pod()


def test_etcd_may_run_where_data_pods_may_and_its_members_keep_apart():
    etcd = pod_of(built(SPECS["everything said"])["StatefulSet", "demo-etcd"])
    assert etcd["tolerations"] == [{"key": "dedicated", "operator": "Exists"}]
    assert etcd["imagePullSecrets"] == [{"name": "registry"}]
    assert etcd["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"] == [{"matchExpressions": [IN_ZONES]}]
    apart = etcd["affinity"]["podAntiAffinity"][PREFERRED]
    assert [term["podAffinityTerm"]["topologyKey"] for term in apart] == [HOST, ZONE]
    assert all(
        t["podAffinityTerm"]["labelSelector"]["matchLabels"]["app.kubernetes.io/component"] == "etcd" for t in apart
    )


# What nodes are told


def node_json(spec="{}"):
    return json.loads(built(spec)["ConfigMap", "demo-config"]["data"]["node.json"])


def test_all_nodes_are_told_the_same():
    assert node_json("{nodes: 5, tuning: {maxK: 50}}") == {
        "cluster": "demo",
        "namespace": "search",
        "data_dir": "/data",
        "listen": "0.0.0.0:8001",
        "peer_listen": "0.0.0.0:8002",
        "etcd": {"endpoints": [f"http://demo-etcd-{n}.demo-etcd.search.svc:2379" for n in range(3)]},
        "spec": {"nodes": 5, "tuning": {"maxK": 50}},
    }


def test_a_node_reads_the_same_spec_as_the_operator_where_it_concerns_it():
    asked = cluster(
        "{nodes: 9, replicationFactor: 5, minInSync: 3, shards: 8, consistency: {read: strong},"
        " failover: {timeout: 10s}, tuning: {walSync: interval}, resources: {requests: {cpu: 1}}}"
    ).spec
    text = built(json.dumps(asked.as_written()))["ConfigMap", "demo-config"]["data"]["node.json"]
    assert VecClusterSpec.parse(json.loads(text)["spec"]) == asked.model_copy(
        update={"resources": VecClusterSpec().resources}
    )


def test_a_node_of_an_older_version_is_told_nothing_that_nobody_asked_for():
    assert node_json("{}")["spec"] == {"nodes": 3}
    written_out_by_the_api_server = json.dumps(VecClusterSpec().as_written())
    assert node_json(written_out_by_the_api_server)["spec"] == {"nodes": 3}


def test_secrets_of_an_external_etcd_are_mounted_by_name_and_told_as_files():
    pod, told = data_pod(SPECS["external etcd"]), node_json(SPECS["external etcd"])["etcd"]
    assert told == {
        "endpoints": ["https://etcd-0:2379", "https://etcd-1:2379"],
        "tls": {
            "ca_file": "/etc/veccluster-etcd/tls/ca.crt",
            "cert_file": "/etc/veccluster-etcd/tls/tls.crt",
            "key_file": "/etc/veccluster-etcd/tls/tls.key",
        },
        "username_file": "/etc/veccluster-etcd/credentials/username",
        "password_file": "/etc/veccluster-etcd/credentials/password",
    }
    secrets = {v["name"]: v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    mounts = {m["name"]: m["mountPath"] for m in container(pod, "node")["volumeMounts"]}
    assert secrets == {"etcd-tls": "t", "etcd-credentials": "c"}
    assert mounts["etcd-tls"] == "/etc/veccluster-etcd/tls"
    assert mounts["etcd-credentials"] == "/etc/veccluster-etcd/credentials"
    assert all(v["secret"]["optional"] for v in pod["volumes"] if "secret" in v), "the node says what is missing"


@pytest.mark.parametrize(
    ("said", "in_words"),
    {
        "/etc/veccluster-etcd/tls/x is bad.": "key x of Secret t is bad (spec.metadata.tls.secretName)",
        "/etc/veccluster-etcd/credentials is empty": "Secret c is empty (spec.metadata.credentialsSecret)",
        "no word of a file.": "no word of a file.",
        "/etc/veccluster-etcd/tls/tls.key and /etc/veccluster-etcd/credentials/password.": (
            "key tls.key of Secret t and key password of Secret c"
            " (spec.metadata.tls.secretName, spec.metadata.credentialsSecret)"
        ),
    }.items(),
)
def test_what_a_node_says_of_its_files_is_told_of_secrets_keys_and_the_field(said, in_words):
    assert in_words_of_the_spec(said, cluster(SPECS["external etcd"])) == in_words


@pytest.mark.parametrize(
    ("spec", "wanted"),
    {
        "{metadata: {managed: {nodes: 1}}}": ["http://demo-etcd-0.demo-etcd.search.svc:2379"],
        f"{{{EXTERNAL}}}": ["https://etcd-0:2379", "https://etcd-1:2379"],
    }.items(),
)
def test_etcd_and_the_cluster_are_reached_at(spec, wanted):
    assert etcd_endpoints(cluster(spec)) == wanted
    assert client_endpoints(cluster(spec)) == ["http://demo.search.svc:8001"]


# etcd


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("bootstrapped", [False, True])
def test_members_are_told_of_each_other_and_whether_there_was_a_cluster_before(members, bootstrapped):
    objects = built(f"{{metadata: {{managed: {{nodes: {members}}}}}}}", replace(CONTEXT, bootstrapped=bootstrapped))
    told = json.loads(objects["ConfigMap", "demo-etcd"]["data"]["bootstrap.json"])
    host = "demo-etcd-{}.demo-etcd.search.svc"
    assert told == {
        "cluster": "demo",
        "token": "search/demo/8f5c",
        "bootstrapped": bootstrapped,
        "members": [
            {
                "name": f"demo-etcd-{n}",
                "peer_url": f"http://{host.format(n)}:2380",
                "client_url": f"http://{host.format(n)}:2379",
            }
            for n in range(members)
        ],
        "quota_bytes": 858993459,
    }
    assert objects["StatefulSet", "demo-etcd"]["spec"]["replicas"] == members


def test_the_tool_that_starts_a_member_understands_what_it_is_told(tmp_path):
    (path := tmp_path / "bootstrap.json").write_text(built()["ConfigMap", "demo-etcd"]["data"]["bootstrap.json"])
    told, pod = bootstrap.load(path), pod_of(built()["StatefulSet", "demo-etcd"])
    assert told.quota_bytes == 858993459
    ports = {p["name"]: p["containerPort"] for p in container(pod, "etcd")["ports"]}
    assert ports == {"client": 2379, "peer": 2380, "metrics": told.metrics_port}
    assert [f"http://{m.name}.demo-etcd.search.svc:2379" for m in told.members] == etcd_endpoints(cluster())


@given(st.integers(256 << 20, 1 << 40))
def test_etcd_never_fills_its_volume_and_stays_within_what_it_was_made_for(size):
    managed = cluster(f"{{metadata: {{managed: {{storage: {{size: '{size}'}}}}}}}}").spec.metadata.managed
    assert 0 < etcd_quota(managed) <= min(size / 2, 8 << 30)


def test_a_member_decides_how_to_start_before_etcd_does_and_without_a_shell():
    pod = pod_of(built()["StatefulSet", "demo-etcd"])
    (first,), (etcd,) = pod["initContainers"], pod["containers"]
    assert first["image"] == "registry.example/node:2"
    assert " ".join([*first["command"], *first["args"]]) == (
        "veccluster-etcd-member --name $(POD_NAME) --config /etc/veccluster-etcd/bootstrap.json"
        " --data-dir /var/lib/etcd/data --out /run/etcd/etcd.yaml"
    )
    assert etcd["image"] == "registry.example/etcd:3.5"
    assert " ".join([*etcd["command"], *etcd["args"]]) == "/usr/local/bin/etcd --config-file /run/etcd/etcd.yaml"


def test_a_member_is_not_restarted_for_what_a_restart_does_not_mend():
    (etcd,) = pod_of(built()["StatefulSet", "demo-etcd"])["containers"]
    for probe in ("startupProbe", "livenessProbe"):
        assert etcd[probe]["httpGet"]["port"] == "metrics"
        assert etcd[probe]["httpGet"]["path"] == "/health?exclude=NOSPACE&exclude=CORRUPT&serializable=true"
    assert etcd["readinessProbe"]["httpGet"]["path"] == "/health?exclude=NOSPACE"


# Services, budgets, network


def test_clients_have_one_address_for_all_nodes_that_serve():
    service = built()["Service", "demo"]["spec"]
    (port,) = service["ports"]
    assert (port["name"], port["port"], port["targetPort"]) == ("http", 8001, "http")
    assert "publishNotReadyAddresses" not in service


@pytest.mark.parametrize(
    ("name", "ports"),
    [
        ("demo-nodes", [("client", 8001), ("peer", 8002)]),
        ("demo-etcd", [("client", 2379), ("peer", 2380), ("metrics", 2381)]),
    ],
)
def test_pods_reach_each_other_on_every_port(name, ports):
    assert [(p["name"], p["port"]) for p in built()["Service", name]["spec"]["ports"]] == ports


@every_spec
def test_every_port_of_a_service_is_a_port_of_its_pods(spec):
    objects = built(spec)
    for (kind, name), service in objects.items():
        if kind == "Service":
            pods = pod_of(objects["StatefulSet", "demo-etcd" if name == "demo-etcd" else "demo"])
            known = {p["name"]: p["containerPort"] for c in pods["containers"] for p in c.get("ports", [])}
            assert all(known[p["targetPort"]] == p["port"] for p in service["spec"]["ports"])


@pytest.mark.parametrize("allowed", [0, 1])
def test_the_operator_says_how_many_data_pods_a_drain_may_stop(allowed):
    budget = built("{}", replace(CONTEXT, disruptions_allowed=allowed))["PodDisruptionBudget", "demo"]["spec"]
    assert budget["maxUnavailable"] == allowed
    assert budget["selector"] == built()["StatefulSet", "demo"]["spec"]["selector"]


@pytest.mark.parametrize("members", [1, 3])
def test_a_drain_may_stop_one_etcd_member_even_the_only_one(members):
    objects = built(f"{{metadata: {{managed: {{nodes: {members}}}}}}}")
    budget = objects["PodDisruptionBudget", "demo-etcd"]["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["selector"] == objects["StatefulSet", "demo-etcd"]["spec"]["selector"]


def who_may(policy):
    """By port: labels of who may come, None for anybody."""
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    return {
        rule["ports"][0]["port"]: [p.get("podSelector", {}).get("matchLabels") for p in rule["from"]]
        if "from" in rule
        else None
        for rule in policy["spec"]["ingress"]
    }


NODES = {"veccluster.io/cluster": "demo", "app.kubernetes.io/component": "node"}
MEMBERS = {"veccluster.io/cluster": "demo", "app.kubernetes.io/component": "etcd"}


def test_anybody_may_be_a_client_and_only_nodes_talk_to_nodes():
    policy = built()["NetworkPolicy", "demo"]
    assert policy["spec"]["podSelector"] == {"matchLabels": NODES}
    assert who_may(policy) == {8001: None, 8002: [NODES]}


def test_only_the_cluster_and_the_operator_reach_etcd():
    policy = built()["NetworkPolicy", "demo-etcd"]
    operator = {"app.kubernetes.io/name": "veccluster-operator"}
    assert policy["spec"]["podSelector"] == {"matchLabels": MEMBERS}
    assert who_may(policy) == {2379: [NODES, MEMBERS, operator], 2380: [MEMBERS], 2381: None}
    (namespaces,) = [p["namespaceSelector"] for p in policy["spec"]["ingress"][0]["from"] if "namespaceSelector" in p]
    assert namespaces == {"matchLabels": {"kubernetes.io/metadata.name": "operators"}}


# What cannot be changed


def as_the_api_server_has_it(manifest):
    """With some of the defaults that the API server fills in."""
    there = json.loads(json.dumps(manifest))
    for claim in there["spec"]["volumeClaimTemplates"]:
        claim["spec"]["volumeMode"] = "Filesystem"
        claim["status"] = {"phase": "Pending"}
    there["spec"]["updateStrategy"]["rollingUpdate"] = {"partition": 0}
    return there


CHANGES = {
    ("{}", "{}"): [],
    ("{}", "{nodes: 9, tuning: {maxK: 9}, storage: {retain: false}}"): [],
    ("{storage: {size: 1024Mi}}", "{storage: {size: 1Gi}}"): [],
    ("{}", "{storage: {size: 20Gi}}"): ["spec.storage.size"],
    ("{}", "{storage: {className: fast}}"): ["spec.storage.className"],
    ("{storage: {className: fast}}", "{storage: {size: 20Gi}}"): ["spec.storage.size", "spec.storage.className"],
}


@pytest.mark.parametrize(("before", "after", "fields"), [(*specs, fields) for specs, fields in CHANGES.items()])
def test_what_cannot_be_changed_is_named_as_the_file_calls_it_and_left_as_it_is(before, after, fields):
    existing = as_the_api_server_has_it(built(before)["StatefulSet", "demo"])
    wanted = built(after)["StatefulSet", "demo"]
    assert immutable_differences(existing, wanted) == fields
    possible = with_immutable_of(existing, wanted)
    assert immutable_differences(existing, possible) == []
    assert possible["spec"]["volumeClaimTemplates"] == existing["spec"]["volumeClaimTemplates"]
    assert possible["spec"]["template"] == wanted["spec"]["template"]


def test_etcds_volumes_have_names_of_their_own():
    existing = built()["StatefulSet", "demo-etcd"]
    wanted = built("{metadata: {managed: {storage: {size: 4Gi}}}}")["StatefulSet", "demo-etcd"]
    assert immutable_differences(existing, wanted) == ["spec.metadata.managed.storage.size"]


def test_a_stateful_set_of_another_make_is_told_by_kubernetes_own_names():
    existing = as_the_api_server_has_it(built()["StatefulSet", "demo"])
    existing["spec"] |= {"serviceName": "other", "podManagementPolicy": "OrderedReady", "volumeClaimTemplates": []}
    wanted = built()["StatefulSet", "demo"]
    assert immutable_differences(existing, wanted) == [
        "StatefulSet.spec.podManagementPolicy",
        "StatefulSet.spec.serviceName",
        "spec.storage",
    ]
    assert immutable_differences(existing, with_immutable_of(existing, wanted)) == []


@settings(max_examples=50)
@given(st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True))
def test_every_name_is_one_that_kubernetes_takes(name):
    for manifest in manifests(cluster(name=name), CONTEXT):
        longest = len(manifest["metadata"]["name"]) + (
            len("-99-0123456789") if manifest["kind"] == "StatefulSet" else 0
        )
        assert longest <= 63
        assert all(len(v) <= 63 for v in manifest["metadata"]["labels"].values())
