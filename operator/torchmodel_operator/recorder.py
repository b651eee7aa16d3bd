"""Events on TorchModels, for `kubectl describe` and audit: one for each change of a condition that people care about.

Called by `reconcile` after a status was written. Events are a courtesy: they are posted in the background, never twice
within DEDUPLICATION_S, and a failure is only logged.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any, NamedTuple

from torchmodel_operator import names
from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import EVENTS, KubeApi
from torchmodel_operator.observed import Identity
from torchmodel_operator.spec import API_VERSION, KIND, TorchModelStatus
from torchmodel_operator.status import get_condition
from torchmodel_operator.timestamps import format_micro_time

DEDUPLICATION_S = 300.0
MAX_NOTE_CHARACTERS = 1000
"""The API server takes up to 1024 bytes."""
MAX_PENDING = 256

log = logging.getLogger(__name__)


class Announcement(NamedTuple):
    """What an Event says."""

    type: str
    reason: str
    note: str


def announce(previous: TorchModelStatus, status: TorchModelStatus) -> Announcement | None:
    """Decide whether the change from one status to the next is worth an Event. Pure."""
    stalled, was_stalled = (get_condition(s, names.CONDITION_STALLED) for s in (status, previous))
    if stalled and stalled.status == "True":
        is_known = was_stalled and (was_stalled.status, was_stalled.reason) == ("True", stalled.reason)
        return None if is_known else Announcement("Warning", stalled.reason, stalled.message)
    ready, was_ready = (get_condition(s, names.CONDITION_READY) for s in (status, previous))
    if ready and ready.status == "True" and not (was_ready and was_ready.status == "True"):
        return Announcement("Normal", ready.reason, ready.message)
    return None


class Recorder:
    """Posts Events in the background."""

    def __init__(self, kube: KubeApi, instance: str, clock: Callable[[], float]) -> None:
        self._kube, self._instance, self._clock = kube, instance, clock
        self._posted: dict[tuple[str, Announcement], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, identity: Identity, announcement: Announcement, now_s: float) -> None:
        """Post an Event about a TorchModel, unless the same was posted lately or too many are under way.

        `now_s`, seconds since 1970, becomes its time.
        """
        now = self._clock()
        self._posted = {what: at for what, at in self._posted.items() if now - at < DEDUPLICATION_S}
        if (identity.uid, announcement) in self._posted or len(self._tasks) >= MAX_PENDING:
            return
        self._posted[identity.uid, announcement] = now
        task = asyncio.create_task(
            self._post(make_event(identity, announcement, self._instance, format_micro_time(now_s)))
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _post(self, event: dict[str, Any]) -> None:
        try:
            await self._kube.create(EVENTS, event)
        except KubeError as error:
            log.warning("event not posted", extra={"error": error.message})


def make_event(identity: Identity, announcement: Announcement, instance: str, now: str) -> dict[str, Any]:
    """An Event of events.k8s.io/v1."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{identity.name}.{secrets.token_hex(8)}", "namespace": identity.namespace},
        "eventTime": now,
        "type": announcement.type,
        "reason": announcement.reason,
        "action": "Reconcile",
        "note": announcement.note[:MAX_NOTE_CHARACTERS],
        "reportingController": names.OPERATOR,
        "reportingInstance": instance,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": identity.name,
            "namespace": identity.namespace,
            "uid": identity.uid,
        },
    }
