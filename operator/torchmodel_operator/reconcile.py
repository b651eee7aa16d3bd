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
from typing import Any, NamedTuple

from torchmodel_operator import manifests, names
from torchmodel_operator.children import Applied, apply_children, forget_if_gone
from torchmodel_operator.consent import check_consent, check_location
from torchmodel_operator.diagnosis import Diagnosis, PodEvent, Problem, choose_problem, diagnose, needs_events
from torchmodel_operator.errors import KubeError, SpecError
from torchmodel_operator.kube import EVENTS, KubeApi
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.observed import DeploymentFacts, Key, ModelRecord, PodFacts, observe_model
from torchmodel_operator.recorder import Recorder, announce
from torchmodel_operator.report import Reading, Reports
from torchmodel_operator.settings import OperatorSettings
from torchmodel_operator.spec import API_VERSION, KIND, Model, TorchModelStatus, parse_model
from torchmodel_operator.status import Facts, derive_status, is_same, parse_status, render_status
from torchmodel_operator.timestamps import format_time

RESYNC_S = 36_000.0
"""Every model is looked at again about this often, should an event ever be lost."""
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
        applied = await apply_children(model, desired, children, world.kube, world.ledger)
        if applied.is_gone:
            return None
        seen = await look_at_replicas(model, desired, world)
    facts = gather_facts(body, model, applied, seen, world.ledger)
    status = derive_status(facts, format_time(world.wall_clock()))
    writes = applied.writes + await publish(record, body, status, world)
    if writes:
        log.info("reconciled", extra={"namespace": key.namespace, "model": key.name, "writes": writes})
    if applied.error is not None:
        raise applied.error
    return next_look_s(applied, seen)


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
        world.recorder.record(record.identity, announcement, world.wall_clock())
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
            await forget_if_gone(Key(identity.namespace, identity.name), identity.uid, world.kube, world.ledger)
        raise


def next_look_s(applied: Applied, seen: Seen) -> float:
    """When to look again although no event tells to."""
    resync_s = RESYNC_S * random.uniform(0.8, 1.2)  # noqa: S311  spreads load, keeps no secret
    waits = (seen.diagnosis.recheck_s, seen.reading.retry_s, applied.retry_s, resync_s)
    return min(wait for wait in waits if wait is not None)


def _own_deployment(metadata: dict[str, Any], ledger: Ledger) -> DeploymentFacts | None:
    child = ledger.get_child("Deployment", metadata["namespace"], names.workload_name(metadata["name"]))
    return child.deployment if child is not None and child.owner_uid == metadata["uid"] else None


def _event_time(event: dict[str, Any]) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("deprecatedLastTimestamp"), event.get("eventTime"))
    return next((time for time in times if time), "")
