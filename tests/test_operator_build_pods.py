"""What a person may change in the pods by podTemplate, what is refused, and what makes a pod restart."""

import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from support.vecclusters import CONTEXT, EXTERNAL, built, cluster, container, data_pod
from veccluster.errors import InvalidSpec
from veccluster.model.spec import VecClusterSpec
from veccluster_operator.build import asked, differences
from veccluster_operator.build.asked import NEEDS_RESTART
from veccluster_operator.build.merge import merged_pod


def merged(base, patch):
    return merged_pod(yaml.safe_load(base), yaml.safe_load(patch), "spec")


# Merging as Kubernetes does it

MERGES = {
    "nothing": ("{a: 1}", "{}", "{a: 1}"),
    "a field replaces ours": ("{a: 1, b: 2}", "{a: 3}", "{a: 3, b: 2}"),
    "null removes": ("{a: 1, b: {c: 1, d: 2}}", "{a: ~, b: {c: ~}}", "{b: {d: 2}}"),
    "null of what is not there does nothing": ("{}", "{a: ~, b: {c: ~}}", "{b: {}}"),
    "objects are merged": ("{s: {a: 1, n: {b: 2}}}", "{s: {n: {c: 3}}}", "{s: {a: 1, n: {b: 2, c: 3}}}"),
    "an object can be replaced": ("{s: {a: 1}}", "{s: {$patch: replace, b: 2}}", "{s: {b: 2}}"),
    "an object can be deleted": ("{s: {a: 1}, t: 1}", "{s: {$patch: delete}}", "{t: 1}"),
    "an object takes the place of what is none": ("{s: 1}", "{s: {a: 1}}", "{s: {a: 1}}"),
    "tolerations are replaced": ("{tolerations: [{key: a}]}", "{tolerations: [{key: b}]}", "{tolerations: [{key: b}]}"),
    "containers are merged by name": (
        "{containers: [{name: node, image: a}, {name: x}]}",
        "{containers: [{name: side, image: b}, {name: node, tty: true}]}",
        "{containers: [{name: node, image: a, tty: true}, {name: x}, {name: side, image: b}]}",
    ),
    "init containers too": (
        "{}",
        "{initContainers: [{name: a, image: b, tty: ~}]}",
        "{initContainers: [{name: a, image: b}]}",
    ),
    "a container can be deleted": (
        "{containers: [{name: a}, {name: b}]}",
        "{containers: [{name: a, $patch: delete}]}",
        "{containers: [{name: b}]}",
    ),
    "a container can be replaced": (
        "{containers: [{name: a, image: x}]}",
        "{containers: [{name: a, $patch: replace, tty: true}]}",
        "{containers: [{name: a, tty: true}]}",
    ),
    "a list can be replaced": (
        "{volumes: [{name: a}]}",
        "{volumes: [{$patch: replace}, {name: b}]}",
        "{volumes: [{name: b}]}",
    ),
    "environment by name": (
        "{containers: [{name: n, env: [{name: A, value: '1'}, {name: B, value: '2'}]}]}",
        "{containers: [{name: n, env: [{name: B, value: '3'}, {name: C, value: '4'}]}]}",
        "{containers: [{name: n, env: [{name: A, value: '1'}, {name: B, value: '3'}, {name: C, value: '4'}]}]}",
    ),
    "ports by number, mounts by path": (
        "{containers: [{name: n, ports: [{containerPort: 1}], volumeMounts: [{mountPath: /a, name: a}]}]}",
        "{containers: [{name: n, ports: [{containerPort: 1, name: x}], volumeMounts: [{mountPath: /b, name: a}]}]}",
        "{containers: [{name: n, ports: [{containerPort: 1, name: x}],"
        " volumeMounts: [{mountPath: /a, name: a}, {mountPath: /b, name: a}]}]}",
    ),
    "arguments are replaced": (
        "{containers: [{name: n, args: [a, b]}]}",
        "{containers: [{name: n, args: [c]}]}",
        "{containers: [{name: n, args: [c]}]}",
    ),
    "spread by topology key": (
        "{topologySpreadConstraints: [{topologyKey: zone, maxSkew: 1}]}",
        "{topologySpreadConstraints: [{topologyKey: zone, maxSkew: 2}, {topologyKey: rack}]}",
        "{topologySpreadConstraints: [{topologyKey: zone, maxSkew: 2}, {topologyKey: rack}]}",
    ),
}


@pytest.mark.parametrize(("base", "patch", "wanted"), MERGES.values(), ids=MERGES)
def test_a_podtemplate_is_merged_as_kubernetes_does_it(base, patch, wanted):
    assert merged(base, patch) == yaml.safe_load(wanted)


@pytest.mark.parametrize(("base", "patch", "wanted"), MERGES.values(), ids=MERGES)
def test_merging_twice_changes_nothing_more_and_never_the_base(base, patch, wanted):
    before, change = yaml.safe_load(base), yaml.safe_load(patch)
    once = merged_pod(before, change, "spec")
    assert before == yaml.safe_load(base)
    assert change == yaml.safe_load(patch)
    assert merged_pod(once, change, "spec") == once


@pytest.mark.parametrize(
    ("patch", "field", "says"),
    [
        ("{containers: {name: node}}", "spec.containers", "must be a list, is an object"),
        ("{containers: [{image: a}]}", "spec.containers[0]", "must be an object with name"),
        ("{containers: [node]}", "spec.containers[0]", "must be an object with name"),
        ("{containers: [{name: [a]}]}", "spec.containers[0]", "must be an object with name"),
        ("{containers: [{name: n, env: [{value: a}]}]}", "spec.containers[0].env[0]", "must be an object with name"),
        ("{securityContext: [a]}", "spec.securityContext", "must be an object, is a list"),
        ("{$retainKeys: [a]}", "spec.$retainKeys", "is not known here"),
        ("{securityContext: {$patch: remove}}", "spec.securityContext.$patch", "must be delete, replace or merge"),
        ("{securityContext: {$patch: {}}}", "spec.securityContext.$patch", "must be delete, replace or merge"),
    ],
)
def test_what_cannot_be_merged_is_named(patch, field, says):
    with pytest.raises(InvalidSpec, match=says) as refused:
        merged("{containers: [{name: n}], securityContext: {}}", patch)
    assert [e["field"] for e in refused.value.errors] == [field]


REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.sampled_from(["", "a", "node", "delete", "replace"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "nodeAffinity",
                    REQUIRED,
                    "nodeSelectorTerms",
                    "matchExpressions",
                    "name",
                    "containers",
                    "env",
                    "volumes",
                    "$patch",
                    "securityContext",
                    "ports",
                    "httpGet",
                    "readinessProbe",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@example({"affinity": []})
@given(st.dictionaries(st.sampled_from(["containers", "volumes", "securityContext", "affinity"]), json_values))
def test_whatever_is_written_there_gives_pods_or_a_refusal_that_names_a_field(patch):
    try:
        built(json.dumps({"zones": ["a"], "podTemplate": {"spec": patch}}))
    except InvalidSpec as refused:
        assert all(e["field"].startswith("spec.podTemplate.spec") for e in refused.errors)
        assert refused.errors


# What a person may change

ALLOWED = {
    "{priorityClassName: high, nodeSelector: {disk: ssd}}": {
        "priorityClassName": "high",
        "nodeSelector": {"disk": "ssd"},
    },
    "{terminationGracePeriodSeconds: 300}": {"terminationGracePeriodSeconds": 300},
    "{securityContext: {runAsUser: ~, fsGroup: 2000}}": {},
    "{hostNetwork: false, restartPolicy: Always, automountServiceAccountToken: ~}": {},
    "{topologySpreadConstraints: ~}": {},
    "{containers: [{name: side, image: a, securityContext: {privileged: true}}]}": {},
    "{initContainers: [{name: first, image: a}]}": {"initContainers": [{"name": "first", "image": "a"}]},
    "{volumes: [{name: x, emptyDir: {}}], containers: [{name: node, volumeMounts: [{name: x, mountPath: /x}]}]}": {},
    "{containers: [{name: node, startupProbe: {failureThreshold: 9}, livenessProbe: {timeoutSeconds: 30}}]}": {},
    "{containers: [{name: node, securityContext: {readOnlyRootFilesystem: false}, lifecycle: ~}]}": {},
    "{containers: [{name: node, ports: [{containerPort: 9}], env: [{name: A, value: b}], resources: ~}]}": {},
}


@pytest.mark.parametrize(("pod", "wanted"), ALLOWED.items(), ids=ALLOWED)
def test_what_kubernetes_allows_and_a_node_survives_is_allowed(pod, wanted):
    found = data_pod(f"{{podTemplate: {{spec: {pod}}}}}")
    assert {k: found[k] for k in wanted} == wanted


def test_labels_and_annotations_are_added_to_the_pods_only():
    stateful_set = built("{podTemplate: {metadata: {labels: {team: search}, annotations: {a.example/b: c}}}}")[
        "StatefulSet", "demo"
    ]
    pod = stateful_set["spec"]["template"]["metadata"]
    assert pod["labels"] == stateful_set["metadata"]["labels"] | {"team": "search"}
    assert pod["annotations"]["a.example/b"] == "c"
    assert "veccluster.io/asked" in pod["annotations"]


def test_a_sidecar_comes_beside_the_node():
    pod = data_pod("{podTemplate: {spec: {containers: [{name: side, image: a}]}}}")
    assert [c["name"] for c in pod["containers"]] == ["node", "side"]


# What would make the cluster unsafe

REFUSED = {
    "{serviceAccountName: other}": "serviceAccountName",
    "{serviceAccountName: ~}": "serviceAccountName",
    "{serviceAccount: other}": "serviceAccount",
    "{automountServiceAccountToken: true}": "automountServiceAccountToken",
    "{hostNetwork: true}": "hostNetwork",
    "{hostPID: true}": "hostPID",
    "{hostIPC: true}": "hostIPC",
    "{hostname: a}": "hostname",
    "{subdomain: a}": "subdomain",
    "{setHostnameAsFQDN: true}": "setHostnameAsFQDN",
    "{nodeName: a}": "nodeName",
    "{activeDeadlineSeconds: 60}": "activeDeadlineSeconds",
    "{restartPolicy: Never}": "restartPolicy",
    "{terminationGracePeriodSeconds: 0}": "terminationGracePeriodSeconds",
    "{terminationGracePeriodSeconds: long}": "terminationGracePeriodSeconds",
    "{securityContext: {runAsNonRoot: false}}": "securityContext.runAsNonRoot",
    "{securityContext: {runAsUser: 0}}": "securityContext.runAsUser",
    "{securityContext: {seccompProfile: {type: Unconfined}}}": "securityContext.seccompProfile",
    "{volumes: [{name: data, emptyDir: {}}]}": "volumes[data]",
    "{volumes: [{name: config, $patch: delete}]}": "volumes[config]",
    "{volumes: [{name: tmp, emptyDir: {medium: Memory}}]}": "volumes[tmp]",
    "{containers: [{name: node, $patch: delete}]}": "containers[node]",
    "{containers: [{name: node, command: [sh]}]}": "containers[node].command",
    "{containers: [{name: node, args: []}]}": "containers[node].args",
    "{containers: [{name: node, image: a}]}": "containers[node].image",
    "{containers: [{name: node, env: [{name: POD_NAME, value: a, valueFrom: ~}]}]}": "containers[node].env[POD_NAME]",
    "{containers: [{name: node, ports: [{containerPort: 8001, hostPort: 80}]}]}": "containers[node].ports[8001]",
    "{containers: [{name: node, volumeMounts: [{mountPath: /tmp, name: a}]}]}": "containers[node].volumeMounts[/tmp]",
    "{containers: [{name: node, volumeMounts: [{mountPath: /data, $patch: delete}]}]}": (
        "containers[node].volumeMounts[/data]"
    ),
    "{containers: [{name: node, readinessProbe: ~}]}": "containers[node].readinessProbe",
    "{containers: [{name: node, livenessProbe: {tcpSocket: {port: 1}}}]}": "containers[node].livenessProbe",
    "{containers: [{name: node, startupProbe: {httpGet: {path: /}}}]}": "containers[node].startupProbe",
    "{containers: [{name: node, securityContext: {privileged: true}}]}": "containers[node].securityContext.privileged",
    "{containers: [{name: node, securityContext: {runAsUser: 0}}]}": "containers[node].securityContext.runAsUser",
    "{containers: [{name: node, securityContext: {capabilities: {add: [SYS_ADMIN]}}}]}": (
        "containers[node].securityContext.capabilities"
    ),
    "{containers: [{name: node, securityContext: {allowPrivilegeEscalation: true}}]}": (
        "containers[node].securityContext.allowPrivilegeEscalation"
    ),
}


def refusals(spec):
    with pytest.raises(InvalidSpec) as refused:
        built(spec)
    return [e["field"] for e in refused.value.errors]


@pytest.mark.parametrize(("pod", "field"), REFUSED.items(), ids=REFUSED)
def test_what_would_make_the_cluster_unsafe_is_refused_by_name(pod, field):
    assert refusals(f"{{podTemplate: {{spec: {pod}}}}}") == [f"spec.podTemplate.spec.{field}"]


def test_everything_that_is_wrong_is_named_at_once():
    pod = "{hostNetwork: true, hostPID: true, containers: [{name: node, command: [sh]}]}"
    assert len(refusals(f"{{podTemplate: {{spec: {pod}}}}}")) == 3


@pytest.mark.parametrize("label", ["veccluster.io/cluster", "app.kubernetes.io/component", "x.veccluster.io/y"])
@pytest.mark.parametrize("kind", ["labels", "annotations"])
def test_labels_by_which_the_operator_finds_its_pods_are_its_own(kind, label):
    found = refusals(f"{{podTemplate: {{metadata: {{{kind}: {{{label}: a}}}}}}}}")
    assert found == [f"spec.podTemplate.metadata.{kind}[{label}]"]


def test_secrets_of_etcd_are_kept_too():
    pod = "{volumes: [{name: etcd-tls, $patch: delete}]}"
    assert refusals(f"{{{EXTERNAL}, podTemplate: {{spec: {pod}}}}}") == ["spec.podTemplate.spec.volumes[etcd-tls]"]


# What makes a pod restart


def asked_by(spec, context=CONTEXT):
    return asked(cluster(spec), context)


def test_every_field_of_the_spec_is_said_to_need_a_restart_or_not():
    fields = {info.alias or name for name, info in VecClusterSpec.model_fields.items()}
    assert fields == {name for name in NEEDS_RESTART if "." not in name}


RESTARTS = {
    "replicationFactor: 1": "replicationFactor",
    "minInSync: 1": "minInSync",
    "shards: 8": "shards",
    "consistency: {read: strong}": "consistency.read",
    "image: other": "image",
    "imagePullPolicy: Always": "imagePullPolicy",
    "resources: {limits: {memory: 8Gi}}": "resources.limits.memory",
    "zones: [a]": "zones",
    "affinity: {podAffinity: {}}": "affinity.podAffinity",
    "podTemplate: {spec: {priorityClassName: ~}}": "podTemplate.spec.priorityClassName",
    "tolerations: [{key: a}]": "tolerations",
    "topologySpread: [{topologyKey: rack}]": "topologySpread",
    "podTemplate: {metadata: {labels: {a: b}}}": "podTemplate.metadata.labels.a",
    "podTemplate: {spec: {priorityClassName: high}}": "podTemplate.spec.priorityClassName",
    "metadata: {managed: {nodes: 1}}": "metadata.managed.nodes",
    "metadata: {endpoints: ['http://e:1']}": "metadata.endpoints",
    "failover: {timeout: 10s}": "failover.timeout",
    "tuning: {maxK: 5}": "tuning.maxK",
    "security: {tls: {enabled: true}}": "security.tls.enabled",
}
NO_RESTARTS = [
    "nodes: 9",
    "storage: {size: 20Gi, retain: false, autogrow: {max: 30Gi}}",
    "autoscaling: {enabled: true, minNodes: 3, maxNodes: 5}",
    "metadata: {managed: {storage: {size: 4Gi}}}",
    "paused: true",
    "hibernate: true",
    "podTemplate: {}",
    "podTemplate: {metadata: {labels: {}}}",
    "affinity: {}",
    "tuning: {maxK: 10000}",
]


@pytest.mark.parametrize(("change", "field"), RESTARTS.items(), ids=RESTARTS)
def test_what_a_running_pod_cannot_take_up_asks_for_a_restart_and_says_why(change, field):
    assert differences(asked_by("{}"), asked_by(f"{{{change}}}")) == [field]
    assert differences(asked_by(f"{{{change}}}"), asked_by("{}")) == [field]


@pytest.mark.parametrize("change", NO_RESTARTS)
def test_what_needs_no_restart_asks_for_none(change):
    assert asked_by(f"{{{change}}}") == asked_by("{}")


@given(*2 * [st.dictionaries(st.sampled_from("abc"), json_values)])
def test_two_pods_differ_exactly_when_they_were_asked_for_different_things(before, now):
    assert bool(differences(before, now)) == (before != now)
    assert differences(before, now) == differences(now, before)


def test_every_field_that_needs_a_restart_is_tried_above():
    tried = {field.partition(".")[0] for field in RESTARTS.values()}
    assert tried == {name for name, restart in NEEDS_RESTART.items() if restart}


def test_defaults_that_the_api_server_fills_in_are_not_asked_for():
    assert asked_by(json.dumps(VecClusterSpec().as_written())) == asked_by("{}") == {"image": "registry.example/node:1"}


def test_a_new_operator_asks_for_no_restart():
    newer = replace(CONTEXT, tools_image="tools:9", etcd_image="etcd:9", bootstrapped=True, disruptions_allowed=0)
    newer = replace(newer, replicas=9, operator_namespace="elsewhere")
    assert asked_by("{tuning: {maxK: 5}}", newer) == asked_by("{tuning: {maxK: 5}}")
    assert differences(asked_by("{}"), asked_by("{}", replace(CONTEXT, node_image="node:9"))) == ["image"]


def test_what_was_asked_is_written_on_the_pod_and_read_back_the_same():
    spec = "{tuning: {maxK: 5}, resources: {requests: {cpu: 2}}, podTemplate: {spec: {priorityClassName: a}}}"
    annotations = built(spec)["StatefulSet", "demo"]["spec"]["template"]["metadata"]["annotations"]
    assert json.loads(annotations["veccluster.io/asked"]) == asked_by(spec)


def test_several_changes_are_all_named():
    change = "{tuning: {maxK: 5, maxBatch: 9}, zones: [b]}"
    assert differences(asked_by("{zones: [a]}"), asked_by(change)) == ["tuning.maxBatch", "tuning.maxK", "zones"]


def test_the_image_of_the_file_beats_the_operators():
    assert asked_by("{image: own}")["image"] == container(data_pod("{image: own}"), "node")["image"] == "own"
