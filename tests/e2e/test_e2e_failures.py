"""Bad manifests end within 60 s in a status or admission message that names cause and next step, and disturb nobody."""

import re
import time

import pytest
from cluster.cluster import Cluster, ClusterError
from testkit.scenario import Json, apply_example, condition, probing, wait_for, wait_ready

LIMIT_S = 60


def set_at(path: str, value: object) -> "object":
    def change(model: Json) -> None:
        *steps, last = path.split(".")
        node = model["spec"]
        for step in steps:
            node = node.setdefault(step, {})
        node[last] = value

    return change


def delete(cluster: Cluster, name: str) -> None:
    cluster.kubectl("delete", "torchmodel", name, "-n", "models", "--wait=false")


@pytest.mark.parametrize(
    ("name", "change", "reason", "cause", "next_step"),
    [
        pytest.param(
            "wrong-digest", set_at("checkpoint.sha256", "0" * 64), "ChecksumMismatch", "0{64}", "sha256", id="wrong sha256"
        ),
        pytest.param(
            "no-file", set_at("checkpoint.uri", "s3://models/linear/absent.pth"),
            "CheckpointNotFound", r"linear/absent\.pth", "URI", id="absent object",
        ),
        pytest.param(
            "missing-key", set_at("architecture", {"entrypoint": "torch.nn:Bilinear", "kwargs": {
                "in1_features": 10, "in2_features": 10, "out_features": 1}}),
            "StateDictMismatch", "weight", "architecture|kwargs|class", id="shapes differ",
        ),
        pytest.param(
            "nested-key", set_at("checkpoint.key", "model_state_dict"),
            "CheckpointInvalid|StateDictMismatch", "model_state_dict", "key", id="missing key",
        ),
        pytest.param(
            "no-class", set_at("architecture.entrypoint", "torch.nn:Linaer"), "ArchitectureInvalid", "Linaer", "Linear",
            id="class that does not exist",
        ),
        pytest.param(
            "no-image", set_at("image", {"name": "127.0.0.1:5000/nobody/nothing:1"}),
            "ImagePullFailed", "nobody/nothing:1", "image", id="image that cannot be pulled",
        ),
        pytest.param(
            "no-gpu", set_at("resources", {"gpu": {"count": 1}}), "Unschedulable", r"nvidia\.com/gpu", "node",
            id="a GPU no node has",
        ),
        pytest.param(
            "no-secret", set_at("checkpoint.credentials", {"secretName": "absent"}),
            "ContainerConfigInvalid", "absent", "(?i)secret", id="absent Secret",
        ),
    ],
)  # fmt: skip
def test_status_names_cause_and_next_step(
    cluster: Cluster, linear: str, name: str, change: object, reason: str, cause: str, next_step: str
) -> None:
    started = time.monotonic()
    with probing(cluster, linear, rate=20) as neighbour:
        apply_example(cluster, "linear", name, change)

        def stalled() -> Json | None:
            found = condition(cluster, name, "Stalled")
            return found if found.get("status") == "True" else None

        found = wait_for(stalled, LIMIT_S, f"{name} is Stalled")
        took_s = time.monotonic() - started
    described = cluster.kubectl("describe", "tm", name, "-n", "models")
    delete(cluster, name)
    print(f"{took_s:.0f} s: {found['reason']}: {found['message']}")
    assert re.fullmatch(reason, found["reason"])
    assert re.search(cause, found["message"])
    assert re.search(next_step, found["message"])
    assert found["message"][:60] in described.replace("\n", " ") or found["reason"] in described
    assert neighbour["failed"] == 0, neighbour["failures"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(set_at("checkpoint.shasum", "x"), 'unknown field "spec.checkpoint.shasum"', id="unknown field"),
        pytest.param(set_at("serving.batching", {"maxSize": 0}), "spec.serving.batching.maxSize", id="out of range"),
        pytest.param(set_at("checkpoint.uri", "ftp://a/b"), "must be s3://bucket/key", id="unknown scheme"),
    ],
)
def test_admission_refuses_and_says_why(cluster: Cluster, linear: str, change: object, message: str) -> None:
    with pytest.raises(ClusterError) as raised:
        apply_example(cluster, "linear", "refused", change)
    assert message in str(raised.value)


def test_a_gpu_request_is_scheduled_where_a_node_advertises_one(cluster: Cluster, linear: str) -> None:
    name = "with-gpu"
    apply_example(cluster, "linear", name, set_at("resources", {"gpu": {"count": 1}}))
    wait_for(lambda: condition(cluster, name, "Ready").get("reason") == "Unschedulable", LIMIT_S, "no node has a GPU")
    cluster.advertise_gpus(2)
    try:
        wait_ready(cluster, name)  # no device is behind the claim, so device: auto serves on the CPU
        selector = f"serving.torchmodel.dev/model={name}"
        (pod,) = cluster.get("pods", "-n", "models", "-l", selector)["items"]
        assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert any(item["key"] == "nvidia.com/gpu" for item in pod["spec"]["tolerations"])
    finally:
        delete(cluster, name)
        cluster.advertise_gpus(0)
