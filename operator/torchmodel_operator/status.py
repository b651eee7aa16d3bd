"""Facts → the whole status of a TorchModel: `derive_status`, the last step of every reconcile. There is no second place.

The contract is kstatus's: exactly one of settled, `Reconciling` and `Stalled` holds, `Ready` sums it up for the observed
generation, and all three conditions are always present. Source: cli-utils, pkg/kstatus; `kubectl wait` ignores conditions
of an older generation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec
from torchmodel_runtime.config import BatchingReport, BatchProof, ModelReport, ParallelismReport

from torchmodel_operator import names
from torchmodel_operator.diagnosis import Problem
from torchmodel_operator.observed import DeploymentFacts, PodFacts
from torchmodel_operator.spec import Condition, LoadedCheckpoint, TorchModelStatus

SHORT_DIGEST_CHARACTERS = 12


class Facts(NamedTuple):
    """Everything a status is derived from."""

    name: str
    namespace: str
    generation: int
    wished_replicas: int | None
    """spec.replicas; None when the spec cannot be read."""
    is_applied: bool
    """The children are as this generation wants them."""
    deployment: DeploymentFacts | None
    pods: tuple[PodFacts, ...]
    """Of the newest revision, none being deleted."""
    problem: Problem | None
    report: ModelReport | None
    """What a replica of the newest revision says of itself; None when none could be asked."""
    previous: TorchModelStatus


class Verdict(NamedTuple):
    """Where the model stands: one of settled, reconciling, stalled."""

    is_ready: bool
    is_reconciling: bool
    is_stalled: bool
    reason: str
    message: str


def derive_status(facts: Facts, now: str) -> TorchModelStatus:
    """Derive the status. `now` (RFC 3339) becomes the transition time of conditions that change."""
    verdict = judge_model(facts)
    deployment = facts.deployment
    status = TorchModelStatus(
        observed_generation=facts.generation,
        conditions=_make_conditions(verdict, facts, now),
        url=names.model_url(facts.name, facts.namespace) if deployment else "",
        replicas=deployment.replicas if deployment else 0,
        ready_replicas=deployment.ready_replicas if deployment else 0,
        updated_replicas=deployment.updated_replicas if deployment else 0,
        selector=names.model_selector(facts.name),
    )
    return _with_loaded(status, facts)


def judge_model(facts: Facts) -> Verdict:
    """Decide between settled, reconciling and stalled, with the reason and sentence that all conditions show."""
    problem = facts.problem
    if problem is not None:
        return Verdict(
            False, problem.is_retried, not problem.is_retried, problem.reason, problem.text + _left_behind(facts)
        )
    if not facts.is_applied or facts.deployment is None or facts.wished_replicas is None:
        return _reconciling(names.REASON_ROLLOUT, "The children are being written")
    if facts.wished_replicas == 0:
        if facts.deployment.replicas:
            return _reconciling(names.REASON_ROLLOUT, f"{_replicas(facts.deployment.replicas)} still to stop")
        step = f"kubectl scale torchmodel {facts.name} -n {facts.namespace} --replicas=1"
        return Verdict(False, False, False, names.REASON_SCALED_TO_ZERO, f"spec.replicas is 0. To serve: {step}")
    if _is_rolled_out(facts.deployment, facts.wished_replicas):
        return Verdict(True, False, False, names.REASON_SERVING, f"{_replicas(facts.wished_replicas)} ready")
    return _describe_rollout(facts, facts.deployment, facts.wished_replicas)


def describe_batching(report: BatchingReport) -> str:
    """`up to 32 rows, padded; worst difference 2.4e-07 of 1e-05 allowed; why`, or `off: why`. `torchmodel run` says it too."""
    if not report.enabled:
        return f"off: {report.reason}"
    parts = [f"up to {report.max_size} rows" + (", padded" if report.padding else "")]
    worst = max((proof for proof in report.proofs if report.padding or not proof.padded), key=_used_share, default=None)
    if worst is not None:
        parts.append(
            f"worst difference {worst.max_difference:.2g} of {worst.tolerance:.2g} allowed"
            if worst.max_difference
            else "no difference"
        )
    return "; ".join([*parts, report.reason] if report.reason else parts)


def describe_parallelism(report: ParallelismReport) -> str:
    """`2 processes x 1 worker x 1 thread: why`."""
    counts = ((report.processes, "process", "es"), (report.workers, "worker", "s"), (report.threads, "thread", "s"))
    product = " x ".join(f"{count} {word}{'' if count == 1 else plural}" for count, word, plural in counts)
    return f"{product}: {report.reason}" if report.reason else product


def parse_status(status: object) -> TorchModelStatus:
    """The status as last written; an empty one when it was written by another version and cannot be read."""
    try:
        return msgspec.convert(status, TorchModelStatus)
    except msgspec.ValidationError:
        return TorchModelStatus()


def render_status(status: TorchModelStatus) -> dict[str, Any]:
    """The status as it goes over the wire: what is unknown is left out."""
    fields: dict[str, Any] = msgspec.to_builtins(status)
    return {name: value for name, value in fields.items() if value not in (None, "")}


def is_same(status: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """True when two rendered statuses say the same, so that nothing needs to be written."""
    return _timeless(status) == _timeless(other)


def get_condition(status: TorchModelStatus, condition_type: str) -> Condition | None:
    """The condition of that type, if there is one."""
    return next((condition for condition in status.conditions if condition.type == condition_type), None)


def _reconciling(reason: str, message: str) -> Verdict:
    return Verdict(False, True, False, reason, message)


def _is_rolled_out(deployment: DeploymentFacts, wished: int) -> bool:
    return (
        deployment.observed_generation >= deployment.generation
        and deployment.updated_replicas == wished
        and deployment.replicas == wished
        and deployment.ready_replicas == wished
        and deployment.available_replicas == wished
    )


def _describe_rollout(facts: Facts, deployment: DeploymentFacts, wished: int) -> Verdict:
    if any(not pod.is_scheduled for pod in facts.pods):
        return _reconciling(names.REASON_SCHEDULING, "A replica waits for a node" + _left_behind(facts))
    ready = sum(pod.is_ready for pod in facts.pods)
    starting = [pod.fetcher for pod in facts.pods if pod.fetcher is not None and not pod.is_ready]
    loading = sum(fetcher.is_done for fetcher in starting)
    fetching = len(starting) - loading
    steps = [f"{ready} of {_replicas(wished)} of this generation ready"]
    steps += [f"{fetching} fetching the checkpoint"] if fetching else []
    steps += [f"{loading} loading it"] if loading else []
    old = deployment.replicas - deployment.updated_replicas
    steps += [f"{old} of the previous revision still there"] if old > 0 else []
    return _reconciling(names.REASON_ROLLOUT, "; ".join(steps))


def _left_behind(facts: Facts) -> str:
    """What still answers although this generation does not."""
    ready = facts.deployment.ready_replicas if facts.deployment else 0
    old = ready - sum(pod.is_ready for pod in facts.pods)
    return f" ({_replicas(old)} of the previous revision still serving)" if old > 0 else ""


def _used_share(proof: BatchProof) -> float:
    """How much of what was allowed a row's answer differed by; what must be equal allows nothing."""
    if not proof.tolerance:
        return math.inf if proof.max_difference else 0.0
    return proof.max_difference / proof.tolerance


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _make_conditions(verdict: Verdict, facts: Facts, now: str) -> list[Condition]:
    """All three; those that do not hold say so with the reason Settled."""
    parts = (
        (names.CONDITION_READY, verdict.is_ready, verdict.reason, verdict.message),
        (names.CONDITION_RECONCILING, verdict.is_reconciling, verdict.reason, verdict.message),
        (names.CONDITION_STALLED, verdict.is_stalled, verdict.reason, verdict.message),
    )
    conditions = []
    for kind, holds, reason, message in parts:
        if not holds and kind != names.CONDITION_READY:
            reason, message = names.REASON_SETTLED, ""
        value: Literal["True", "False"] = "True" if holds else "False"
        previous = get_condition(facts.previous, kind)
        since = previous.last_transition_time if previous and previous.status == value else now
        conditions.append(
            Condition(
                type=kind,
                status=value,
                reason=reason,
                message=message,
                last_transition_time=since,
                observed_generation=facts.generation,
            )
        )
    return conditions


def _with_loaded(status: TorchModelStatus, facts: Facts) -> TorchModelStatus:
    """Add what is loaded: from the report, else as it was while the same generation serves, else nothing."""
    report, previous = facts.report, facts.previous
    if report is not None:
        return msgspec.structs.replace(
            status,
            checkpoint=LoadedCheckpoint(
                uri=report.uri,
                sha256=report.sha256,
                short_sha256=report.sha256[:SHORT_DIGEST_CHARACTERS],
                size_bytes=report.size_bytes,
            ),
            load_safety=report.load_safety,
            device=report.device,
            cold_start=report.cold_start,
            batching=describe_batching(report.batching),
            parallelism=describe_parallelism(report.parallelism),
        )
    is_still_true = status.ready_replicas > 0 and (
        previous.observed_generation == facts.generation or not any(pod.is_ready for pod in facts.pods)
    )
    if not is_still_true:
        return status
    return msgspec.structs.replace(
        status,
        checkpoint=previous.checkpoint,
        load_safety=previous.load_safety,
        device=previous.device,
        cold_start=previous.cold_start,
        batching=previous.batching,
        parallelism=previous.parallelism,
    )


def _timeless(status: Mapping[str, Any]) -> dict[str, Any]:
    conditions = [
        {key: value for key, value in condition.items() if key != "lastTransitionTime"}
        for condition in sorted(status.get("conditions", []), key=lambda condition: str(condition["type"]))
    ]
    return {**status, "conditions": conditions}
