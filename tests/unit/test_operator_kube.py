"""The one speaker to the API server, against a server that misbehaves: what is repeated, what is not, what is said."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration
from testkit.loopback import serve_app
from torchmodel_operator import kube
from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import DEPLOYMENTS, LEASES, MODELS, PODS, SERVICES, AioKube, TokenBucket, list_all

BODY = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "flowers", "namespace": "default"}}


@asynccontextmanager
async def api_server(
    answer: Callable[[web.Request, int], web.StreamResponse],
) -> AsyncIterator[tuple[AioKube, list[Any]]]:
    """An AioKube on a server that answers the n-th request with `answer(request, n)`; the requests so far."""
    requests: list[Any] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        requests.append((request, await request.text()))
        return answer(request, len(requests))

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handle)
    async with serve_app(app) as port:
        configuration = Configuration(host=f"http://127.0.0.1:{port}")
        configuration.api_key["BearerToken"] = "bearer secret"
        client = AioKube(ApiClient(configuration), TokenBucket(1000, 1000), time.monotonic)
        try:
            yield client, requests
        finally:
            await client.close()


def refusal(status: int, message: str = "no", **headers: str) -> web.Response:
    return web.json_response({"kind": "Status", "message": message}, status=status, headers=headers)


@pytest.mark.parametrize(
    ("resource", "namespace", "name", "subresource", "path"),
    [
        (PODS, "a", "b", "", "/api/v1/namespaces/a/pods/b"),
        (PODS, None, "", "", "/api/v1/pods"),
        (DEPLOYMENTS, "a", "", "", "/apis/apps/v1/namespaces/a/deployments"),
        (MODELS, "a", "b", "status", "/apis/serving.torchmodel.dev/v1alpha1/namespaces/a/torchmodels/b/status"),
    ],
)
def test_paths(resource: kube.Resource, namespace: str | None, name: str, subresource: str, path: str) -> None:
    assert resource.path(namespace, name, subresource) == path


async def test_apply_is_a_forced_server_side_apply_by_the_manager_with_the_token() -> None:
    async with api_server(lambda *_: web.json_response(BODY)) as (client, requests):
        assert await client.apply(BODY, "me", "status") == BODY
        ((request, text),) = requests
        assert (request.method, request.path) == ("PATCH", "/api/v1/namespaces/default/services/flowers/status")
        assert dict(request.query) == {"fieldManager": "me", "force": "true"}
        assert request.headers["Content-Type"] == "application/apply-patch+yaml"
        assert request.headers["Authorization"] == "bearer secret"
        assert "flowers" in text


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_call_that_may_be_repeated_is(status: int) -> None:
    async with api_server(lambda _, n: refusal(status) if n < 3 else web.json_response(BODY)) as (client, requests):
        assert await client.apply(BODY, "me") == BODY
        assert len(requests) == 3


async def test_it_is_repeated_only_so_often() -> None:
    async with api_server(lambda *_: refusal(503, "overloaded")) as (client, requests):
        with pytest.raises(KubeError, match="overloaded") as raised:
            await client.get(SERVICES, "default", "flowers")
        assert raised.value.is_retryable
        assert len(requests) == 3


@pytest.mark.parametrize("status", [400, 403, 409, 422])
async def test_what_would_fail_again_is_not_repeated(status: int) -> None:
    async with api_server(lambda *_: refusal(status, "denied by policy")) as (client, requests):
        with pytest.raises(KubeError, match="denied by policy") as raised:
            await client.apply(BODY, "me")
        assert raised.value.status == status
        assert len(requests) == 1


async def test_what_may_not_be_repeated_is_not() -> None:
    async with api_server(lambda *_: refusal(503)) as (client, requests):
        with pytest.raises(KubeError):
            await client.create(SERVICES, BODY)
        with pytest.raises(KubeError):
            await client.replace(SERVICES, BODY)
        assert len(requests) == 2


async def test_a_long_retry_after_is_left_to_the_queue() -> None:
    async with api_server(lambda *_: refusal(429, **{"Retry-After": "30"})) as (client, requests):
        with pytest.raises(KubeError) as raised:
            await client.get(SERVICES, "default", "flowers")
        assert raised.value.retry_after_s == 30
        assert len(requests) == 1


async def test_absent_is_none_and_deleting_what_is_gone_is_fine() -> None:
    async with api_server(lambda *_: refusal(404)) as (client, requests):
        assert await client.get(SERVICES, "default", "flowers") is None
        await client.delete(SERVICES, "default", "flowers", "uid-1")
        assert '"uid": "uid-1"' in requests[-1][1]


async def test_no_answer_is_a_retryable_error() -> None:
    async with api_server(lambda *_: web.json_response(BODY)) as (client, _):
        client._client.configuration.host = "http://127.0.0.1:1"
        with pytest.raises(KubeError, match="no answer") as raised:
            await client.get(SERVICES, "default", "flowers")
        assert raised.value.is_retryable
        assert raised.value.status == 0


async def test_all_pages_of_a_list_are_read() -> None:
    def answer(request: web.Request, n: int) -> web.Response:
        more = {"continue": "next"} if n == 1 else {}
        item = {"metadata": {"name": f"flowers-{n}"}}
        assert (request.query.get("continue") == "next") is (n == 2)
        assert request.query["labelSelector"] == "a=b"
        return web.json_response({"metadata": {"resourceVersion": "7", **more}, "items": [item]})

    async with api_server(answer) as (client, _):
        items, version = await list_all(client, PODS, None, "a=b")
        assert [(item["kind"], item["metadata"]["name"]) for item in items] == [
            ("Pod", "flowers-1"),
            ("Pod", "flowers-2"),
        ]
        assert version == 7


async def test_the_lease_does_not_wait_behind_the_queue() -> None:
    async with api_server(lambda *_: web.json_response(BODY)) as (client, _):
        client._bucket = TokenBucket(0.001, 0)
        began = time.monotonic()
        await client.get(LEASES, "system", "lease")
        assert time.monotonic() - began < 5


def test_the_bucket_lets_a_burst_through_and_then_spreads_calls() -> None:
    bucket = TokenBucket(rate=10, burst=2)
    assert [bucket.reserve(100.0) for _ in range(4)] == pytest.approx([0, 0, 0.1, 0.2])
    assert bucket.reserve(101.0) == 0
