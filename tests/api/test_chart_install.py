"""The chart on a real API server: installed, judged by its access control and Pod Security, upgraded and removed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from testkit.control_plane import CONTROLLERS, ApiError, ControlPlane
from testkit.helm import CHART, ROOT, UNAVAILABLE, find_helm, helm, render

pytestmark = [
    pytest.mark.skipif(ControlPlane.unavailable_reason() is not None, reason=str(ControlPlane.unavailable_reason())),
    pytest.mark.skipif(find_helm() is None, reason=UNAVAILABLE),
]

RELEASE = "models"
SYSTEM = "torchmodel-system"
ACCOUNT = "models-torchmodel-operator"
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/torchmodels.serving.torchmodel.dev"
MODELS = "/apis/serving.torchmodel.dev/v1alpha1/namespaces/{}/torchmodels"
WAIT_S = 30.0

Rights = set[tuple[str, str, str]]


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A control plane with a namespace that enforces Pod Security "restricted" and two to serve in."""
    with ControlPlane(controllers=(*CONTROLLERS, "clusterrole-aggregation-controller")) as running:
        restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
        for name, labels in ((SYSTEM, restricted), ("blue", {}), ("green", {}), ("red", {})):
            running.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        yield running


@pytest.fixture
def install(plane: ControlPlane) -> Iterator[Callable[..., str]]:
    """`helm upgrade --install` with values; release and CustomResourceDefinition are removed afterwards."""

    def upgrade(**values: Any) -> str:
        options = ("--install", RELEASE, CHART, "--namespace", SYSTEM)
        return helm("upgrade", *options, values=values, kubeconfig=plane.kubeconfig)

    yield upgrade
    helm("uninstall", RELEASE, "--namespace", SYSTEM, "--ignore-not-found", kubeconfig=plane.kubeconfig)
    remove_crd(plane)


def remove_crd(plane: ControlPlane) -> None:
    if exists(plane, CRD):
        plane.api.request("DELETE", CRD)
        wait_for(lambda: not exists(plane, CRD))


def exists(plane: ControlPlane, path: str) -> bool:
    try:
        plane.api.request("GET", path)
    except ApiError as error:
        if error.status in (404, 429):  # 429: the API server makes room for a kind that is new
            return False
        raise
    return True


def wait_for(is_true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_true():
        assert time.monotonic() < deadline, f"not within {WAIT_S:.0f} s"
        time.sleep(0.1)


def rights_in(plane: ControlPlane, namespace: str) -> Rights:
    """What the API server says the operator may do there, without what every account may."""
    review = plane.api_for_service_account(SYSTEM, ACCOUNT).request(
        "POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {"spec": {"namespace": namespace}}
    )
    return {
        (group, resource, verb)
        for rule in review["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if group not in ("authorization.k8s.io", "authentication.k8s.io")
    }


def is_allowed(plane: ControlPlane, user: str, namespace: str, verb: str, resource: str, group: str = "") -> bool:
    spec = {
        "user": user,
        "resourceAttributes": {"namespace": namespace, "verb": verb, "resource": resource, "group": group},
    }
    review = plane.api.request("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", {"spec": spec})
    return bool(review["status"]["allowed"])


def create_first_model(plane: ControlPlane, namespace: str) -> str:
    """Create the TorchModel of the notes that Helm keeps of the release; returns its path."""
    notes = helm("get", "notes", RELEASE, "--namespace", SYSTEM, kubeconfig=plane.kubeconfig)
    model = yaml.safe_load(notes.partition("<<'EOF'\n")[2].partition("\nEOF\n")[0])
    model["metadata"]["namespace"] = namespace
    path = MODELS.format(namespace)
    wait_for(lambda: exists(plane, path))
    plane.api.request("POST", path, model)
    return f"{path}/{model['metadata']['name']}"


def uid_of(plane: ControlPlane, path: str) -> str:
    return str(plane.api.request("GET", path)["metadata"]["uid"])


def test_operator_pods_are_admitted_where_pod_security_is_restricted(
    plane: ControlPlane, install: Callable[..., str]
) -> None:
    install()
    pods = f"/api/v1/namespaces/{SYSTEM}/pods"
    wait_for(lambda: len(plane.api.request("GET", pods)["items"]) == 2)
    (test,) = [document for document in render(release=RELEASE, namespace=SYSTEM) if document["kind"] == "Pod"]
    plane.api.request("POST", pods, test, dryRun="All")
    unsafe = {"metadata": {"name": "unsafe"}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
    with pytest.raises(ApiError, match="restricted"):
        plane.api.request("POST", pods, unsafe, dryRun="All")


def test_rights_are_cluster_wide_by_default_and_reach_no_secret(
    plane: ControlPlane, install: Callable[..., str]
) -> None:
    install()
    granted = rights_in(plane, "red")
    (role,) = [d for d in render() if d["kind"] == "ClusterRole" and d["metadata"]["name"] == ACCOUNT]
    assert granted == {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    lease = "coordination.k8s.io", "leases"
    assert rights_in(plane, SYSTEM) - granted == {(*lease, "create"), (*lease, "get"), (*lease, "update")}
    operator = plane.api_for_service_account(SYSTEM, ACCOUNT)
    for path in ("/api/v1/secrets", "/api/v1/configmaps", "/api/v1/nodes", "/api/v1/namespaces", CRD):
        with pytest.raises(ApiError, match="forbidden"):
            operator.request("GET", path)


def test_the_operator_holds_only_its_own_lease(plane: ControlPlane, install: Callable[..., str]) -> None:
    install()
    operator = plane.api_for_service_account(SYSTEM, ACCOUNT)
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases"
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "torchmodel-operator"}}
    lease = operator.request("POST", leases, body)
    operator.request("PUT", f"{leases}/torchmodel-operator", lease)
    for forbidden in (f"{leases}/other", leases, leases.replace(SYSTEM, "blue") + "/torchmodel-operator"):
        with pytest.raises(ApiError, match="forbidden"):
            operator.request("GET", forbidden)
    plane.api.request("DELETE", f"{leases}/torchmodel-operator")


def test_with_watch_namespaces_rights_end_there(plane: ControlPlane, install: Callable[..., str]) -> None:
    everywhere = {"torchmodels", "deployments", "services", "pods"}
    install(watchNamespaces=["blue", "green"])
    assert rights_in(plane, "red") == set()
    assert rights_in(plane, "blue") == rights_in(plane, "green")
    assert everywhere <= {resource for _, resource, _ in rights_in(plane, "blue")}
    assert {resource for _, resource, _ in rights_in(plane, SYSTEM)} == {"leases"}
    operator = plane.api_for_service_account(SYSTEM, ACCOUNT)
    wait_for(lambda: exists(plane, MODELS.format("blue")))
    operator.request("GET", MODELS.format("blue"))
    with pytest.raises(ApiError, match="forbidden"):
        operator.request("GET", "/apis/serving.torchmodel.dev/v1alpha1/torchmodels")


@contextlib.contextmanager
def operator_process(plane: ControlPlane, values: dict[str, Any], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The operator on this machine, ready, with the settings that the chart renders and the rights of its account."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (deployment,) = [document for document in render(values) if document["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHMODEL", "KUBE"))}
    environment |= {variable["name"]: variable.get("value", SYSTEM) for variable in container["env"]}
    environment |= {"KUBECONFIG": str(plane.kubeconfig_for_service_account(SYSTEM, ACCOUNT))}
    environment |= {"TORCHMODEL_PROBE_PORT": str(port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "torchmodel_operator"], env=environment, stdout=output, stderr=output
        )
    try:
        wait_for(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/readyz"))
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("values", "namespace"),  # one each: children of the first model may still wait for the garbage collector
    [({}, "green"), ({"watchNamespaces": ["blue"]}, "blue")],
    ids=["all namespaces", "one namespace"],
)
def test_the_operator_can_do_its_work_with_these_rights_and_settings(
    plane: ControlPlane, install: Callable[..., str], tmp_path: Path, values: dict[str, Any], namespace: str
) -> None:
    install(**values)
    log = tmp_path / "operator.log"
    events = f"/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldSelector=regarding.kind%3DTorchModel"
    budget = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets/linear"
    wait_for(lambda: exists(plane, MODELS.format(namespace)))
    with operator_process(plane, values, log) as process:
        model = create_first_model(plane, namespace)
        plane.api.request("PATCH", model, {"spec": {"replicas": 2}})
        wait_for(lambda: exists(plane, budget))
        plane.api.request("PATCH", model, {"spec": {"replicas": 1}})
        wait_for(lambda: not exists(plane, budget))
        plane.api.request("PATCH", model, {"spec": {"security": {"allowCodeExecution": True}}})
        wait_for(lambda: plane.api.request("GET", model)["status"].get("observedGeneration") == 4)
        wait_for(lambda: plane.api.request("GET", events)["items"])  # that this operator was not asked to run code
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0, log.read_text()
    assert "forbidden" not in log.read_text().lower()
    for path in ("/apis/apps/v1/namespaces/{}/deployments", "/api/v1/namespaces/{}/services"):
        assert exists(plane, f"{path.format(namespace)}/linear")


def test_people_of_a_namespace_may_work_with_its_models(plane: ControlPlane, install: Callable[..., str]) -> None:
    install()
    group, bindings = "serving.torchmodel.dev", "/apis/rbac.authorization.k8s.io/v1/namespaces/blue/rolebindings"
    for role in ("view", "edit"):
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
        subjects = [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}]
        body = {"metadata": {"name": role}, "roleRef": reference, "subjects": subjects}
        plane.api.request("POST", bindings, body)
    wait_for(lambda: is_allowed(plane, "edit", "blue", "create", "torchmodels", group))
    wait_for(lambda: is_allowed(plane, "view", "blue", "list", "torchmodels", group))
    assert is_allowed(plane, "edit", "blue", "patch", "torchmodels/scale", group)
    assert not is_allowed(plane, "edit", "blue", "patch", "torchmodels/status", group)
    assert not is_allowed(plane, "edit", "green", "create", "torchmodels", group)
    assert not is_allowed(plane, "view", "blue", "create", "torchmodels", group)


def test_models_survive_upgrade_uninstall_and_install_again(plane: ControlPlane, install: Callable[..., str]) -> None:
    install()
    model = create_first_model(plane, "blue")
    uid = uid_of(plane, model)
    for change in ({"logLevel": "debug"}, {"crds": {"install": False}}):
        install(**change)
        assert uid_of(plane, model) == uid
    helm("uninstall", RELEASE, "--namespace", SYSTEM, kubeconfig=plane.kubeconfig)
    assert not exists(plane, f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{ACCOUNT}")
    assert uid_of(plane, model) == uid
    install()
    assert uid_of(plane, model) == uid


def test_without_keep_the_definition_goes_with_the_release(plane: ControlPlane, install: Callable[..., str]) -> None:
    install(crds={"keep": False})
    assert exists(plane, CRD)
    helm("uninstall", RELEASE, "--namespace", SYSTEM, kubeconfig=plane.kubeconfig)
    wait_for(lambda: not exists(plane, CRD))


def test_plain_manifest_is_accepted_and_can_be_applied_again(plane: ControlPlane) -> None:
    manifest = ROOT / "install" / "torchmodel-operator.yaml"
    kubectl = Path(sys.executable).with_name("kubectl")
    command = [kubectl, "--kubeconfig", plane.kubeconfig, "apply", "--server-side", "--filename", manifest]
    plane.api.request("DELETE", f"/api/v1/namespaces/{SYSTEM}")
    wait_for(lambda: not exists(plane, f"/api/v1/namespaces/{SYSTEM}"))
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    pods = f"/api/v1/namespaces/{SYSTEM}/pods"
    wait_for(lambda: len(plane.api.request("GET", pods)["items"]) == 2)
