"""What a replica says of itself: which one is asked, how often, and that nothing it answers can do harm."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from testkit.loopback import serve_app
from testkit.manifests import a_pod
from torchmodel_operator.observed import PodFacts, observe_pod
from torchmodel_operator.report import FIRST_RETRY_S, HttpReports, choose_pod, parse_report

PARAMETERS = {
    "sha256": "a" * 64,
    "uri": "s3://models/flowers.pth",
    "sizeBytes": 1,
    "format": "safetensors",
    "device": "cpu",
    "loadSafety": "weights-only",
    "coldStart": {"fetchSeconds": 1, "importSeconds": 1, "loadSeconds": 1, "warmUpSeconds": 1},
    "batching": {"enabled": True, "maxSize": 2, "reason": ""},
}


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def a_replica(
    answer: Callable[[], web.StreamResponse],
) -> AsyncIterator[tuple[HttpReports, Clock, list[str], PodFacts]]:
    """Reports on a server that plays the pod; what it was asked so far."""
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return answer()

    app = web.Application()
    app.router.add_get("/{path:.*}", handle)
    clock = Clock()
    pod = observe_pod(a_pod(is_ready=True, podIP="127.0.0.1"))
    async with serve_app(app) as port, aiohttp.ClientSession() as session:
        yield HttpReports(session, clock, port), clock, asked, pod


async def test_a_pod_is_asked_once() -> None:
    async with a_replica(lambda: web.json_response({"parameters": PARAMETERS})) as (reports, _, asked, pod):
        for _ in range(3):
            reading = await reports.read("flowers", [pod])
            assert reading.report is not None
            assert reading.report.sha256 == "a" * 64
            assert reading.retry_s is None
        assert asked == ["/v2/models/flowers"]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: web.Response(status=503), id="an error"),
        pytest.param(lambda: web.Response(status=302, headers={"Location": "http://127.0.0.1:1/"}), id="a redirection"),
        pytest.param(lambda: web.Response(text="hello"), id="no JSON"),
        pytest.param(lambda: web.json_response({"parameters": {"sha256": "x"}}), id="another document"),
        pytest.param(lambda: web.json_response([1]), id="a list"),
        pytest.param(lambda: web.Response(body=b" " * (1 << 21)), id="too much"),
    ],
)
async def test_an_answer_that_is_no_report_is_none_and_asked_for_less_and_less_often(
    answer: Callable[[], web.StreamResponse],
) -> None:
    async with a_replica(answer) as (reports, clock, asked, pod):
        assert await reports.read("flowers", [pod]) == (None, FIRST_RETRY_S)
        assert await reports.read("flowers", [pod]) == (None, FIRST_RETRY_S)
        assert len(asked) == 1
        clock.now += FIRST_RETRY_S
        assert await reports.read("flowers", [pod]) == (None, 2 * FIRST_RETRY_S)
        assert len(asked) == 2


async def test_a_pod_that_cannot_be_reached_is_none() -> None:
    async with a_replica(lambda: web.Response()) as (reports, _, _, pod):
        reports._port = 1
        assert (await reports.read("flowers", [pod])).report is None


def test_the_pod_that_is_asked_for_its_report_is_always_the_same() -> None:
    pods = [
        observe_pod(a_pod("c", created="2026-01-01T00:00:05Z", is_ready=True)),
        observe_pod(a_pod("b", is_ready=True)),
        observe_pod(a_pod("a")),
        observe_pod(a_pod("d", is_ready=True)),
    ]
    for order in (pods, pods[::-1]):
        chosen = choose_pod(order)
        assert chosen is not None
        assert chosen.identity.name == "b"
    assert choose_pod([]) is None


def test_a_report_of_a_newer_runtime_is_read() -> None:
    data = (
        b'{"name":"flowers","parameters":{"sha256":"'
        + b"a" * 64
        + b'","uri":"u","sizeBytes":1,"format":"f","device":"cpu",'
        b'"loadSafety":"weights-only","coldStart":{"fetchSeconds":1,"importSeconds":1,"loadSeconds":1,"warmUpSeconds":1},'
        b'"batching":{"enabled":true,"maxSize":2,"reason":""},"somethingNew":{"a":1}}}'
    )
    assert parse_report(data).sha256 == "a" * 64
