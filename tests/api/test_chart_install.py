"""The chart on a real API server: installed, judged by its access control and Pod Security, upgraded and removed."""

from __future__ import annotations

import subprocess
import sys
import time
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
MODEL = "/apis/serving.torchmodel.dev/v1alpha1/namespaces/blue/torchmodels/linear"
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


def first_model(plane: ControlPlane) -> dict[str, Any]:
    """The TorchModel of the notes that Helm keeps of the release, in namespace blue."""
    notes = helm("get", "notes", RELEASE, "--namespace", SYSTEM, kubeconfig=plane.kubeconfig)
    model: dict[str, Any] = yaml.safe_load(notes.partition("<<'EOF'\n")[2].partition("\nEOF\n")[0])
    model["metadata"]["namespace"] = "blue"
    return model


def create_first_model(plane: ControlPlane) -> dict[str, Any]:
    wait_for(lambda: exists(plane, MODEL.rpartition("/")[0]))
    created: dict[str, Any] = plane.api.request("POST", MODEL.rpartition("/")[0], first_model(plane))
    return created


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
    wait_for(lambda: exists(plane, MODEL.rpartition("/")[0]))
    operator.request("GET", MODEL.rpartition("/")[0])
    with pytest.raises(ApiError, match="forbidden"):
        operator.request("GET", "/apis/serving.torchmodel.dev/v1alpha1/torchmodels")


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
    model = create_first_model(plane)
    for change in ({"logLevel": "debug"}, {"crds": {"install": False}}):
        install(**change)
        assert plane.api.request("GET", MODEL)["metadata"]["uid"] == model["metadata"]["uid"]
    helm("uninstall", RELEASE, "--namespace", SYSTEM, kubeconfig=plane.kubeconfig)
    assert not exists(plane, f"/apis/apps/v1/namespaces/{SYSTEM}/deployments/{ACCOUNT}")
    assert plane.api.request("GET", MODEL)["metadata"]["uid"] == model["metadata"]["uid"]
    install()
    assert plane.api.request("GET", MODEL)["metadata"]["uid"] == model["metadata"]["uid"]


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
