"""What to do so that a model's children are as wished: desired manifests and what is there → a plan. Pure.

Called by `children`, which gathers the facts before and carries the plan out after. Each child is judged alone, in the order
of `manifests.desired_objects`; an object that must not be touched ends the plan, for what comes after may refer to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from torchmodel_operator import names
from torchmodel_operator.diagnosis import Problem
from torchmodel_operator.manifests import Manifest, applied_hash_of
from torchmodel_operator.observed import ChildRecord, Key
from torchmodel_operator.spec import Model

OPTIONAL_KINDS = ("PodDisruptionBudget",)
"""Kinds of which a model that has a child may later want none; the others it always has."""


class Why(Enum):
    """Why something is written; the value is for the log."""

    MISSING = "missing"
    UNLABELLED = "without our label"  # no watch tells of it until it bears the label again
    CHANGED = "changed"  # the model, the runtime image or this operator is another
    EDITED = "edited"  # by somebody else, since we applied it
    UNWISHED = "no longer wished"


class Found(NamedTuple):
    """The object that bears a wished child's name."""

    child: ChildRecord
    is_drifted: bool
    """Its content is not what it was after the operator applied it."""


class Apply(NamedTuple):
    """Write this child."""

    manifest: Manifest
    why: Why


class Delete(NamedTuple):
    """Delete that very object."""

    child: ChildRecord
    why: Why


class Conflict(NamedTuple):
    """Somebody else's object has the name; only people can solve that."""

    problem: Problem


class Wait(NamedTuple):
    """An object that is on its way out has the name; it passes by itself."""

    message: str


class Plan(NamedTuple):
    """The steps in their order, and what stands in the way of further ones."""

    steps: tuple[Apply | Delete, ...]
    obstacle: Conflict | Wait | None = None


def plan_children(
    model: Model, desired: Sequence[Manifest], found: Sequence[Found | None], children: Sequence[ChildRecord]
) -> Plan:
    """Plan the difference between `desired` and `found`, one for each desired; `children` are all that the model has."""
    steps: list[Apply | Delete] = []
    for manifest, there in zip(desired, found, strict=True):
        step = plan_child(model, manifest, there)
        if isinstance(step, Apply):
            steps.append(step)
        elif step is not None:
            return Plan(tuple(steps), step)
    return Plan((*steps, *(Delete(child, Why.UNWISHED) for child in _unwished(model, desired, children))))


def plan_child(model: Model, manifest: Manifest, found: Found | None) -> Apply | Conflict | Wait | None:
    """What one wished child needs; None when it is as applied."""
    if found is None:
        return Apply(manifest, Why.MISSING)
    child = found.child
    if child.is_deleting:
        return Wait(f"{manifest['kind']} {manifest['metadata']['name']} is still being deleted")
    if child.owner_uid != model.uid:
        if child.owner_uid and child.owner == Key(model.namespace, model.name):
            return Wait(f"{manifest['kind']} {model.name} of a deleted namesake is still there")
        return Conflict(_name_taken(child))
    if not child.is_watched:
        return Apply(manifest, Why.UNLABELLED)
    if not has_hash_of(manifest, child):
        return Apply(manifest, Why.CHANGED)
    return Apply(manifest, Why.EDITED) if found.is_drifted else None


def has_hash_of(manifest: Manifest, child: ChildRecord) -> bool:
    """True when this very manifest is what the operator last applied to the child."""
    return child.applied_hash == applied_hash_of(manifest)


def _unwished(model: Model, desired: Sequence[Manifest], children: Sequence[ChildRecord]) -> list[ChildRecord]:
    wished = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in desired}
    return [
        child
        for child in children
        if child.owner_uid == model.uid
        and not child.is_deleting
        and child.identity.kind in OPTIONAL_KINDS
        and (child.identity.kind, child.identity.name) not in wished
    ]


def _name_taken(child: ChildRecord) -> Problem:
    identity = child.identity
    return Problem(
        names.REASON_NAME_TAKEN,
        f"{identity.kind} {identity.name} exists in namespace {identity.namespace} and does not belong to this TorchModel",
        f"delete it (kubectl delete {identity.kind.lower()} {identity.name} -n {identity.namespace}) if nothing needs it, "
        "or give the TorchModel another name.",
    )
