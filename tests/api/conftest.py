"""One control plane for all api tests of the operator, with the rights that the chart gives it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from testkit.control_plane import ControlPlane
from testkit.helm import ROOT, find_helm, render
from testkit.operator_cluster import ACCOUNT, SYSTEM, Cluster

CRD_FILE = ROOT / "crds" / "torchmodels.yaml"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
RBAC_PATHS = {
    "ClusterRole": f"{RBAC}/clusterroles",
    "ClusterRoleBinding": f"{RBAC}/clusterrolebindings",
    "Role": f"{RBAC}/namespaces/{SYSTEM}/roles",
    "RoleBinding": f"{RBAC}/namespaces/{SYSTEM}/rolebindings",
    "ServiceAccount": f"/api/v1/namespaces/{SYSTEM}/serviceaccounts",
}
AUDIT_POLICY = """
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    resources: [{group: coordination.k8s.io}]
  - level: Metadata
    users: ["system:serviceaccount:torchmodel-system:models-torchmodel-operator"]
    verbs: [create, update, patch, delete]
  - level: None
"""


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The control plane with our CRD, a fake node, an audit log, and the operator's account with the chart's rights."""
    reason = ControlPlane.unavailable_reason()
    if reason is None and find_helm() is None:
        reason = "no helm to render the operator's rights"
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("operator")
    (folder / "policy.yaml").write_text(AUDIT_POLICY)
    (folder / "audit.log").touch()
    audit = (f"--audit-policy-file={folder}/policy.yaml", f"--audit-log-path={folder}/audit.log")
    with ControlPlane(crds=[CRD_FILE], apiserver_flags=audit) as plane:
        plane.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": SYSTEM}})
        for manifest in render(namespace=SYSTEM):
            if manifest["kind"] in RBAC_PATHS and "helm.sh/hook" not in manifest["metadata"].get("annotations", {}):
                plane.api.request("POST", RBAC_PATHS[manifest["kind"]], manifest)
        cluster = Cluster(plane, plane.kubeconfig_for_service_account(SYSTEM, ACCOUNT), folder)
        cluster.start_kubelet()
        yield cluster
        cluster.stop_kubelet()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster; operators that the test started are ended, and all its models deleted."""
    yield shared_cluster
    shared_cluster.stop_operators()
    shared_cluster.fates.clear()
    models = shared_cluster.api.request("GET", "/apis/serving.torchmodel.dev/v1alpha1/torchmodels")["items"]
    for model in models:
        shared_cluster.delete(model["metadata"]["name"], model["metadata"]["namespace"])
