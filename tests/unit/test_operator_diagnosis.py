"""Why a replica does not serve: for every kind of failure the cause and the next step are named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from testkit.manifests import (
    CREATED_S,
    DONE,
    RUNNING,
    a_parsed_model,
    a_pod,
    backing_off,
    ended,
    waiting,
)
from torchmodel_operator.diagnosis import PodEvent, Problem, diagnose, diagnose_refusal, needs_events
from torchmodel_operator.observed import observe_pod

FAILURE = json.dumps(
    {
        "reason": "ChecksumMismatch",
        "message": "s3://models/flowers.pth: got sha256 aaaa, must be 5793",
        "nextStep": "correct spec.checkpoint.sha256.",
    }
)
INITIALIZING = waiting("PodInitializing")
NO_GPU = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available."


def problem_of(
    pod: dict[str, Any], age_s: float = 30, events: tuple[PodEvent, ...] = (), **spec: Any
) -> Problem | None:
    facts = observe_pod(pod)
    return diagnose([facts], a_parsed_model(**spec).spec, {facts.identity.uid: list(events)}, CREATED_S + age_s).problem


@pytest.mark.parametrize(
    ("pod", "spec", "reason", "words"),
    [
        pytest.param(
            a_pod(unschedulable=NO_GPU),
            {"resources": {"gpu": {"count": 2}}},
            "Unschedulable",
            ["2 x nvidia.com/gpu", NO_GPU, "spec.resources.gpu"],
            id="a GPU that no node has",
        ),
        pytest.param(
            a_pod(unschedulable="0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."),
            {"scheduling": {"nodeSelector": {"zone": "mars"}}},
            "Unschedulable",
            ["zone=mars", "spec.scheduling.nodeSelector"],
            id="a label that no node has",
        ),
        pytest.param(
            a_pod(unschedulable="0/1 nodes are available: 1 node(s) had untolerated taint(s)."),
            {},
            "Unschedulable",
            ["spec.scheduling.tolerations"],
            id="a taint",
        ),
        pytest.param(
            a_pod(unschedulable="0/1 nodes are available: 1 Insufficient memory."),
            {"resources": {"requests": {"memory": "900Gi"}}},
            "Unschedulable",
            ["memory 900Gi", "spec.resources.requests"],
            id="too much memory",
        ),
        pytest.param(
            a_pod(fetcher=waiting("ErrImagePull", "registry/runtime:1: not found"), server=INITIALIZING),
            {},
            "ImagePullFailed",
            ["registry/runtime:1", "not found", "spec.image.name", "spec.image.pullSecrets"],
            id="an image that is not there",
        ),
        pytest.param(
            a_pod(fetcher=waiting("InvalidImageName", 'couldn\'t parse image name "A:B:C"'), server=INITIALIZING),
            {},
            "ImagePullFailed",
            ["A:B:C", "registry/repository:tag"],
            id="an image name that is none",
        ),
        pytest.param(
            a_pod(fetcher=waiting("CreateContainerConfigError", 'secret "s3-read" not found'), server=INITIALIZING),
            {},
            "ContainerConfigInvalid",
            ["create the Secret s3-read", "spec.checkpoint.credentials.secretName"],
            id="a Secret that is not there",
        ),
        pytest.param(
            a_pod(fetcher=backing_off(ended(2, FAILURE)), server=INITIALIZING),
            {},
            "ChecksumMismatch",
            ["got sha256 aaaa, must be 5793", "correct spec.checkpoint.sha256"],
            id="a wrong digest, while the kubelet backs off",
        ),
        pytest.param(
            a_pod(fetcher=ended(2, FAILURE), server=INITIALIZING),
            {},
            "ChecksumMismatch",
            ["got sha256 aaaa"],
            id="a wrong digest, right after",
        ),
        pytest.param(
            a_pod(fetcher={"state": RUNNING, "lastState": ended(2, FAILURE)}, server=INITIALIZING),
            {},
            "ChecksumMismatch",
            ["got sha256 aaaa"],
            id="a wrong digest, while it is tried again",
        ),
        pytest.param(
            a_pod(
                phase="Running",
                fetcher=DONE,
                server=backing_off(ended(2, FAILURE.replace("ChecksumMismatch", "ArchitectureInvalid"))),
            ),
            {},
            "ArchitectureInvalid",
            ["Next step: correct"],
            id="a class that does not exist",
        ),
        pytest.param(
            a_pod(phase="Running", fetcher=DONE, server=backing_off(ended(137, "", "OOMKilled"))),
            {"resources": {"limits": {"memory": "1Gi"}}},
            "OutOfMemory",
            ["its limit of 1Gi", "spec.resources.limits.memory"],
            id="out of memory",
        ),
        pytest.param(
            a_pod(
                phase="Running", fetcher=DONE, server=backing_off(ended(139, "Fatal Python error: Segmentation fault"))
            ),
            {},
            "RuntimeCrashed",
            [
                "exit code 139, signal 11",
                "Segmentation fault",
                "kubectl logs -l serving.torchmodel.dev/model=flowers -c server",
            ],
            id="a crash, with the last lines of the log",
        ),
        pytest.param(
            a_pod(phase="Running", fetcher=DONE, server=backing_off(ended(0, "", "Completed", ran_s=31))),
            {"serving": {"startupTimeoutSeconds": 30}},
            "StartTimedOut",
            ["not ready 30 s after its start", "spec.serving.startupTimeoutSeconds"],
            id="a start that took too long",
        ),
        pytest.param(
            a_pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."),
            {},
            "RuntimeCrashed",
            ["Evicted", "ephemeral-storage"],
            id="an eviction",
        ),
    ],
)
def test_cause_and_next_step(pod: dict[str, Any], spec: dict[str, Any], reason: str, words: list[str]) -> None:
    problem = problem_of(pod, **spec)
    assert problem is not None
    assert problem.reason == reason
    assert "Next step: " in problem.text
    for word in words:
        assert word in problem.text


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(a_pod(fetcher=RUNNING, server=INITIALIZING), id="fetching"),
        pytest.param(a_pod(phase="Running", fetcher=DONE, server=RUNNING), id="loading"),
        pytest.param(a_pod(phase="Running", is_ready=True, fetcher=DONE, server=RUNNING), id="serving"),
        pytest.param(
            a_pod(phase="Running", fetcher={"state": DONE, "lastState": ended(2, FAILURE)}, server=RUNNING),
            id="fetched at last, after failures",
        ),
        pytest.param(
            a_pod(phase="Running", is_ready=True, fetcher=DONE, server={"state": RUNNING, "lastState": ended(1)}),
            id="serving again after a crash",
        ),
        pytest.param(a_pod(is_scheduled=False), id="not seen by the scheduler yet"),
    ],
)
def test_no_problem(pod: dict[str, Any]) -> None:
    assert problem_of(pod) is None


def test_the_scheduler_gets_a_moment() -> None:
    facts = observe_pod(a_pod(unschedulable=NO_GPU))
    fresh = diagnose([facts], a_parsed_model().spec, {}, CREATED_S + 4)
    assert fresh.problem is None
    assert fresh.recheck_s == pytest.approx(6.5)
    assert diagnose([facts], a_parsed_model().spec, {}, CREATED_S + 4 + fresh.recheck_s).problem is not None


def test_a_failed_mount_is_told_by_events() -> None:
    pod = a_pod(fetcher=INITIALIZING, server=INITIALIZING)
    facts = observe_pod(pod)
    assert not needs_events(facts, CREATED_S + 2)
    assert needs_events(facts, CREATED_S + 9)
    event = PodEvent("FailedMount", 'MountVolume.SetUp failed for volume "credentials" : secret "s3-read" not found')
    problem = problem_of(pod, events=(event,))
    assert problem is not None
    assert problem.reason == "ContainerConfigInvalid"
    assert "create the Secret s3-read" in problem.next_step
    assert diagnose([facts], a_parsed_model().spec, {}, CREATED_S + 30).recheck_s is not None


def test_a_key_missing_in_the_config_map_names_the_field() -> None:
    message = 'MountVolume.SetUp failed for volume "code" : configmap references non-existent config key: model.py'
    problem = problem_of(a_pod(fetcher=INITIALIZING), events=(PodEvent("FailedMount", message),))
    assert problem is not None
    assert "spec.architecture.source.configMap.key" in problem.next_step


def test_back_off_and_error_of_an_image_read_the_same_so_that_status_stays() -> None:
    cause = 'failed to pull and unpack image "registry/runtime:1": not found'
    first = problem_of(a_pod(fetcher=waiting("ErrImagePull", cause)))
    back_off = f'Back-off pulling image "registry/runtime:1": ErrImagePull: {cause}'
    assert first == problem_of(a_pod(fetcher=waiting("ImagePullBackOff", back_off)))


def test_the_oldest_failing_replica_speaks() -> None:
    old = a_pod("flowers-b", created="2026-01-01T00:00:00Z", unschedulable="0/1 nodes: Insufficient cpu")
    new = a_pod("flowers-a", created="2026-01-01T00:00:05Z", fetcher=ended(2, FAILURE))
    pods = [observe_pod(new), observe_pod(old)]
    found = diagnose(pods, a_parsed_model().spec, {}, CREATED_S + 60).problem
    assert found is not None
    assert found.reason == "Unschedulable"


def test_a_long_log_keeps_its_end() -> None:
    problem = problem_of(a_pod(phase="Running", fetcher=DONE, server=backing_off(ended(1, "x" * 5000 + "the end"))))
    assert problem is not None
    assert len(problem.message) < 1200
    assert "the end" in problem.message


@pytest.mark.parametrize(
    ("message", "word"),
    [
        ('pods "a" is forbidden: exceeded quota: q, requested: cpu=2', "ResourceQuota"),
        ('pods "a" is forbidden: violates PodSecurity "restricted:latest"', "Pod Security"),
        ("admission webhook denied the request", "admission policy"),
    ],
)
def test_refusals(message: str, word: str) -> None:
    problem = diagnose_refusal(message)
    assert message in problem.text
    assert word in problem.next_step
