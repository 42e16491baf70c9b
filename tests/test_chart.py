"""The chart, the manifest, the images and the reference agree with what they are made from; e2e asks Helm itself."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from veccluster.model import reference
from veccluster.model.spec import VecCluster
from veccluster.model.support import unsupported

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "veccluster"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
MANIFEST = list(yaml.safe_load_all((ROOT / "deploy" / "veccluster.yaml").read_text()))
IMAGES = {"node": {"core", "dataplane"}, "operator": {"core", "dataplane", "operator"}}


def manifest(kind, name):
    (found,) = (d for d in MANIFEST if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


# --- CRDs and reference ---


def test_the_chart_has_the_crds():
    ours, copies = (
        {f.name: f.read_text() for f in folder.iterdir()} for folder in (ROOT / "crds", CHART / "files/crds")
    )
    assert copies == ours, "run `make crds`"


def test_the_manifest_has_the_crds():
    for file in (ROOT / "crds").iterdir():
        crd = yaml.safe_load(file.read_text())
        assert manifest("CustomResourceDefinition", crd["metadata"]["name"])["spec"] == crd["spec"], (
            "run `make manifest`"
        )


def test_a_crd_has_one_place_where_the_template_puts_labels_and_annotations():
    for file in (CHART / "files/crds").iterdir():
        assert file.read_text().count("\nmetadata:\n") == 1


def test_the_reference_is_what_the_generator_writes():
    assert (ROOT / "docs" / "reference.md").read_text() == reference.reference(), "run `make crds`"


# --- values ---


def test_the_schema_is_one_and_takes_the_default_values():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)


def test_the_schema_knows_exactly_the_values_there_are():
    def same(values, schema, where):
        if "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].removeprefix("#/definitions/")]
        if "properties" not in schema:
            return
        assert schema["additionalProperties"] is False, where
        optional = {"global"} if not where else {"requests", "limits"} if where == ".resources" else set()
        assert set(schema["properties"]) - optional == set(values) - optional, where
        for name, value in values.items():
            same(value, schema["properties"][name], f"{where}.{name}")

    same(VALUES, SCHEMA, "")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replica", 3),
        ("replicas", "two"),
        ("image.repositry", "x"),
        ("image.digest", "sha256:12"),
        ("image.pullPolicy", "Sometimes"),
        ("node.image.tag", "a b"),
        ("node.pullPolicy", "Always"),
        ("watchNamespaces", "search"),
        ("watchNamespaces", ["Not a name"]),
        ("logLevel", "loud"),
        ("resync", 0),
        ("rbac.readNodes", "yes"),
        ("exampleCluster.name", "Demo"),
        ("resources.limit", {}),
    ],
)
def test_a_wrong_value_is_refused(path, value):
    *parents, name = path.split(".")
    values = json.loads(json.dumps(VALUES))
    at = values
    for parent in parents:
        at = at[parent]
    at[name] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, SCHEMA)


def test_templates_use_only_values_that_there_are():
    for template in (CHART / "templates").iterdir():
        for path in re.findall(r"\.Values\.([A-Za-z.]+)", template.read_text()):
            at = VALUES
            for name in path.rstrip(".").split("."):
                assert name in at, f"{template.name}: {path}"
                at = at[name]


def test_every_value_says_what_it_is_for():
    text = (CHART / "values.yaml").read_text()
    assert set(re.findall(r"^([A-Za-z]+):", text, re.MULTILINE)) == set(VALUES)


def test_the_example_cluster_is_right_and_can_be_had():
    example = VALUES["exampleCluster"]
    head = {"apiVersion": "veccluster.io/v1alpha1", "kind": "VecCluster", "metadata": {"name": example["name"]}}
    assert unsupported(VecCluster.parse(head | {"spec": example["spec"]}).spec, "kubernetes") == []


# --- rights ---


def rules():
    for document in MANIFEST:
        if document["kind"] in ("Role", "ClusterRole"):
            for rule in document["rules"]:
                yield document["kind"], rule


def test_no_right_is_a_wildcard_and_none_is_on_secrets():
    everything = [(kind, rule) for kind, rule in rules()]
    assert everything
    for _, rule in everything:
        assert set(rule) <= {"apiGroups", "resources", "resourceNames", "verbs"}
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
        assert not {"secrets", "roles", "rolebindings", "clusterroles", "pods/exec"} & set(rule["resources"])
        assert not {"escalate", "bind", "impersonate", "deletecollection"} & set(rule["verbs"])


def test_templates_have_no_wildcards_in_rules():
    for template in (CHART / "templates").iterdir():
        assert not re.search(r"(verbs|resources|apiGroups):\s*\[?\s*['\"]?\*", template.read_text()), template.name


def test_the_cluster_wide_right_on_nodes_is_to_read():
    nodes = [rule for kind, rule in rules() if "nodes" in rule["resources"]]
    assert nodes == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list"]}]


def test_the_lease_is_in_a_role_of_its_own_and_changed_by_name():
    leases = [(kind, rule) for kind, rule in rules() if "leases" in rule["resources"]]
    assert {kind for kind, _ in leases} == {"Role"}
    assert {tuple(rule["verbs"]): rule.get("resourceNames") for _, rule in leases} == {
        ("get", "patch", "update"): ["veccluster-operator"],
        ("create",): None,
    }


def test_volumes_cannot_be_deleted_and_resources_not_be_changed():
    verbs = {resource: set(rule["verbs"]) for _, rule in rules() for resource in rule["resources"]}
    assert verbs["persistentvolumeclaims"] == {"get", "list", "watch", "patch"}
    assert verbs["vecclusters"] == verbs["veccollections"] == {"get", "list", "watch"}


# --- pods ---


def test_the_operator_runs_under_the_restricted_profile():
    spec = manifest("Deployment", "veccluster-operator")["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    assert all(set(volume) == {"name", "emptyDir"} for volume in spec["volumes"])


def test_two_replicas_are_kept_apart_and_one_of_them_is_kept():
    deployment = manifest("Deployment", "veccluster-operator")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["replicas"] == 2
    for selector in (
        deployment["selector"],
        manifest("PodDisruptionBudget", "veccluster-operator")["spec"]["selector"],
        *(c["labelSelector"] for c in deployment["template"]["spec"]["topologySpreadConstraints"]),
    ):
        assert selector["matchLabels"].items() <= labels.items()
    assert manifest("Service", "veccluster-operator-metrics")["spec"]["selector"].items() <= labels.items()


# --- images ---


def dockerfile(image):
    return (ROOT / f"Dockerfile.{image}").read_text()


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_built_from_hashes_and_runs_as_a_numbered_user(image):
    text = dockerfile(image)
    instructions = [line for line in text.splitlines() if re.match(r"[A-Z]+ ", line)]
    assert "USER 10001:10001" in instructions
    assert not any(line.startswith(("HEALTHCHECK", "ENTRYPOINT", "ADD")) for line in instructions)
    stages = [line for line in instructions if line.startswith("FROM")]
    assert stages == ["FROM ${BASE} AS dependencies", "FROM dependencies AS code", "FROM ${BASE}"]
    for install in re.findall(r"pip [^&]*install[^&]*", text.replace("\\\n", " ")):
        assert "--require-hashes" in install or "--no-deps --no-index" in install, install


@pytest.mark.parametrize("image", IMAGES)
def test_a_change_of_the_code_makes_only_the_last_layer_of_an_image_anew(image):
    dependencies, _, shipped = re.split("^FROM .*$", dockerfile(image), flags=re.MULTILINE)[1:]
    assert copies(dependencies) == [f"requirements/build.txt requirements/{image}.txt requirements/"]
    assert copies(shipped) == [
        "--from=dependencies /opt/veccluster /opt/veccluster",
        "--from=code /code /opt/veccluster",
    ]
    assert shipped.rstrip().endswith("COPY --from=code /code /opt/veccluster")


def copies(stage):
    return re.findall("^COPY (.*)$", stage, re.MULTILINE)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_gets_only_what_it_needs(image):
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile(image), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == {
        *IMAGES[image],
        "pyproject.toml",
        "README.md",
        "LICENSE",
        *(f"requirements/{r}.txt" for r in ("build", image)),
    }
    kept = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")
    }
    assert {source.partition("/")[0] for source in copied} <= kept


def test_the_operator_needs_no_numpy_and_no_arrow():
    """They would double its image: requirements/operator.txt leaves them out, although the Python client has them."""
    names = set(re.findall(r"^([a-z0-9.-]+)==", (ROOT / "requirements" / "operator.txt").read_text(), re.MULTILINE))
    assert {"kopf", "kubernetes-asyncio", "aetcd"} <= names
    assert not {"numpy", "pyarrow", "usearch"} & names
    program = """
import importlib, pkgutil, sys
for missing in ("numpy", "pyarrow", "usearch"):
    sys.modules[missing] = None  # an import of it fails
import veccluster_operator
for module in pkgutil.walk_packages(veccluster_operator.__path__, "veccluster_operator."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import veccluster_node.metadata.store
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(f.name for f in (ROOT / "requirements").glob("*.txt")))
def test_requirements_are_pinned_by_hash_and_name_no_host(name):
    text = (ROOT / "requirements" / name).read_text()
    assert not re.search(r"https?://|--index-url|--find-links", text)
    for pin in re.split(r"\n(?=[a-z])", text.strip()):
        assert re.match(r"[a-zA-Z0-9._-]+==\S+", pin), pin
        assert "--hash=sha256:" in pin, pin
