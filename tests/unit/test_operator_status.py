"""Facts → status: the kstatus contract, what stays, and that the same facts never write twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.manifests import DIGEST, a_pod
from torchmodel_operator.diagnosis import Problem
from torchmodel_operator.observed import DeploymentFacts, observe_pod
from torchmodel_operator.spec import TorchModelStatus
from torchmodel_operator.status import (
    Facts,
    derive_status,
    describe_batching,
    describe_parallelism,
    is_same,
    parse_status,
    render_status,
)
from torchmodel_runtime.config import BatchingReport, BatchProof, ColdStart, ModelReport, ParallelismReport

NOW, LATER = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"
REPORT = ModelReport(
    sha256=DIGEST,
    uri="s3://models/flowers.pth",
    size_bytes=44,
    format="safetensors",
    load_safety="weights-only",
    device="cpu",
    cold_start=ColdStart(fetch_seconds=1.0, import_seconds=2.0, load_seconds=0.1, warm_up_seconds=0.2),
    batching=BatchingReport(enabled=True, max_size=32, reason=""),
    parallelism=ParallelismReport(processes=1, workers=2, threads=1, reason="measured"),
)
PROBLEM = Problem("ChecksumMismatch", "got a, must be b", "correct spec.checkpoint.sha256.")


def a_deployment(
    wished: int = 1, ready: int | None = None, updated: int | None = None, old: int = 0
) -> DeploymentFacts:
    updated = wished if updated is None else updated
    ready = wished if ready is None else ready
    return DeploymentFacts(2, 2, updated + old, updated, ready, ready, "", False)


def facts(**changes: Any) -> Facts:
    given: dict[str, Any] = {
        "name": "flowers",
        "namespace": "default",
        "generation": 3,
        "wished_replicas": 1,
        "is_applied": True,
        "deployment": a_deployment(),
        "pods": (observe_pod(a_pod(is_ready=True, phase="Running")),),
        "problem": None,
        "report": REPORT,
        "previous": TorchModelStatus(),
    }
    return Facts(**given | changes)


def conditions(status: TorchModelStatus) -> dict[str, tuple[str, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in status.conditions}


@pytest.mark.parametrize(
    ("given", "ready", "reconciling", "stalled"),
    [
        pytest.param(facts(), ("True", "Serving"), "False", "False", id="serving"),
        pytest.param(
            facts(deployment=a_deployment(ready=0), pods=()),
            ("False", "RolloutInProgress"),
            "True",
            "False",
            id="starting",
        ),
        pytest.param(facts(deployment=None), ("False", "RolloutInProgress"), "True", "False", id="nothing there yet"),
        pytest.param(
            facts(deployment=a_deployment(2, ready=2, updated=1, old=1), wished_replicas=2),
            ("False", "RolloutInProgress"),
            "True",
            "False",
            id="an old revision still there",
        ),
        pytest.param(
            facts(deployment=a_deployment(ready=0), pods=(observe_pod(a_pod(is_scheduled=False)),)),
            ("False", "Scheduling"),
            "True",
            "False",
            id="waiting for a node",
        ),
        pytest.param(facts(problem=PROBLEM), ("False", "ChecksumMismatch"), "False", "True", id="stalled"),
        pytest.param(
            facts(problem=PROBLEM._replace(is_retried=True)),
            ("False", "ChecksumMismatch"),
            "True",
            "False",
            id="retried by the operator",
        ),
        pytest.param(
            facts(wished_replicas=0, deployment=a_deployment(0), pods=(), report=None),
            ("False", "ScaledToZero"),
            "False",
            "False",
            id="scaled to zero",
        ),
        pytest.param(
            facts(wished_replicas=0, deployment=a_deployment(1), report=None),
            ("False", "RolloutInProgress"),
            "True",
            "False",
            id="on the way to zero",
        ),
    ],
)
def test_verdicts(given: Facts, ready: tuple[str, str], reconciling: str, stalled: str) -> None:
    status = derive_status(given, NOW)
    found = conditions(status)
    assert found["Ready"] == ready
    assert found["Reconciling"][0] == reconciling
    assert found["Stalled"][0] == stalled
    assert all(condition.observed_generation == 3 for condition in status.conditions)
    assert status.observed_generation == 3


def test_ready_counts_only_once_the_deployment_saw_its_newest_generation() -> None:
    stale = a_deployment()._replace(generation=3, observed_generation=2)
    assert conditions(derive_status(facts(deployment=stale), NOW))["Ready"][0] == "False"


def test_an_invalid_change_of_a_serving_model_says_that_the_old_revision_serves() -> None:
    problem = Problem("InvalidSpec", "spec.x: got 0", "correct it.")
    status = derive_status(facts(problem=problem, wished_replicas=None, pods=(), report=None, is_applied=False), NOW)
    assert conditions(status)["Stalled"] == ("True", "InvalidSpec")
    assert "1 replica of the previous revision still serving" in status.conditions[0].message
    assert status.ready_replicas == 1
    assert status.url == "http://flowers.default.svc"


def test_what_is_loaded_comes_from_the_report() -> None:
    status = derive_status(facts(), NOW)
    assert status.checkpoint is not None
    assert (status.checkpoint.sha256, status.checkpoint.short_sha256) == (DIGEST, DIGEST[:12])
    assert (status.load_safety, status.device, status.batching) == ("weights-only", "cpu", "up to 32 rows")
    assert status.parallelism == "1 process x 2 workers x 1 thread: measured"


def a_proof(difference: float, tolerance: float = 1e-5, *, padded: bool = False) -> BatchProof:
    return BatchProof(rows=32, padded=padded, max_difference=difference, tolerance=tolerance)


@pytest.mark.parametrize(
    ("report", "words"),
    [
        pytest.param(
            BatchingReport(enabled=True, max_size=32, reason="", proofs=[a_proof(1e-7), a_proof(2.4e-7)]),
            "up to 32 rows; worst difference 2.4e-07 of 1e-05 allowed",
            id="the worst of several sizes",
        ),
        pytest.param(
            BatchingReport(
                enabled=True, max_size=8, reason="", padding=True, proofs=[a_proof(2e-7), a_proof(3e-7, padded=True)]
            ),
            "up to 8 rows, padded; worst difference 3e-07 of 1e-05 allowed",
            id="padding counts where it is used",
        ),
        pytest.param(
            BatchingReport(
                enabled=True,
                max_size=8,
                reason="padding is off: output 'y' differs by up to 0.5 (tolerance 1e-05)",
                proofs=[a_proof(2e-7), a_proof(0.5, padded=True)],
            ),
            "up to 8 rows; worst difference 2e-07 of 1e-05 allowed; padding is off: output 'y' differs by up to 0.5 "
            "(tolerance 1e-05)",
            id="padding that failed has its figures in the reason",
        ),
        pytest.param(
            BatchingReport(enabled=True, max_size=4, reason="", proofs=[a_proof(9e-4, 1e-2), a_proof(9e-6)]),
            "up to 4 rows; worst difference 9e-06 of 1e-05 allowed",
            id="the worst is the nearest to what was allowed",
        ),
        pytest.param(
            BatchingReport(enabled=True, max_size=4, reason="", proofs=[a_proof(0.0), a_proof(0.0, 0.0)]),
            "up to 4 rows; no difference",
            id="answers that were equal",
        ),
        pytest.param(
            BatchingReport(
                enabled=False,
                max_size=1,
                reason="rows influence each other: output 'y' of a row differs by up to 0.3 (tolerance 1e-05)",
                proofs=[a_proof(0.3)],
            ),
            "off: rows influence each other: output 'y' of a row differs by up to 0.3 (tolerance 1e-05)",
            id="off, with the figures",
        ),
    ],
)
def test_batching_is_said_with_its_figures(report: BatchingReport, words: str) -> None:
    assert describe_batching(report) == words


def test_parallelism_is_said_with_its_reason() -> None:
    report = ParallelismReport(processes=2, workers=1, threads=1, reason="a row takes 3 µs")
    assert describe_parallelism(report) == "2 processes x 1 worker x 1 thread: a row takes 3 µs"
    assert describe_parallelism(ParallelismReport()) == "1 process x 1 worker x 1 thread"


@pytest.mark.parametrize(
    ("changes", "is_kept"),
    [
        pytest.param({}, True, id="the same generation still serves"),
        pytest.param({"generation": 4}, False, id="another generation serves"),
        pytest.param({"generation": 4, "pods": ()}, True, id="only the old revision serves"),
        pytest.param({"deployment": a_deployment(ready=0), "pods": ()}, False, id="nothing serves"),
    ],
)
def test_without_a_report_the_digest_stays_while_it_is_true(changes: dict[str, Any], is_kept: bool) -> None:
    before = derive_status(facts(), NOW)
    status = derive_status(facts(report=None, previous=before, **changes), LATER)
    assert (status.checkpoint == before.checkpoint) is is_kept
    assert (status.parallelism == before.parallelism) is is_kept


def test_transition_times_move_with_the_status_of_a_condition_only() -> None:
    before = derive_status(facts(), NOW)
    after = derive_status(facts(problem=PROBLEM, previous=before), LATER)
    assert [condition.last_transition_time for condition in after.conditions] == [LATER, NOW, LATER]


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([None, PROBLEM, PROBLEM._replace(is_retried=True)]),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)
def test_deriving_again_says_the_same_and_the_contract_holds(
    problem: Problem | None, wished: int, ready: int, old: int, is_there: bool
) -> None:
    deployment = a_deployment(wished, ready=min(ready, wished), old=old) if is_there else None
    given = facts(problem=problem, wished_replicas=wished, deployment=deployment)
    status = derive_status(given, NOW)
    wire = render_status(status)
    again = derive_status(given._replace(previous=parse_status(wire)), LATER)
    assert is_same(wire, render_status(again))
    assert render_status(again) == wire
    found = {kind: value for kind, (value, _) in conditions(status).items()}
    assert set(found) == {"Ready", "Reconciling", "Stalled"}
    assert list(found.values()).count("True") <= 1


def test_a_status_of_another_version_is_no_obstacle() -> None:
    assert parse_status({"conditions": [{"type": "Ready"}], "unknown": 1}) == TorchModelStatus()


def test_the_default_of_the_crd_differs_from_every_status() -> None:
    assert not is_same(
        {"conditions": [{"type": "Ready", "status": "Unknown"}]}, render_status(derive_status(facts(), NOW))
    )
