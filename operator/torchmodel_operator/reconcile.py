"""One TorchModel from what is wished to what is there, and what is seen back to its status. Called by `handlers`.

Level-triggered: it looks only at the present state, so it may run at any time, any number of times. When nothing has
changed it writes nothing, right after a restart as well. Children are owned by the TorchModel, so the garbage collector
removes them; there is no finalizer.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, NamedTuple

from torchmodel_operator import manifests, names
from torchmodel_operator.consent import check_consent, check_location
from torchmodel_operator.diagnosis import (
    Diagnosis,
    PodEvent,
    Problem,
    choose_problem,
    diagnose,
    diagnose_refusal,
    needs_events,
)
from torchmodel_operator.errors import KubeError, SpecError
from torchmodel_operator.kube import BUDGETS, BY_KIND, EVENTS, MODELS, KubeApi
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.observed import (
    ChildRecord,
    DeploymentFacts,
    Key,
    ModelRecord,
    PodFacts,
    observe_child,
    observe_model,
)
from torchmodel_operator.recorder import Recorder, announce
from torchmodel_operator.report import Reading, Reports
from torchmodel_operator.settings import OperatorSettings
from torchmodel_operator.spec import API_VERSION, KIND, Model, TorchModelStatus, parse_model
from torchmodel_operator.status import Facts, derive_status, is_same, parse_status, render_status

RESYNC_S = 36_000.0
"""Every model is looked at again about this often, should an event ever be lost."""
REFUSED_RETRY_S = 15.0
"""What the API server refused is tried again this often: the cause lies outside the TorchModel, so no event will tell."""
MAX_EVENT_LOOKUPS = 3
"""Pods of one model whose Events are read in one round."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class World:
    """Everything a reconcile may touch."""

    kube: KubeApi
    ledger: Ledger
    reports: Reports
    recorder: Recorder
    settings: OperatorSettings
    wall_clock: Callable[[], float]
    """Seconds since 1970."""


class Applied(NamedTuple):
    """How far the children are as wished."""

    problem: Problem | None = None
    error: KubeError | None = None
    """To be tried again by the queue."""
    retry_s: float | None = None
    """What was refused is tried again then."""
    writes: tuple[str, ...] = ()
    is_gone: bool = False
    """The model went meanwhile: nothing was written and nothing is left to do."""


class Seen(NamedTuple):
    """What is seen of the replicas of the newest revision."""

    pods: tuple[PodFacts, ...] = ()
    diagnosis: Diagnosis = Diagnosis(None, None)
    reading: Reading = Reading(None)


async def reconcile(key: Key, world: World) -> float | None:
    """Bring one model's children and status up to date. Returns the seconds after which to look again, None when gone.

    Raises KubeError when the API server did not take something that may work later: try again with back-off.
    """
    record = world.ledger.get_model(key)
    if record is None or record.is_deleting:
        return None
    body = json.loads(record.body)
    model: Model | None
    try:
        model = parse_model(body)
        check_location(model)
        check_consent(model, world.settings)
    except SpecError as error:
        model, applied, seen = None, Applied(Problem(error.reason, error.message, error.next_step)), Seen()
    else:
        children = world.ledger.list_children(key)
        desired = manifests.desired_objects(model, world.settings.runtime_image)
        applied = await apply_children(model, desired, children, world)
        if applied.is_gone:
            return None
        seen = await look_at_replicas(model, desired, world)
    facts = gather_facts(body, model, applied, seen, world.ledger)
    status = derive_status(facts, _rfc3339(world.wall_clock()))
    writes = applied.writes + await publish(record, body, status, world)
    if writes:
        log.info("reconciled", extra={"namespace": key.namespace, "model": key.name, "writes": writes})
    if applied.error is not None:
        raise applied.error
    return next_look_s(applied, seen)


async def apply_children(
    model: Model, desired: Sequence[manifests.Manifest], children: Sequence[ChildRecord], world: World
) -> Applied:
    """Write what is missing, changed or edited, and delete what is no longer wished."""
    writes: list[str] = []
    try:
        for manifest in desired:
            child = await find_child(manifest, world)
            if child is not None and child.owner_uid != model.uid:
                if child.owner_uid and child.owner == Key(model.namespace, model.name):
                    raise KubeError(f"{manifest['kind']} {model.name} of a deleted namesake is still there", status=409)
                return Applied(_name_taken(manifest, child), retry_s=REFUSED_RETRY_S, writes=tuple(writes))
            if child is not None and _is_as_applied(manifest, child, world):
                continue
            if not writes and await forget_if_gone(Key(model.namespace, model.name), model.uid, world):
                return Applied(is_gone=True)
            answer = await world.kube.apply(manifest, names.MANAGER_CHILDREN)
            world.ledger.note_applied(observe_child(answer))
            writes.append(f"apply {manifest['kind']}")
        for child in _unwished(model, desired, children):
            identity = child.identity
            await world.kube.delete(BY_KIND[identity.kind], identity.namespace, identity.name, identity.uid)
            world.ledger.remove(child)
            writes.append(f"delete {identity.kind}")
    except KubeError as error:
        if error.is_retryable:
            step = "none; it is tried again by itself. If it stays, see the operator's log."
            return Applied(
                Problem(names.REASON_KUBE_API, error.message, step, is_retried=True), error, writes=tuple(writes)
            )
        return Applied(diagnose_refusal(error.message), retry_s=REFUSED_RETRY_S, writes=tuple(writes))
    return Applied(writes=tuple(writes))


async def find_child(manifest: manifests.Manifest, world: World) -> ChildRecord | None:
    """The object of the manifest's name: as watched, else as the API server has it, for it may not bear our labels."""
    metadata = manifest["metadata"]
    child = world.ledger.get_child(manifest["kind"], metadata["namespace"], metadata["name"])
    if child is not None and not child.is_deleting:
        return child
    body = await world.kube.get(BY_KIND[manifest["kind"]], metadata["namespace"], metadata["name"])
    if body is None:
        return None
    found = observe_child({"kind": manifest["kind"], **body})
    if found.is_deleting:
        raise KubeError(f"{manifest['kind']} {metadata['name']} is still being deleted", status=409)
    if found.is_watched:
        world.ledger.put(found)
    return found


async def forget_if_gone(key: Key, uid: str, world: World) -> bool:
    """Ask whether the model went unnoticed, and forget it then: kopf does not report every deletion.

    True when nothing may be written for it any more: it is gone, or on its way.
    """
    body = await world.kube.get(MODELS, key.namespace, key.name)
    if body is not None and body["metadata"]["uid"] == uid:
        return "deletionTimestamp" in body["metadata"]
    record = world.ledger.get_model(key)
    if record is not None and record.identity.uid == uid:
        world.ledger.remove(record)
    return True


async def look_at_replicas(model: Model, desired: Sequence[manifests.Manifest], world: World) -> Seen:
    """Gather what is known of the newest revision's replicas: why they do not serve, and what they loaded when they do."""
    pods = newest_pods(desired, world.ledger.list_pods(Key(model.namespace, model.name)))
    now_s = world.wall_clock()
    stuck = [pod for pod in pods if needs_events(pod, now_s)][:MAX_EVENT_LOOKUPS]
    events = {pod.identity.uid: await list_warnings(pod, world) for pod in stuck}
    return Seen(pods, diagnose(pods, model.spec, events, now_s), await world.reports.read(model.name, pods))


def newest_pods(desired: Sequence[manifests.Manifest], pods: Sequence[PodFacts]) -> tuple[PodFacts, ...]:
    """The replicas of the revision that is wished now, those being deleted left out."""
    revision = next(manifests.revision_of(child) for child in desired if child["kind"] == "Deployment")
    return tuple(pod for pod in pods if pod.revision == revision and not pod.is_deleting)


async def list_warnings(pod: PodFacts, world: World) -> list[PodEvent]:
    """The warnings about a pod, newest first; none when they cannot be read, for the rest of the status is worth more."""
    fields = f"regarding.uid={pod.identity.uid},type=Warning"
    try:
        page = await world.kube.list_page(EVENTS, pod.identity.namespace, fields=fields)
    except KubeError as error:
        log.warning("events not read", extra={"pod": pod.identity.name, "error": error.message})
        return []
    newest = sorted(page.items, key=_event_time, reverse=True)
    return [PodEvent(event.get("reason", ""), event.get("note", "")) for event in newest]


def gather_facts(body: dict[str, Any], model: Model | None, applied: Applied, seen: Seen, ledger: Ledger) -> Facts:
    """Put together all that the status is derived from; `model` is None when the spec cannot be carried out."""
    metadata = body["metadata"]
    deployment = _own_deployment(metadata, ledger)
    return Facts(
        name=metadata["name"],
        namespace=metadata["namespace"],
        generation=metadata.get("generation", 0),
        wished_replicas=model.spec.replicas if model else None,
        is_applied=applied.problem is None,
        deployment=deployment,
        pods=seen.pods,
        problem=choose_problem(applied.problem, deployment, seen.diagnosis.problem, model.spec if model else None),
        report=seen.reading.report,
        previous=parse_status(body.get("status", {})),
    )


async def publish(record: ModelRecord, body: dict[str, Any], status: TorchModelStatus, world: World) -> tuple[str, ...]:
    """Write the status if it says something new, with an Event if people care. Returns what was written, for the log."""
    published = body.get("status", {})
    if is_same(render_status(status), published):
        return ()
    await apply_status(record, status, world)
    if announcement := announce(parse_status(published), status):
        world.recorder.record(record.identity, announcement)
    return (f"status {status.conditions[0].reason}",)


async def apply_status(record: ModelRecord, status: TorchModelStatus, world: World) -> None:
    """Write the status of that very object; one of the same name with another uid is refused by the API server."""
    identity = record.identity
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": identity.name, "namespace": identity.namespace, "uid": identity.uid},
        "status": render_status(status),
    }
    try:
        world.ledger.put(observe_model(await world.kube.apply(body, names.MANAGER_STATUS, "status")))
    except KubeError as error:
        if error.status in (404, 409):
            await forget_if_gone(Key(identity.namespace, identity.name), identity.uid, world)
        raise


def next_look_s(applied: Applied, seen: Seen) -> float:
    """When to look again although no event tells to."""
    resync_s = RESYNC_S * random.uniform(0.8, 1.2)  # noqa: S311  spreads load, keeps no secret
    waits = (seen.diagnosis.recheck_s, seen.reading.retry_s, applied.retry_s, resync_s)
    return min(wait for wait in waits if wait is not None)


def _is_as_applied(manifest: manifests.Manifest, child: ChildRecord, world: World) -> bool:
    is_applied = child.is_watched and child.applied_hash == manifests.applied_hash_of(manifest)
    return is_applied and not world.ledger.is_drifted(child)


def _unwished(
    model: Model, desired: Sequence[manifests.Manifest], children: Sequence[ChildRecord]
) -> list[ChildRecord]:
    """Children of this model that it no longer has: today only the PodDisruptionBudget can become one."""
    wished = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in desired}
    return [
        child
        for child in children
        if child.owner_uid == model.uid
        and not child.is_deleting
        and child.identity.kind == BUDGETS.kind
        and (child.identity.kind, child.identity.name) not in wished
    ]


def _own_deployment(metadata: dict[str, Any], ledger: Ledger) -> DeploymentFacts | None:
    child = ledger.get_child("Deployment", metadata["namespace"], names.workload_name(metadata["name"]))
    return child.deployment if child is not None and child.owner_uid == metadata["uid"] else None


def _name_taken(manifest: manifests.Manifest, child: ChildRecord) -> Problem:
    identity = child.identity
    return Problem(
        names.REASON_NAME_TAKEN,
        f"{identity.kind} {identity.name} exists in namespace {identity.namespace} and does not belong to this TorchModel",
        f"delete it (kubectl delete {manifest['kind'].lower()} {identity.name} -n {identity.namespace}) if nothing needs it, "
        "or give the TorchModel another name.",
    )


def _event_time(event: dict[str, Any]) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return next((time for time in times if time), "")


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
