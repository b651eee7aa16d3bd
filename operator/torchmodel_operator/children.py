"""The children of one TorchModel, brought to what is desired. Called by `reconcile`.

Three steps: find what is there, plan (`childplan`, pure), carry the plan out. What the API server answers goes into the
ledger at once, so that the next round does not depend on how fast the watches are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torchmodel_operator import names
from torchmodel_operator.childplan import Apply, Conflict, Delete, Found, Wait, has_hash_of, plan_children
from torchmodel_operator.diagnosis import Problem, diagnose_refusal
from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import BY_KIND, MODELS, KubeApi
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.manifests import Manifest
from torchmodel_operator.observed import ChildRecord, Key, observe_child
from torchmodel_operator.spec import Model

REFUSED_RETRY_S = 15.0
"""What the API server refused is tried again this often: the cause lies outside the TorchModel, so no event will tell."""


class Applied(NamedTuple):
    """How far the children are as wished."""

    problem: Problem | None = None
    error: KubeError | None = None
    """To be tried again by the queue."""
    retry_s: float | None = None
    """What was refused is tried again then."""
    writes: tuple[str, ...] = ()
    """What was written and why, for the log."""
    is_gone: bool = False
    """The model went meanwhile: nothing was written and nothing is left to do."""


async def apply_children(
    model: Model, desired: Sequence[Manifest], children: Sequence[ChildRecord], kube: KubeApi, ledger: Ledger
) -> Applied:
    """Write what is missing, changed or edited, and delete what is no longer wished. A KubeError comes back as a result."""
    writes: list[str] = []
    try:
        found = [await find_child(manifest, kube, ledger) for manifest in desired]
        plan = plan_children(model, desired, found, children)
        is_applying = any(isinstance(step, Apply) for step in plan.steps)
        if is_applying and await forget_if_gone(Key(model.namespace, model.name), model.uid, kube, ledger):
            return Applied(is_gone=True)
        for step in plan.steps:
            writes.append(await carry_out(step, kube, ledger))
    except KubeError as error:
        return _stopped_by(error, writes)
    if isinstance(plan.obstacle, Conflict):
        return Applied(plan.obstacle.problem, retry_s=REFUSED_RETRY_S, writes=tuple(writes))
    if isinstance(plan.obstacle, Wait):
        return _stopped_by(KubeError(plan.obstacle.message, status=409), writes)
    return Applied(writes=tuple(writes))


async def find_child(manifest: Manifest, kube: KubeApi, ledger: Ledger) -> Found | None:
    """The object of the manifest's name: as watched, else as the API server has it, for it may not bear our labels."""
    kind, metadata = manifest["kind"], manifest["metadata"]
    child = ledger.get_child(kind, metadata["namespace"], metadata["name"])
    if child is None or child.is_deleting:
        body = await kube.get(BY_KIND[kind], metadata["namespace"], metadata["name"])
        if body is None:
            return None
        child = observe_child({"kind": kind, **body})
        if child.is_deleting:
            return Found(child, is_drifted=False)
        if child.is_watched:
            ledger.put(child)
    # The ledger takes the first content it is asked about for the applied one: so it is asked only about what bears the hash.
    is_drifted = child.is_watched and has_hash_of(manifest, child) and ledger.is_drifted(child)
    return Found(child, is_drifted)


async def carry_out(step: Apply | Delete, kube: KubeApi, ledger: Ledger) -> str:
    """Take one step and note it in the ledger. Returns it in words."""
    if isinstance(step, Apply):
        answer = await kube.apply(step.manifest, names.MANAGER_CHILDREN)
        ledger.note_applied(observe_child(answer))
        return f"apply {step.manifest['kind']} ({step.why.value})"
    identity = step.child.identity
    await kube.delete(BY_KIND[identity.kind], identity.namespace, identity.name, identity.uid)
    ledger.remove(step.child)
    return f"delete {identity.kind} ({step.why.value})"


async def forget_if_gone(key: Key, uid: str, kube: KubeApi, ledger: Ledger) -> bool:
    """Ask whether the model went unnoticed, and forget it then: kopf does not report every deletion.

    True when nothing may be written for it any more: it is gone, or on its way.
    """
    body = await kube.get(MODELS, key.namespace, key.name)
    if body is not None and body["metadata"]["uid"] == uid:
        return "deletionTimestamp" in body["metadata"]
    record = ledger.get_model(key)
    if record is not None and record.identity.uid == uid:
        ledger.remove(record)
    return True


def _stopped_by(error: KubeError, writes: Sequence[str]) -> Applied:
    if error.is_retryable:
        step = "none; it is tried again by itself. If it stays, see the operator's log."
        return Applied(
            Problem(names.REASON_KUBE_API, error.message, step, is_retried=True), error, writes=tuple(writes)
        )
    return Applied(diagnose_refusal(error.message), retry_s=REFUSED_RETRY_S, writes=tuple(writes))
