"""The chart by rendering it: what is installed, what is refused, and that everything derived from it is up to date."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from testkit.helm import CHART, ROOT, UNAVAILABLE, HelmError, Manifest, find_helm, helm, render
from torchmodel_operator import kube, names, settings, spec

pytestmark = pytest.mark.skipif(find_helm() is None, reason=UNAVAILABLE)

DIGEST = "sha256:" + "0f" * 32
EVERYTHING: dict[str, Any] = {
    "image": {"repository": "127.0.0.1:5000/team/torchmodel-operator", "tag": "dev", "digest": DIGEST},
    "runtimeImage": {"digest": DIGEST},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "watchNamespaces": ["blue", "green"],
    "allowCodeExecution": True,
    "workers": 64,
    "kubeQps": 1000,
    "logLevel": "debug",
    "crds": {"install": True, "keep": False},
    "serviceAccount": {"name": "account", "annotations": {"a": "b"}},
    "resources": {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": "1.5", "ephemeral-storage": "1Gi"}},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"pool": "system"},
    "tolerations": [{"key": "pool", "operator": "Equal", "value": "system", "effect": "NoSchedule"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}},
        {"maxSkew": 2, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"},
    ],
    "networkPolicy": {"enabled": True, "apiServer": {"cidrs": ["10.0.0.1/32", "fd00::1/128"], "ports": [6443]}},
    "podAnnotations": {"prometheus.io/scrape": "true"},
    "extraLabels": {"team": "serving"},
    "global": {"parent": "chart"},
}
BARE: dict[str, Any] = {
    "replicas": 0,
    "crds": {"install": False},
    "rbac": {"create": False, "aggregate": False},
    "serviceAccount": {"create": False},
    "podDisruptionBudget": {"enabled": False},
    "topologySpreadConstraints": [],
}
VALUE_SETS = pytest.mark.parametrize(
    "values", [{}, EVERYTHING, BARE], ids=["defaults", "everything switched on", "everything switched off"]
)


def objects(documents: list[Manifest], kind: str) -> dict[str, Manifest]:
    return {document["metadata"]["name"]: document for document in documents if document["kind"] == kind}


def only(documents: list[Manifest], kind: str) -> Manifest:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def rights(*roles: Manifest) -> dict[tuple[str, str], set[str]]:
    granted: dict[tuple[str, str], set[str]] = {}
    for rule in (rule for role in roles for rule in role["rules"]):
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                granted.setdefault((group, resource), set()).update(rule["verbs"])
    return granted


def group_of(resource: kube.Resource) -> str:
    return resource.api_version.rpartition("/")[0]


def notes(values: dict[str, Any], folder: Path) -> str:
    """NOTES.txt as `helm install` prints it; `helm template` leaves it out, so a copy of the chart renders it as an object."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "NOTES.txt")
    head = "apiVersion: v1\nkind: Notes\nmetadata: {name: notes}\n"
    (chart / "templates" / "notes.yaml").write_text(head + 'text: {{ tpl (.Files.Get "NOTES.txt") . | toJson }}\n')
    return str(only(render(values, chart=chart), "Notes")["text"])


def renderer() -> ModuleType:
    module_spec = importlib.util.spec_from_file_location("install_render", ROOT / "install" / "render.py")
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules["install_render"] = module
    module_spec.loader.exec_module(module)
    return module


@VALUE_SETS
def test_lint_finds_nothing_and_two_renderings_are_the_same(values: dict[str, Any]) -> None:
    helm("lint", "--strict", CHART, values=values)
    command = ("template", "models", CHART, "--kube-version", "1.31.0")
    assert helm(*command, values=values) == helm(*command, values=values)


def test_nothing_asks_the_cluster_or_chance() -> None:
    for template in CHART.glob("templates/**/*"):
        if template.is_file() and "crds" not in template.parts:
            assert not re.search(r"\b(lookup|rand\w+|genCA|genSigned\w+|uuidv4|now)\b *[\"(\d}]", template.read_text())


@VALUE_SETS
def test_every_object_says_its_namespace_and_release(values: dict[str, Any]) -> None:
    allowed = {"system", *values.get("watchNamespaces", [])}
    for document in render(values):
        metadata = document["metadata"]
        if document["kind"] == "CustomResourceDefinition":
            continue
        assert "models" in metadata["name"] or metadata["name"] == "account"
        assert metadata["labels"]["app.kubernetes.io/instance"] == "models"
        assert set(values.get("extraLabels", {}).items()) <= set(metadata["labels"].items())
        if not document["kind"].startswith("Cluster"):
            assert metadata["namespace"] in allowed


@VALUE_SETS
def test_the_operator_reads_its_settings_from_what_the_chart_renders(values: dict[str, Any]) -> None:
    (container,) = only(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    fields = {"metadata.name": "pod-1", "metadata.namespace": "system"}
    environment = {
        variable["name"]: variable["value"]
        if "value" in variable
        else fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for variable in container["env"]
    }
    assert set(environment) == {*settings.VARIABLES, "POD_NAME"}
    runtime_image = f"torchmodel-runtime@{DIGEST}" if values is EVERYTHING else "torchmodel-runtime:0.1.0"
    assert settings.parse_settings(environment) == settings.OperatorSettings(
        runtime_image=runtime_image,
        namespaces=tuple(values.get("watchNamespaces", ())),
        allow_code_execution=values.get("allowCodeExecution", False),
        lease_namespace="system",
        pod_name="pod-1",
        workers=values.get("workers", 16),
        kube_qps=values.get("kubeQps", 50),
        probe_port=container["ports"][0]["containerPort"],
        log_level=values.get("logLevel", "info"),
    )


def test_the_chart_and_the_operator_agree_on_defaults_and_limits() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    plain = settings.parse_settings({"TORCHMODEL_RUNTIME_IMAGE": "i", "POD_NAMESPACE": "n"})
    assert tuple(schema["logLevel"]["enum"]) == settings.LOG_LEVELS
    assert (defaults["workers"], defaults["kubeQps"]) == (plain.workers, plain.kube_qps)
    assert (defaults["logLevel"], defaults["allowCodeExecution"]) == (plain.log_level, plain.allow_code_execution)
    for value, variable in (("workers", "TORCHMODEL_WORKERS"), ("kubeQps", "TORCHMODEL_KUBE_QPS")):
        environment = {"TORCHMODEL_RUNTIME_IMAGE": "i", "POD_NAMESPACE": "n"}
        for limit in (schema[value]["minimum"], schema[value]["maximum"]):
            settings.parse_settings(environment | {variable: str(limit)})
        with pytest.raises(settings.SettingsError, match=str(schema[value]["maximum"])):
            settings.parse_settings(environment | {variable: str(schema[value]["maximum"] + 1)})


def test_the_operator_has_exactly_the_rights_that_its_calls_need() -> None:
    documents = render()
    written = {"get", "list", "watch", "create", "patch"}  # server-side apply is create and patch
    assert rights(objects(documents, "ClusterRole")["models-torchmodel-operator"]) == {
        (spec.GROUP, "torchmodels"): {"get", "list", "watch"},
        (spec.GROUP, "torchmodels/status"): {"patch"},
        (spec.GROUP, "torchmodels/finalizers"): {"update"},
        **{(group_of(child), child.plural): written for child in kube.CHILDREN},
        (group_of(kube.BUDGETS), kube.BUDGETS.plural): {*written, "delete"},  # the only kind that reconcile deletes
        (group_of(kube.PODS), kube.PODS.plural): {"get", "list", "watch"},
        (group_of(kube.EVENTS), kube.EVENTS.plural): {"list", "create"},
    }
    leader = only(documents, "Role")
    assert leader["metadata"]["namespace"] == "system"
    assert rights(leader) == {(group_of(kube.LEASES), kube.LEASES.plural): {"create", "get", "update"}}
    assert [rule.get("resourceNames") for rule in leader["rules"]] == [None, [names.LEASE]]


def test_with_watch_namespaces_no_right_is_cluster_wide() -> None:
    documents = render({"watchNamespaces": ["blue", "green"], "rbac": {"aggregate": False}})
    assert not [document for document in documents if document["kind"].startswith("ClusterRole")]
    everywhere = objects(render(), "ClusterRole")["models-torchmodel-operator"]
    for kind in ("Role", "RoleBinding"):
        places = [document["metadata"]["namespace"] for document in documents if document["kind"] == kind]
        assert places == ["blue", "green", "system"]
    for role in (document for document in documents if document["kind"] == "Role"):
        if role["metadata"]["namespace"] != "system":
            assert role["rules"] == everywhere["rules"]


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["blue"]}], ids=["all namespaces", "one namespace"])
def test_every_binding_names_the_account_of_the_operator_pods(values: dict[str, Any]) -> None:
    documents = render({**values, "serviceAccount": {"name": "account"}})
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == only(documents, "ServiceAccount")["metadata"]["name"] == "account"
    bindings = [document for document in documents if document["kind"].endswith("RoleBinding")]
    assert len(bindings) == 2
    for binding in bindings:
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "account", "namespace": "system"}]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ({}, "torchmodel-operator:0.1.0"),
        ({"tag": "dev"}, "torchmodel-operator:dev"),
        ({"digest": DIGEST}, f"torchmodel-operator@{DIGEST}"),
        ({"repository": "r.io:443/a/b", "tag": "1", "digest": DIGEST}, f"r.io:443/a/b:1@{DIGEST}"),
    ],
    ids=["the version by default", "a tag", "a digest", "both"],
)
def test_images_are_named_by_tag_or_digest(image: dict[str, str], expected: str) -> None:
    documents = render({"image": image})
    pods = [only(documents, "Deployment")["spec"]["template"], only(documents, "Pod")]
    assert [pod["spec"]["containers"][0]["image"] for pod in pods] == [expected, expected]


@VALUE_SETS
def test_pods_are_locked_down(values: dict[str, Any]) -> None:
    documents = render(values)
    assert all(not account["automountServiceAccountToken"] for account in objects(documents, "ServiceAccount").values())
    operator, test = only(documents, "Deployment")["spec"]["template"]["spec"], only(documents, "Pod")["spec"]
    assert (operator["automountServiceAccountToken"], test["automountServiceAccountToken"]) == (True, False)
    for pod in (operator, test):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        assert pod["enableServiceLinks"] is False  # a link is a variable TORCHMODEL_..., which the operator refuses
        assert pod["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@VALUE_SETS
def test_the_test_pod_is_not_taken_for_an_operator(values: dict[str, Any]) -> None:
    documents = render(values)
    test_labels = only(documents, "Pod")["metadata"]["labels"].items()
    deployment = only(documents, "Deployment")
    selectors = [only(documents, "Service")["spec"]["selector"], deployment["spec"]["selector"]["matchLabels"]]
    selectors += [
        budget["spec"]["selector"]["matchLabels"] for budget in objects(documents, "PodDisruptionBudget").values()
    ]
    selectors += [
        policy["spec"]["podSelector"]["matchLabels"] for policy in objects(documents, "NetworkPolicy").values()
    ]
    for selector in selectors:
        assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        assert not selector.items() <= test_labels


def test_a_spread_constraint_without_a_selector_gets_the_operators_own() -> None:
    deployment = only(render(EVERYTHING), "Deployment")["spec"]
    given, filled = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert given["labelSelector"] == {}
    assert filled["labelSelector"] == deployment["selector"]


def test_network_policy_lets_through_only_what_the_operator_needs() -> None:
    egress = only(render(EVERYTHING), "NetworkPolicy")["spec"]["egress"]
    dns, server, models = egress
    assert [port["port"] for port in dns["ports"]] == [53, 53]
    assert server["to"] == [{"ipBlock": {"cidr": "10.0.0.1/32"}}, {"ipBlock": {"cidr": "fd00::1/128"}}]
    assert [port["port"] for port in server["ports"]] == [6443]
    (peer,) = models["to"]
    assert peer["podSelector"]["matchExpressions"] == [{"key": names.LABEL_MODEL, "operator": "Exists"}]
    assert models["ports"] == [{"port": names.PORT_NAME, "protocol": "TCP"}]
    assert "to" not in only(render({"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]["egress"][1]


@pytest.mark.parametrize(
    ("crds", "is_installed", "is_kept"),
    [
        ({}, True, True),
        ({"keep": False}, True, False),
        ({"install": False}, False, False),
    ],
    ids=["kept by default", "removed with the release", "looked after by somebody else"],
)
def test_crd_switches(crds: dict[str, bool], is_installed: bool, is_kept: bool) -> None:
    found = objects(render({"crds": crds}), "CustomResourceDefinition")
    assert bool(found) is is_installed
    annotations = [crd["metadata"].get("annotations", {}) for crd in found.values()]
    assert [annotation.get("helm.sh/resource-policy") for annotation in annotations] == (
        ["keep" if is_kept else None] if is_installed else []
    )


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicaCount": 2}, "replicaCount"),
        ({"image": {"name": "x"}}, "name"),
        ({"image": {"repository": "Upper/case"}}, "repository"),
        ({"image": {"repository": "operator:tag"}}, "repository"),
        ({"image": {"tag": "a b"}}, "tag"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "pullPolicy"),
        ({"runtimeImage": {"pullPolicy": "Always"}}, "pullPolicy"),
        ({"imagePullSecrets": ["registry"]}, "imagePullSecrets"),
        ({"replicas": "2"}, "replicas"),
        ({"replicas": -1}, "replicas"),
        ({"watchNamespaces": ["Team A"]}, "watchNamespaces"),
        ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
        ({"watchNamespaces": "blue"}, "watchNamespaces"),
        ({"allowCodeExecution": "true"}, "allowCodeExecution"),
        ({"workers": 0}, "workers"),
        ({"kubeQps": 1001}, "kubeQps"),
        ({"logLevel": "trace"}, "logLevel"),
        ({"crds": {"enabled": True}}, "enabled"),
        ({"rbac": {"create": 1}}, "create"),
        ({"resources": {"limits": {"memory": "512 MB"}}}, "memory"),
        ({"tolerations": [{"effect": "Never"}]}, "effect"),
        ({"topologySpreadConstraints": [{"maxSkew": 1}]}, "topologyKey"),
        ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "cidrs"),
        ({"networkPolicy": {"apiServer": {"ports": []}}}, "ports"),
        ({"extraLabels": {"app.kubernetes.io/name": "mine"}}, "app.kubernetes.io/name"),
        ({"podAnnotations": {"a": 1}}, "podAnnotations"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_a_wrong_value_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=re.escape(named)):
        render(values)


def test_every_value_is_documented_and_has_a_schema() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    text = (CHART / "values.yaml").read_text()
    documented = {value.path for value in renderer().read_values(text)}

    def check(node: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        for key, value in node.items():
            inner = f"{path}.{key}".lstrip(".")
            assert key in schema["properties"], f"{inner} has no schema"
            if inner not in documented:
                assert isinstance(value, dict), f"{inner} has no comment above it"
                check(value, schema["properties"][key], inner)
        assert set(node) == set(schema["properties"]) - {"global"}, f"{path}: schema and values.yaml differ"

    check(yaml.safe_load(text), schema, "")


def test_install_manifest_is_the_chart_with_its_defaults() -> None:
    text = (ROOT / "install" / "torchmodel-operator.yaml").read_text()
    written = list(yaml.load_all(text, yaml.CSafeLoader))
    rendered = list(yaml.load_all(renderer().render_manifest(str(find_helm())), yaml.CSafeLoader))
    assert written == rendered, "run: python install/render.py"
    assert [document["kind"] for document in written].count("Namespace") == 1
    assert not objects(written, "Pod")


def test_reference_table_is_that_of_the_values() -> None:
    module = renderer()
    page = (ROOT / "docs" / "reference" / "chart.md").read_text()
    table = module.render_table(module.read_values((CHART / "values.yaml").read_text()))
    assert module.with_table(page, table) == page, "run: python install/render.py"


@pytest.mark.parametrize(
    ("values", "namespace"),
    [({}, "default"), ({"watchNamespaces": ["blue", "green"]}, "blue")],
    ids=["all namespaces", "two namespaces"],
)
def test_notes_lead_to_a_first_model_that_the_operator_accepts(
    values: dict[str, Any], namespace: str, tmp_path: Path
) -> None:
    text = notes(values, tmp_path)
    model = yaml.safe_load(text.partition("<<'EOF'\n")[2].partition("\nEOF\n")[0])
    assert model["metadata"]["namespace"] == namespace
    parsed = spec.parse_model({**model, "metadata": {**model["metadata"], "uid": "1"}})
    assert parsed.spec.checkpoint.uri == f"http://first-checkpoint.{namespace}.svc:8000/linear.pth"
    assert f"kubectl -n {namespace} wait --for=condition=Ready torchmodel/linear" in text
    prediction = json.loads(text.partition("-d '")[2].partition("'\n")[0])
    assert [tensor["name"] for tensor in prediction["inputs"]] == [
        tensor.name for tensor in parsed.spec.signature.inputs
    ]
    assert "helm -n system test models" in text


def test_notes_tell_what_is_switched_off(tmp_path: Path) -> None:
    text = notes(BARE, tmp_path)
    assert "crds.install is off" in text
    assert "replicas is 0" in text


@pytest.mark.parametrize(("status", "exit_code"), [(200, 0), (503, 1)], ids=["ready", "not ready"])
def test_helm_test_asks_whether_the_operator_is_ready(status: int, exit_code: int, tmp_path: Path) -> None:
    class Operator(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()
            self.wfile.write(b"no API server\n")

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    (container,) = only(render(), "Pod")["spec"]["containers"]
    (variable,) = container["env"]
    assert variable["value"] == "http://models-torchmodel-operator.system.svc:8081/readyz"
    python, option, script = container["command"]
    assert (python, option) == ("python", "-c")
    with http.server.HTTPServer(("127.0.0.1", 0), Operator) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {"READY_URL": f"http://127.0.0.1:{server.server_port}/readyz", "PATIENCE_S": "0"}
        done = subprocess.run(
            [sys.executable, option, script], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        server.shutdown()
    assert done.returncode == exit_code
    assert str(status) in done.stdout + done.stderr
