"""Where events enter: what becomes of them, and that one model never stops another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from testkit.fake_kube import FakeKube
from testkit.manifests import a_pod, a_stored_model
from torchmodel_operator.errors import KubeError
from torchmodel_operator.handlers import Desk, make_registry, make_settings, on_change, on_child_change, work
from torchmodel_operator.kube import MODELS, WATCHED
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.observed import Key, PodFacts, observe
from torchmodel_operator.probes import STREAM_SILENCE_S, Vitals, make_app
from torchmodel_operator.reconcile import World
from torchmodel_operator.recorder import Recorder
from torchmodel_operator.report import Reading
from torchmodel_operator.resync import FULL_SWEEP_S, RELIST_SETTLE_S, Resync
from torchmodel_operator.settings import OperatorSettings
from torchmodel_operator.workqueue import WorkQueue


class NoReports:
    async def read(self, model: str, pods: Sequence[PodFacts]) -> Reading:
        return Reading(None, None if not model or not pods else 300.0)


class Parts:
    """A desk and a world on a FakeKube."""

    def __init__(self) -> None:
        self.kube, self.ledger, self.now = FakeKube(), Ledger(), 1000.0
        self.queue: WorkQueue[Key] = WorkQueue()
        self.vitals = Vitals(lambda: self.now, ["torchmodels", "pods"])
        self.resync = Resync(self.kube, self.ledger, (), self.queue.add, lambda: self.now)
        self.desk = Desk(self.ledger, self.queue, lambda: None, "")  # type: ignore[arg-type, return-value]
        settings = OperatorSettings(runtime_image="runtime:1", lease_namespace="system", pod_name="operator-0")
        recorder = Recorder(self.kube, "operator-0", lambda: self.now)
        self.world = World(self.kube, self.ledger, NoReports(), recorder, settings, time.time)

    def add(self, body: dict[str, Any]) -> None:
        self.ledger.put(observe(self.kube.add(body)))


async def run_until(parts: Parts, is_done: Callable[[], bool]) -> None:
    leading = asyncio.Event()
    leading.set()
    workers = [asyncio.create_task(work(parts.world, parts.queue, parts.vitals, leading)) for _ in range(2)]
    try:
        for _ in range(5000):
            if is_done():
                return
            await asyncio.sleep(0.001)
        pytest.fail("not done in 5 s")
    finally:
        for worker in workers:
            worker.cancel()


async def test_events_become_records_and_keys() -> None:
    parts = Parts()
    await on_change(type="ADDED", event={"object": a_stored_model()}, memo=parts.desk)
    assert parts.queue.take(0) == Key("default", "flowers")
    await on_child_change(type="MODIFIED", event={"object": a_pod()}, memo=parts.desk)
    assert parts.queue.take(0) is None
    assert parts.queue.seconds_to_next(time.monotonic()) == pytest.approx(0.2, abs=0.1)
    await on_child_change(type="DELETED", event={"object": a_pod()}, memo=parts.desk)
    assert parts.ledger.list_pods(Key("default", "flowers")) == []


async def test_the_same_state_again_is_no_work() -> None:
    parts = Parts()
    for _ in range(2):
        await on_change(type="MODIFIED", event={"object": a_stored_model()}, memo=parts.desk)
    assert parts.queue.take(0) is not None
    assert parts.queue.take(0) is None
    assert len(parts.queue) == 0


async def test_a_model_that_makes_the_operator_fail_stops_no_other() -> None:
    parts = Parts()
    parts.add(a_stored_model("bad"))
    parts.add(a_stored_model("good", uid="uid-good"))
    good_apply = parts.kube.apply

    async def apply(body: dict[str, Any], manager: str, subresource: str = "") -> dict[str, Any]:
        if body["metadata"]["name"] == "bad":
            raise RuntimeError("a defect of ours")
        return await good_apply(body, manager, subresource)

    parts.kube.apply = apply  # type: ignore[method-assign]
    parts.queue.add(Key("default", "bad"))
    parts.queue.add(Key("default", "good"))
    await run_until(parts, lambda: ("Deployment", "default", "good") in parts.kube.objects)
    assert parts.vitals.reconciles["crash"] >= 1


async def test_nobody_works_before_leading() -> None:
    parts = Parts()
    parts.add(a_stored_model())
    parts.queue.add(Key("default", "flowers"))
    worker = asyncio.create_task(work(parts.world, parts.queue, parts.vitals, asyncio.Event()))
    await asyncio.sleep(0.01)
    worker.cancel()
    assert parts.kube.calls == []


async def test_a_failing_api_server_means_back_off_and_then_success() -> None:
    parts = Parts()
    parts.add(a_stored_model())
    parts.kube.fail("*", "*", 503, times=3)
    parts.queue.add(Key("default", "flowers"))
    await run_until(parts, lambda: ("Deployment", "default", "flowers") in parts.kube.objects)
    assert parts.vitals.reconciles["error"] >= 1


async def test_a_ghost_is_found_after_a_relist_even_if_it_was_the_last_of_its_kind() -> None:
    parts = Parts()
    parts.add(a_stored_model("ghost"))
    parts.kube.remove("TorchModel", "default", "ghost")
    parts.resync.note_relist("torchmodels")
    assert parts.resync.due_resources() == []
    parts.now += RELIST_SETTLE_S
    assert parts.resync.due_resources() == [MODELS]
    await parts.resync.sweep(MODELS)
    assert parts.ledger.get_model(Key("default", "ghost")) is None
    assert parts.queue.take(0) == Key("default", "ghost")


async def test_everything_is_swept_now_and_then() -> None:
    parts = Parts()
    assert parts.resync.due_resources() == []
    parts.now += FULL_SWEEP_S
    assert parts.resync.due_resources() == list(WATCHED)
    assert parts.resync.due_resources() == []


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "install the CRD"), (403, "the chart's role"), (401, "token is not accepted")],
)
async def test_what_is_missing_at_the_start_is_said(status: int, words: str) -> None:
    parts = Parts()
    parts.kube.fail("list", "TorchModel", status)
    with pytest.raises(KubeError, match=words):
        await parts.resync.fill()


def test_kopf_writes_nothing() -> None:
    registry, settings = make_registry(), make_settings()
    assert not registry._changing.get_all_handlers()
    assert not registry._spawning.get_all_handlers()
    assert not registry._indexing.get_all_handlers()
    assert len(list(registry._watching.get_all_handlers())) == 6
    assert not settings.posting.enabled
    assert settings.scanning.disabled
    assert kopf.get_default_registry()._watching.get_all_handlers() == []


async def test_probes() -> None:
    parts = Parts()
    app = make_app(parts.vitals, lambda: {"leading": 1.0})
    async with TestClient(TestServer(app)) as client:

        async def ask(path: str) -> tuple[int, str]:
            async with client.get(path) as response:
                return response.status, await response.text()

        assert (await ask("/readyz"))[0] == 503
        parts.vitals.is_filled = True
        parts.vitals.note_request("pods", is_watch=True)
        assert await ask("/readyz") == (503, "not watching torchmodels\n")
        parts.vitals.note_request("torchmodels", is_watch=True)
        assert (await ask("/readyz"))[0] == 200
        assert (await ask("/healthz"))[0] == 200
        parts.now += STREAM_SILENCE_S + 1
        parts.vitals.note_request("pods", is_watch=True)
        assert await ask("/healthz") == (503, "no watch of torchmodels\n")
        assert await ask("/metrics") == (200, "torchmodel_operator_leading 1.0\n")
    assert isinstance(app, web.Application)
