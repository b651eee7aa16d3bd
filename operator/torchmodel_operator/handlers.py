"""The only room that knows kopf. Watch events enter here, become records in the ledger and keys in the queue; workers take
the keys to `reconcile` and turn its errors into back-off.

kopf is used for its watches only: `on.event` handlers keep no state on the objects, add no finalizer and write nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import kopf

from torchmodel_operator import names
from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import CHILDREN, MODELS, PODS, Resource
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.observed import Key, observe
from torchmodel_operator.probes import Vitals
from torchmodel_operator.reconcile import World, reconcile
from torchmodel_operator.workqueue import WorkQueue

COALESCE_S = 0.2
"""A child's status changes several times in a row; the model is looked at once for all of them."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Desk:
    """What the handlers share; kopf hands it to them as `memo`."""

    ledger: Ledger
    queue: WorkQueue[Key]
    make_session: Callable[[], aiohttp.ClientSession]
    server: str


async def on_change(type: str | None, event: Any, memo: Desk, **_: Any) -> None:
    """A TorchModel came, changed or went."""
    key = _take_note(type, event["object"], memo)
    if key is not None:
        memo.queue.add(key)


async def on_child_change(type: str | None, event: Any, memo: Desk, **_: Any) -> None:
    """A child or replica of a TorchModel came, changed or went."""
    key = _take_note(type, event["object"], memo)
    if key is not None:
        memo.queue.add_after(key, COALESCE_S, time.monotonic())


def _take_note(event_type: str | None, body: dict[str, Any], desk: Desk) -> Key | None:
    record = observe(body)
    return desk.ledger.remove(record) if event_type == "DELETED" else desk.ledger.put(record)


async def on_login(memo: Desk, **_: Any) -> kopf.AiohttpSession:
    """A session whose every request carries the newest token; kopf's own logins keep the first one until it is refused."""
    return kopf.AiohttpSession(server=memo.server, aiohttp_session=memo.make_session())


async def work(world: World, queue: WorkQueue[Key], vitals: Vitals, leading: asyncio.Event) -> None:
    """Reconcile keys one after another, for as long as this replica leads. Several run side by side."""
    await leading.wait()
    while leading.is_set():
        key = await queue.next_key(time.monotonic)
        try:
            vitals.note_round(await _work_on(key, world, queue))
        finally:
            queue.done(key)


async def _work_on(key: Key, world: World, queue: WorkQueue[Key]) -> str:
    """One round for one key; returns its outcome. No error leaves it: one model never stops another."""
    where = {"namespace": key.namespace, "model": key.name}
    try:
        again_s = await reconcile(key, world)
    except KubeError as error:
        delay_s = queue.fail(key, time.monotonic(), error.retry_after_s or 0.0)
        log.warning("reconcile failed", extra={**where, "error": error.message, "retry_s": round(delay_s, 1)})
        return "error"
    except Exception:  # a defect of ours in one model's case must not stop the others
        delay_s = queue.fail(key, time.monotonic())
        log.exception("reconcile crashed", extra={**where, "retry_s": round(delay_s, 1)})
        return "crash"
    queue.succeed(key)
    if again_s is None:
        queue.forget(key)
    else:
        queue.add_after(key, again_s, time.monotonic())
    return "ok"


def make_registry() -> kopf.OperatorRegistry:
    """All handlers, in a registry of their own: kopf's default one is global state."""
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(on_login)
    kopf.on.event(*_selector(MODELS), id="model", registry=registry)(on_change)
    for resource in (*CHILDREN, PODS):
        kopf.on.event(*_selector(resource), id=resource.plural, registry=registry)(on_child_change)
    return registry


def make_settings() -> kopf.OperatorSettings:
    """kopf's settings; the reasons are in the reference's section 1.6."""
    settings = kopf.OperatorSettings()
    settings.scanning.disabled = True  # no rights on CRDs and namespaces
    settings.posting.enabled = False  # our recorder posts, not kopf
    settings.watching.chunk_size = 500
    settings.watching.server_timeout = 240
    for resource in (*CHILDREN, PODS):
        settings.watching.label_selectors[_selector(resource)] = names.CHILD_SELECTOR
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.queueing.idle_timeout = 1
    settings.queueing.exit_timeout = 5
    settings.process.ultimate_exiting_timeout = 25  # below the pod's grace of 30 s
    return settings


async def watch(desk: Desk, namespaces: tuple[str, ...], stop: asyncio.Event, started: asyncio.Event) -> None:
    """Run kopf until `stop` is set. Raises what ended it otherwise: end the process then."""
    await kopf.operator(
        registry=make_registry(),
        settings=make_settings(),
        memo=desk,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        stop_flag=stop,
        ready_flag=started,
    )


def _selector(resource: Resource) -> tuple[str, str, str]:
    group, _, version = resource.api_version.rpartition("/")
    return group, version, resource.plural
