"""The operator as processes with the chart's rights against a real API server and real controllers; the kubelet is fake."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from testkit.control_plane import ApiError
from testkit.fake_kubelet import Fate
from testkit.manifests import a_model, a_parsed_model
from testkit.operator_cluster import MODELS, Cluster, Operator, wait_for
from torchmodel_operator.manifests import make_pod_template

CHILDREN = {
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments/{}",
    "Service": "/api/v1/namespaces/{}/services/{}",
    "ServiceAccount": "/api/v1/namespaces/{}/serviceaccounts/{}",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{}/poddisruptionbudgets/{}",
}


def failure(reason: str, message: str, next_step: str) -> str:
    return json.dumps({"reason": reason, "message": message, "nextStep": next_step})


def test_apply_to_ready_and_scaling(cluster: Cluster) -> None:
    cluster.start_operator()
    cluster.create("flowers")
    cluster.wait_for_reason("flowers", "Serving")
    status = cluster.model("flowers")["status"]
    assert status["url"] == "http://flowers.default.svc"
    assert (status["replicas"], status["readyReplicas"], status["updatedReplicas"]) == (1, 1, 1)
    assert cluster.condition("flowers", "Stalled")["status"] == "False"
    assert not cluster.exists(CHILDREN["PodDisruptionBudget"].format("default", "flowers"))

    kubectl = [Path(sys.executable).with_name("kubectl"), "--kubeconfig", cluster.plane.kubeconfig]
    subprocess.run([*kubectl, "scale", "torchmodel", "flowers", "--replicas=3"], check=True, capture_output=True)
    subprocess.run(
        [*kubectl, "wait", "tm/flowers", "--for=condition=Ready", "--timeout=30s"], check=True, capture_output=True
    )
    assert cluster.model("flowers")["status"]["readyReplicas"] == 3
    scale = cluster.api.request("GET", f"{MODELS.format('default')}/flowers/scale")
    assert scale["status"] == {"replicas": 3, "selector": "serving.torchmodel.dev/model=flowers"}
    assert cluster.exists(CHILDREN["PodDisruptionBudget"].format("default", "flowers"))

    cluster.patch("flowers", {"replicas": 0})
    cluster.wait_for_reason("flowers", "ScaledToZero")
    assert not cluster.exists(CHILDREN["PodDisruptionBudget"].format("default", "flowers"))
    assert "metadata" in cluster.model("flowers")
    assert "finalizers" not in cluster.model("flowers")["metadata"]
    assert not [key for key in cluster.model("flowers")["metadata"].get("annotations", {}) if "kopf" in key]


FAILURES: dict[str, tuple[dict[str, Any], Fate, str, list[str]]] = {
    "checksum": (
        {},
        Fate(init_exit_code=2, init_message=failure("ChecksumMismatch", "got aaaa, must be 5793", "correct it.")),
        "ChecksumMismatch",
        ["got aaaa, must be 5793", "Next step: correct it."],
    ),
    "missing-key": (
        {},
        Fate(init_exit_code=2, init_message=failure("CheckpointNotFound", "no key x in bucket y", "upload it.")),
        "CheckpointNotFound",
        ["no key x in bucket y"],
    ),
    "missing-class": (
        {"architecture": {"entrypoint": "torch.nn:Nope"}},
        Fate(crash_exit_code=2, crash_message=failure("ArchitectureInvalid", "torch.nn has no Nope", "correct it.")),
        "ArchitectureInvalid",
        ["torch.nn has no Nope"],
    ),
    "image": (
        {"image": {"name": "registry/nope:1"}},
        Fate(image_pull_error="registry/nope:1: not found"),
        "ImagePullFailed",
        ["registry/nope:1", "not found", "spec.image.name"],
    ),
    "gpu": (
        {"resources": {"gpu": {"count": 1}}},
        Fate(unschedulable="0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
        "Unschedulable",
        ["1 x nvidia.com/gpu", "spec.resources.gpu"],
    ),
    "memory": (
        {"resources": {"limits": {"memory": "1Gi"}}},
        Fate(crash_exit_code=137, crash_reason="OOMKilled"),
        "OutOfMemory",
        ["its limit of 1Gi"],
    ),
    "crash": (
        {},
        Fate(crash_exit_code=139, crash_message="Segmentation fault"),
        "RuntimeCrashed",
        ["Segmentation fault"],
    ),
    "code": (
        {"security": {"allowCodeExecution": True}},
        Fate(),
        "CodeExecutionNotAllowed",
        ["allowCodeExecution=true"],
    ),
    "relative-uri": ({"checkpoint": {"uri": "file:./x.pth"}}, Fate(), "InvalidSpec", ["spec.checkpoint.uri"]),
}


def test_every_failure_is_explained_within_60_s_and_disturbs_no_other_model(cluster: Cluster) -> None:
    cluster.start_operator()
    cluster.create("healthy")
    cluster.wait_for_reason("healthy", "Serving")
    pods = "/api/v1/namespaces/default/pods?labelSelector=serving.torchmodel.dev/model%3Dhealthy"
    (before,) = cluster.api.request("GET", pods)["items"]
    version = cluster.model("healthy")["metadata"]["resourceVersion"]
    cluster.fates |= {name: fate for name, (_, fate, _, _) in FAILURES.items()}
    began = time.monotonic()
    for name, (spec, _, _, _) in FAILURES.items():
        cluster.create(name, **spec)
    for name, (_, _, reason, words) in FAILURES.items():
        message = cluster.wait_for_reason(name, reason)["message"]
        assert cluster.condition(name, "Stalled")["status"] == "True"
        assert cluster.condition(name, "Reconciling")["status"] == "False"
        for word in [*words, "Next step: "]:
            assert word in message
    assert time.monotonic() - began < 60
    assert cluster.api.request("GET", pods)["items"][0]["metadata"] == before["metadata"]
    assert cluster.model("healthy")["metadata"]["resourceVersion"] == version
    events = cluster.api.request("GET", "/apis/events.k8s.io/v1/namespaces/default/events")["items"]
    told = {event["regarding"]["name"]: event for event in events if event["regarding"].get("kind") == "TorchModel"}
    assert {name: told[name]["reason"] for name in FAILURES} == {name: case[2] for name, case in FAILURES.items()}

    cluster.fates.clear()  # mended
    for name in ("checksum", "image", "gpu", "crash"):
        cluster.wait_for_reason(name, "Serving")


def test_a_secret_that_is_missing_is_named(cluster: Cluster) -> None:
    """The kubelet says so only in Events of the pod, which the test posts in its stead."""
    cluster.start_operator()
    stuck = {
        "state": {"waiting": {"reason": "PodInitializing"}},
        "ready": False,
        "restartCount": 0,
        "image": "i",
        "imageID": "",
    }
    with cluster.without_kubelet():
        cluster.create("nosecret", checkpoint={"credentials": {"secretName": "s3-read"}})
        pods = "/api/v1/namespaces/default/pods?labelSelector=serving.torchmodel.dev/model%3Dnosecret"
        wait_for(lambda: cluster.api.request("GET", pods)["items"], "the pod")
        pod = cluster.api.request("GET", pods)["items"][0]["metadata"]
        status = {
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "initContainerStatuses": [{"name": "fetcher", **stuck}],
            "containerStatuses": [{"name": "server", **stuck}],
        }
        cluster.api.request("PATCH", f"/api/v1/namespaces/default/pods/{pod['name']}/status", {"status": status})
        event = {
            "metadata": {"name": "nosecret.1", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "namespace": "default", "name": pod["name"], "uid": pod["uid"]},
            "reason": "FailedMount",
            "type": "Warning",
            "message": 'MountVolume.SetUp failed for volume "credentials" : secret "s3-read" not found',
            "lastTimestamp": pod["creationTimestamp"],
        }
        cluster.api.request("POST", "/api/v1/namespaces/default/events", event)
        message = cluster.wait_for_reason("nosecret", "ContainerConfigInvalid")["message"]
    assert "create the Secret s3-read" in message


def test_quota_and_name_taken_and_pod_security(cluster: Cluster) -> None:
    cluster.start_operator()
    tight = cluster.make_namespace("tight")
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    cluster.api.request("POST", f"/api/v1/namespaces/{tight}/resourcequotas", quota)
    counted = {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}  # as the quota controller would
    cluster.api.request("PATCH", f"/api/v1/namespaces/{tight}/resourcequotas/none/status", counted)
    cluster.create("crowded", tight)
    theirs = {"metadata": {"name": "taken"}, "spec": {"ports": [{"port": 80}]}}
    before = cluster.api.request("POST", "/api/v1/namespaces/default/services", theirs)
    cluster.create("taken")
    safe = cluster.make_namespace("safe", **{"pod-security.kubernetes.io/enforce": "restricted"})
    cluster.create("careful", safe)

    assert "ResourceQuota" in cluster.wait_for_reason("crowded", "ChildRefused", tight)["message"]
    message = cluster.wait_for_reason("taken", "NameTaken")["message"]
    assert "Service taken exists in namespace default" in message
    assert cluster.api.request("GET", "/api/v1/namespaces/default/services/taken")["spec"] == before["spec"]
    cluster.wait_for_reason("careful", "Serving", safe)

    cluster.api.request("DELETE", "/api/v1/namespaces/default/services/taken")
    cluster.wait_for_reason("taken", "Serving")


def test_pods_of_every_shape_are_admitted_where_pod_security_is_restricted(cluster: Cluster) -> None:
    namespace = cluster.make_namespace("strict", **{"pod-security.kubernetes.io/enforce": "restricted"})
    for number, spec in enumerate(
        (
            {"checkpoint": {"credentials": {"secretName": "s"}}, "resources": {"gpu": {"count": 1}}},
            {
                "architecture": {"source": {"configMap": {"name": "code"}}, "entrypoint": "model:Net"},
                "security": {"allowCodeExecution": True},
            },
        )
    ):
        template = make_pod_template(a_parsed_model(**spec), "image")
        template["spec"].pop("serviceAccountName")
        pod = {**template, "metadata": {"name": f"pod-{number}", "labels": template["metadata"]["labels"]}}
        cluster.api.request("POST", f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")


def test_children_edited_or_deleted_by_hand_come_back(cluster: Cluster) -> None:
    cluster.start_operator()
    cluster.create("mended")
    cluster.wait_for_reason("mended", "Serving")
    deployment, service = (CHILDREN[kind].format("default", "mended") for kind in ("Deployment", "Service"))
    cluster.api.request("PATCH", deployment, {"spec": {"replicas": 2, "revisionHistoryLimit": 7}})
    wait_for(lambda: cluster.api.request("GET", deployment)["spec"]["replicas"] == 1, "the replicas to be put right")
    uid = cluster.api.request("GET", service)["metadata"]["uid"]
    cluster.api.request("DELETE", service)
    wait_for(
        lambda: cluster.exists(service) and cluster.api.request("GET", service)["metadata"]["uid"] != uid, "the Service"
    )


def test_a_deleted_model_leaves_nothing_and_a_successor_starts_anew(cluster: Cluster) -> None:
    cluster.start_operator()
    uid = cluster.create("gone", replicas=2)["metadata"]["uid"]
    cluster.wait_for_reason("gone", "Serving")
    cluster.delete("gone")
    successor = cluster.create("gone")["metadata"]["uid"]
    assert successor != uid
    cluster.wait_for_reason("gone", "Serving")
    owner = cluster.api.request("GET", CHILDREN["Deployment"].format("default", "gone"))["metadata"]["ownerReferences"][
        0
    ]
    assert owner["uid"] == successor
    cluster.delete("gone")
    for path in CHILDREN.values():
        wait_for(lambda path=path: not cluster.exists(path.format("default", "gone")), path)


@pytest.fixture
def fifty_models(cluster: Cluster) -> list[str]:
    """50 models in every state, and two operators that have brought them there."""
    states = [("good", {}, Fate(0.2), "Serving"), *((name, *case[:3]) for name, case in FAILURES.items())]
    names = {}
    for number in range(50):
        prefix, spec, fate, reason = states[number % len(states)]
        name = f"{prefix}-{number}"
        cluster.fates[name] = fate
        names[name] = reason
        cluster.create(name, **spec)
    cluster.start_operator()
    for name, reason in names.items():
        cluster.wait_for_reason(name, reason)
    return list(names)


def versions(cluster: Cluster) -> dict[str, str]:
    """resourceVersion of every model and child."""
    lists = ["/apis/serving.torchmodel.dev/v1alpha1/torchmodels"]
    lists += [path.partition("/namespaces/")[0] + "/" + path.split("/")[-2] for path in CHILDREN.values()]
    return {
        item["metadata"]["uid"]: item["metadata"]["resourceVersion"]
        for path in lists
        for item in cluster.api.request("GET", path)["items"]
    }


@pytest.mark.usefixtures("fifty_models")
def test_a_restart_with_50_models_writes_nothing_and_a_killed_leader_is_replaced(cluster: Cluster) -> None:
    time.sleep(2)  # let the last status settle
    cluster.stop_operators()
    before, writes = versions(cluster), cluster.operator_writes()
    leader = cluster.start_operator()
    wait_for(leader.is_leading, "the restarted operator to lead")
    standby = cluster.start_operator()
    wait_for(lambda: leader.metric('reconciles_total{outcome="ok"}') >= 50, "all models to be looked at")
    time.sleep(12)  # beyond the settling time of a relist and its sweep
    assert cluster.operator_writes() == writes
    assert versions(cluster) == before
    assert not standby.is_leading()

    leader.kill(signal.SIGKILL)
    killed_at = time.monotonic()
    wait_for(standby.is_leading, "the standby to lead", timeout_s=20)
    cluster.create("after")
    cluster.wait_for_reason("after", "Serving")
    assert time.monotonic() - killed_at < 30
    for_others = [write for write in cluster.operator_writes()[len(writes) :] if "after" not in write]
    assert for_others in ([], ["create /apis/events.k8s.io/v1/namespaces/default/events"])  # that it serves


def test_sigterm_hands_the_lease_over_at_once(cluster: Cluster) -> None:
    leader = cluster.start_operator()
    wait_for(leader.is_leading, "the first to lead")
    standby = cluster.start_operator()
    began = time.monotonic()
    assert leader.kill(signal.SIGTERM) == 0
    wait_for(standby.is_leading, "the standby to lead")
    assert time.monotonic() - began < 10


def test_a_model_deleted_while_the_watch_was_broken_is_no_ghost(cluster: Cluster) -> None:
    """The watches break, the model goes, the API server has forgotten the history: kopf lists anew and says nothing of it."""
    leader = cluster.start_operator()
    wait_for(leader.is_leading, "the first to lead")
    standby = cluster.start_operator()  # it has no lease to lose while it sleeps
    cluster.create("ghost")
    cluster.wait_for_reason("ghost", "Serving")
    wait_for(lambda: standby.metric("objects") == leader.metric("objects"), "the standby to have seen it")
    standby.process.send_signal(signal.SIGSTOP)
    cluster.plane.restart_apiserver()
    cluster.delete("ghost")
    for path in CHILDREN.values():
        wait_for(lambda path=path: not cluster.exists(path.format("default", "ghost")), path)
    standby.process.send_signal(signal.SIGCONT)
    wait_for(lambda: "forgot what is gone" in standby.log.read_text(), "the sweep")
    leader.kill(signal.SIGTERM)
    wait_for(standby.is_leading, "the standby to lead")
    cluster.create("alive")
    cluster.wait_for_reason("alive", "Serving")
    assert not cluster.exists(CHILDREN["Deployment"].format("default", "ghost"))


def test_without_the_definition_the_operator_says_so(cluster: Cluster, tmp_path: Path) -> None:
    file = cluster.folder / "nobody.kubeconfig"
    config = cluster.plane.kubeconfig_for_service_account("default", "default")
    file.write_text(config.read_text())
    operator = Operator(file, tmp_path / "log", "nobody", {})
    assert operator.process.wait(60) == 1
    assert "torchmodels cannot be listed" in (tmp_path / "log").read_text()
    assert "chart's role" in (tmp_path / "log").read_text()


def test_manifest_that_is_refused_says_what_is_allowed(cluster: Cluster) -> None:
    body = a_model("bad")
    body["spec"]["serving"] = {"batching": {"maxSize": 0}}
    with pytest.raises(ApiError, match=r"spec\.serving\.batching\.maxSize"):
        cluster.api.request("POST", MODELS.format("default"), body)
