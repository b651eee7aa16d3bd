"""The chart on a real cluster: its own test passes, both replicas are ready, the resource explains itself."""

from cluster.cluster import Cluster

SYSTEM = "torchmodel-system"


def test_helm_test_passes(cluster: Cluster) -> None:
    told = cluster.helm("test", "torchmodel-operator", "--namespace", SYSTEM, timeout_s=180)
    assert "Succeeded" in told


def test_both_replicas_of_the_operator_are_ready_and_one_leads(cluster: Cluster) -> None:
    deployment = cluster.get("deployment", "torchmodel-operator", "-n", SYSTEM)
    assert deployment["status"]["readyReplicas"] == 2
    pods = cluster.get("pods", "-n", SYSTEM, "-l", "app.kubernetes.io/name=torchmodel-operator")["items"]
    holder = cluster.get("lease", "torchmodel-operator", "-n", SYSTEM)["spec"]["holderIdentity"]
    assert any(holder.startswith(pod["metadata"]["name"]) for pod in pods)


def test_kubectl_explain_reads_well(cluster: Cluster) -> None:
    told = " ".join(cluster.kubectl("explain", "torchmodel.spec.checkpoint").split())
    assert "Digest the bytes must have, or nothing is loaded" in told
    assert "enum: auto, safetensors, state-dict" in told
