"""What people do to a served model: update it, scale it, restart the operator, delete it. None of it fails a request."""

import json

from cluster.cluster import Cluster
from testkit.scenario import NAMESPACE, apply_example, probing, status, wait_for, wait_ready


def test_an_update_rolls_out_without_a_failed_request(cluster: Cluster, linear: str) -> None:
    before = status(cluster, linear)["observedGeneration"]
    with probing(cluster, linear) as seen:
        patch = {"spec": {"serving": {"batching": {"maxSize": 16}}}}
        cluster.kubectl("patch", "tm", linear, "-n", NAMESPACE, "--type=merge", "-p", json.dumps(patch))
        wait_ready(cluster, linear)
        gone = lambda: len(pods(cluster, linear)) == 1  # noqa: E731
        wait_for(gone, 90, "the old replica has ended")
    assert status(cluster, linear)["observedGeneration"] > before
    assert seen["requests"] > 100
    assert seen["failed"] == 0, seen["failures"]
    print(seen)


def pods(cluster: Cluster, name: str) -> list[dict]:
    return cluster.get("pods", "-n", NAMESPACE, "-l", f"serving.torchmodel.dev/model={name}")["items"]


def test_kubectl_scale_up_and_down_without_a_failed_request(cluster: Cluster, linear: str) -> None:
    with probing(cluster, linear) as seen:
        cluster.kubectl("scale", "torchmodel", linear, "-n", NAMESPACE, "--replicas=2")
        wait_for(lambda: status(cluster, linear).get("readyReplicas") == 2, 120, "two replicas are ready")
        budget = cluster.get("poddisruptionbudget", linear, "-n", NAMESPACE)
        assert budget["spec"]["maxUnavailable"] == 1
        cluster.kubectl("scale", "torchmodel", linear, "-n", NAMESPACE, "--replicas=1")
        wait_for(lambda: len(pods(cluster, linear)) == 1, 120, "one replica is left")
    assert seen["failed"] == 0, seen["failures"]
    wait_for(lambda: not budgets(cluster, linear), 30, "the disruption budget is gone with the second replica")


def budgets(cluster: Cluster, name: str) -> list[dict]:
    return cluster.get("poddisruptionbudgets", "-n", NAMESPACE, "-l", f"serving.torchmodel.dev/model={name}")["items"]


def resource_versions(cluster: Cluster) -> dict[str, str]:
    kinds = "torchmodels,deployments,services,serviceaccounts,poddisruptionbudgets"
    items = cluster.get(kinds, "-n", NAMESPACE, "-l", "!nothing")["items"]
    return {f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"] for item in items}


def test_a_restart_of_the_operator_writes_nothing(cluster: Cluster, linear: str) -> None:
    wait_ready(cluster, linear)
    before = resource_versions(cluster)
    cluster.kubectl("rollout", "restart", "deployment", "torchmodel-operator", "-n", "torchmodel-system")
    cluster.kubectl(
        "rollout", "status", "deployment", "torchmodel-operator", "-n", "torchmodel-system", "--timeout=120s"
    )
    patch = {
        "metadata": {"annotations": {"example.com/touched": "yes"}}
    }  # seen by the new leader: so it works, and is idle
    cluster.kubectl("patch", "tm", linear, "-n", NAMESPACE, "--type=merge", "-p", json.dumps(patch))
    after = resource_versions(cluster)
    changed = {key for key in before if before[key] != after.get(key)}
    assert changed <= {f"TorchModel/{linear}"}
    generation = cluster.get("tm", linear, "-n", NAMESPACE)["metadata"]["generation"]
    assert status(cluster, linear)["observedGeneration"] == generation


def test_the_serving_container_has_no_credentials_and_no_token(cluster: Cluster, linear: str) -> None:
    (pod,) = pods(cluster, linear)
    server = next(c for c in pod["spec"]["containers"] if c["name"] == "server")
    assert not any("credentials" in mount["name"] or "token" in mount["mountPath"] for mount in server["volumeMounts"])
    assert "AWS" not in json.dumps(server)
    assert pod["spec"]["automountServiceAccountToken"] is False


def test_delete_leaves_nothing_behind(cluster: Cluster, s3: object) -> None:
    apply_example(cluster, "linear", "short-lived")
    wait_ready(cluster, "short-lived")
    cluster.kubectl("delete", "torchmodel", "short-lived", "-n", NAMESPACE)
    kinds = "torchmodels,deployments,replicasets,pods,services,serviceaccounts,poddisruptionbudgets,endpointslices"

    def left() -> bool:
        items = cluster.get(kinds, "-n", NAMESPACE)["items"]
        return not [item for item in items if item["metadata"]["name"].startswith("short-lived")]

    wait_for(left, 90, "nothing of the deleted model is left")
