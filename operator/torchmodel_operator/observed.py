"""What the operator keeps of the objects it watches: slim frozen records, and the pure projections that make them.

Called by `handlers` for every event, by `reconcile` and `children` for what the API server answers, by `resync` for lists;
`ledger` keeps the records. A decoded Deployment is about 26 KiB, a record well under one; thousands are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from torchmodel_operator import names
from torchmodel_operator.spec import KIND
from torchmodel_operator.timestamps import parse_time

Json = Mapping[str, Any]


class Key(NamedTuple):
    """Names one TorchModel: the unit of work of the queue."""

    namespace: str
    name: str


class Identity(NamedTuple):
    """What every record has."""

    kind: str
    namespace: str
    name: str
    uid: str
    version: int
    """metadata.resourceVersion: of two states of one object the larger one is newer (Kubernetes KEP-5504)."""


class ModelRecord(NamedTuple):
    """A TorchModel, as compact JSON without managed fields."""

    identity: Identity
    body: bytes
    is_deleting: bool

    @property
    def owner(self) -> Key | None:
        """The key it is reconciled under: its own."""
        return Key(self.identity.namespace, self.identity.name)


class DeploymentFacts(NamedTuple):
    """status of a Deployment."""

    generation: int
    observed_generation: int
    replicas: int
    updated_replicas: int
    ready_replicas: int
    available_replicas: int
    refusal: str
    """Message of the condition ReplicaFailure: why the API server takes no pods; empty when it does."""
    is_stuck: bool
    """progressDeadlineSeconds passed without progress."""


class ChildRecord(NamedTuple):
    """A Deployment, Service, PodDisruptionBudget or ServiceAccount."""

    identity: Identity
    owner: Key | None
    owner_uid: str
    applied_hash: str
    content_hash: str
    """Hash of all that is neither status nor the server's own metadata: it changes when somebody edits the object."""
    is_deleting: bool
    is_watched: bool
    """It bears the label that the watches ask for; without it, events tell nothing of it."""
    deployment: DeploymentFacts | None


class ContainerFacts(NamedTuple):
    """One container of a pod, from its status."""

    name: str
    is_ready: bool
    is_running: bool
    waiting_reason: str
    waiting_message: str
    ended: Ended | None
    """How its last run ended; None when the first run goes on, or the last one ended well."""
    is_done: bool
    """It ended with exit code 0."""


class Ended(NamedTuple):
    """How a container ended, when not well or when it should not have."""

    exit_code: int
    reason: str
    message: str
    ran_s: float


class PodFacts(NamedTuple):
    """A replica."""

    identity: Identity
    owner: Key | None
    revision: str
    created_s: float
    """Seconds since 1970."""
    ip: str
    phase: str
    phase_reason: str
    phase_message: str
    is_ready: bool
    is_deleting: bool
    is_scheduled: bool
    unschedulable_message: str
    image: str
    fetcher: ContainerFacts | None
    server: ContainerFacts | None


Record = ModelRecord | ChildRecord | PodFacts


def observe(body: Json) -> Record:
    """Turn an object as the API server gives it into the record that is kept of it."""
    kind = body["kind"]
    if kind == KIND:
        return observe_model(body)
    return observe_pod(body) if kind == "Pod" else observe_child(body)


def observe_model(body: Json) -> ModelRecord:
    """Keep a TorchModel but for managed fields and kubectl's copy of it."""
    metadata = {
        key: body["metadata"][key]
        for key in ("name", "namespace", "uid", "generation", "resourceVersion")
        if key in body["metadata"]
    }
    kept = {"metadata": metadata, "spec": body.get("spec", {}), "status": body.get("status", {})}
    return ModelRecord(_identity(body), msgspec.json.encode(kept), "deletionTimestamp" in body["metadata"])


def observe_child(body: Json) -> ChildRecord:
    """Keep what tells whose a child is, whether it is as applied, and how a Deployment is getting on."""
    metadata = body["metadata"]
    owner = _controller(metadata)
    return ChildRecord(
        identity=_identity(body),
        owner=Key(metadata["namespace"], owner["name"]) if owner.get("kind") == KIND else _labelled_owner(metadata),
        owner_uid=owner.get("uid", ""),
        applied_hash=metadata.get("annotations", {}).get(names.ANNOTATION_APPLIED_HASH, ""),
        content_hash=_content_hash(body),
        is_deleting="deletionTimestamp" in metadata,
        is_watched=metadata.get("labels", {}).get(names.LABEL_MANAGED_BY) == names.OPERATOR,
        deployment=_observe_deployment(body) if body["kind"] == "Deployment" else None,
    )


def observe_pod(body: Json) -> PodFacts:
    """Keep what tells how far a replica got and what stopped it."""
    metadata, status = body["metadata"], body.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    scheduled = conditions.get("PodScheduled", {})
    is_unschedulable = scheduled.get("status") == "False" and scheduled.get("reason") == "Unschedulable"
    containers = body.get("spec", {}).get("containers", [])
    return PodFacts(
        identity=_identity(body),
        owner=_labelled_owner(metadata),
        revision=metadata.get("labels", {}).get(names.LABEL_REVISION, ""),
        created_s=parse_time(metadata.get("creationTimestamp", "")),
        ip=status.get("podIP", ""),
        phase=status.get("phase", ""),
        phase_reason=status.get("reason", ""),
        phase_message=status.get("message", ""),
        is_ready=conditions.get("Ready", {}).get("status") == "True",
        is_deleting="deletionTimestamp" in metadata,
        is_scheduled=scheduled.get("status") == "True" or bool(body.get("spec", {}).get("nodeName")),
        unschedulable_message=scheduled.get("message", "") if is_unschedulable else "",
        image=containers[0].get("image", "") if containers else "",
        fetcher=_observe_container(status.get("initContainerStatuses", []), names.CONTAINER_FETCHER),
        server=_observe_container(status.get("containerStatuses", []), names.CONTAINER_SERVER),
    )


def _identity(body: Json) -> Identity:
    metadata = body["metadata"]
    version = int(metadata.get("resourceVersion") or 0)
    return Identity(body["kind"], metadata.get("namespace", ""), metadata["name"], metadata.get("uid", ""), version)


def _controller(metadata: Json) -> Json:
    owners = [owner for owner in metadata.get("ownerReferences", []) if owner.get("controller")]
    return owners[0] if owners else {}


def _labelled_owner(metadata: Json) -> Key | None:
    model = metadata.get("labels", {}).get(names.LABEL_MODEL)
    return Key(metadata["namespace"], model) if model else None


def _content_hash(body: Json) -> str:
    content = {key: value for key, value in body.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    content["labels"] = body["metadata"].get("labels", {})
    return hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()[:16]


def _observe_deployment(body: Json) -> DeploymentFacts:
    status = body.get("status", {})
    conditions = {condition["type"]: condition for condition in status.get("conditions", [])}
    failure, progress = conditions.get("ReplicaFailure", {}), conditions.get("Progressing", {})
    return DeploymentFacts(
        generation=body["metadata"].get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        replicas=status.get("replicas", 0),
        updated_replicas=status.get("updatedReplicas", 0),
        ready_replicas=status.get("readyReplicas", 0),
        available_replicas=status.get("availableReplicas", 0),
        refusal=failure.get("message", "") if failure.get("status") == "True" else "",
        is_stuck=progress.get("status") == "False" and progress.get("reason") == "ProgressDeadlineExceeded",
    )


def _observe_container(statuses: list[Json], name: str) -> ContainerFacts | None:
    for status in statuses:
        if status["name"] == name:
            state = status.get("state", {})
            waiting = state.get("waiting") or {}
            current = state.get("terminated")
            ended = current or status.get("lastState", {}).get("terminated")
            return ContainerFacts(
                name=name,
                is_ready=status.get("ready", False),
                is_running="running" in state,
                waiting_reason=waiting.get("reason", ""),
                waiting_message=waiting.get("message", ""),
                ended=_observe_end(ended) if ended else None,
                is_done=bool(current) and current.get("exitCode", 0) == 0,
            )
    return None


def _observe_end(terminated: Json) -> Ended:
    started, finished = parse_time(terminated.get("startedAt") or ""), parse_time(terminated.get("finishedAt") or "")
    return Ended(
        exit_code=terminated.get("exitCode", 0),
        reason=terminated.get("reason", ""),
        message=terminated.get("message", ""),
        ran_s=max(0.0, finished - started),
    )
