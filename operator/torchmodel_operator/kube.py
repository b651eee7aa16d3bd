"""The only room that speaks to the API server (kopf's own watches aside): a small protocol and its one implementation.

Called by `reconcile`, `children`, `lease`, `recorder` and `resync`. Objects are plain dicts; the typed models of the client
cost ten times the time and memory. Writes are server-side applies with force, so a write says the whole of what we want and
another writer's fields stay. Every call has a timeout, calls are limited in rate, and those that may be repeated are.
"""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from torchmodel_operator import spec
from torchmodel_operator.errors import KubeError

Body = dict[str, Any]

CALL_TIMEOUT_S = 10.0
ATTEMPTS = 3
FIRST_RETRY_S = 0.2
MAX_RETRY_AFTER_S = 5.0
"""A longer Retry-After is left to the queue's back-off, so that a worker is not held."""
PAGE_SIZE = 500
"""Objects a list call returns: bounds the memory that decoding takes to some 13 MiB."""


class Resource(NamedTuple):
    """A kind, as URLs name it."""

    api_version: str
    kind: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of a list when there is no name; namespace None is the whole cluster."""
        root = "/apis" if "/" in self.api_version else "/api"
        parts = [root, self.api_version, *(["namespaces", namespace] if namespace else []), self.plural]
        parts += [quote(part, safe="") for part in (name, subresource) if part]
        return "/".join(parts)


MODELS = Resource(spec.API_VERSION, spec.KIND, spec.PLURAL)
DEPLOYMENTS = Resource("apps/v1", "Deployment", "deployments")
SERVICES = Resource("v1", "Service", "services")
BUDGETS = Resource("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
SERVICE_ACCOUNTS = Resource("v1", "ServiceAccount", "serviceaccounts")
PODS = Resource("v1", "Pod", "pods")
LEASES = Resource("coordination.k8s.io/v1", "Lease", "leases")
EVENTS = Resource("events.k8s.io/v1", "Event", "events")

CHILDREN = (SERVICE_ACCOUNTS, SERVICES, DEPLOYMENTS, BUDGETS)
WATCHED = (MODELS, *CHILDREN, PODS)
BY_KIND: Mapping[str, Resource] = {resource.kind: resource for resource in WATCHED}


class Page(NamedTuple):
    """Some objects of a list; `version` is the list's resourceVersion, `next_page` is empty on the last page."""

    items: list[Body]
    version: int
    next_page: str


class KubeApi(Protocol):
    """What the operator asks of the API server. Every method raises KubeError when it fails."""

    async def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        """The object, or None when there is none."""
        ...

    async def list_page(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", page: str = ""
    ) -> Page:
        """One page of the objects that match the selectors; namespace None is the whole cluster."""
        ...

    async def apply(self, body: Body, manager: str, subresource: str = "") -> Body:
        """Server-side apply with force; the object as it is then."""
        ...

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        """Delete that very object; one that is gone already is no error."""
        ...

    async def create(self, resource: Resource, body: Body) -> Body:
        """Create; KubeError with status 409 when the name is taken."""
        ...

    async def replace(self, resource: Resource, body: Body) -> Body:
        """Replace; KubeError with status 409 when metadata.resourceVersion is not the newest."""
        ...


class TokenBucket:
    """Limits calls to `rate` a second, with bursts of `burst`. Takes the time (monotonic seconds) and never sleeps."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst, self._tokens, self._at = rate, burst, burst, 0.0

    def reserve(self, now: float) -> float:
        """Take one call; returns how many seconds to wait before making it."""
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._at) * self._rate)
        self._at = max(self._at, now)
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)


class AioKube:
    """KubeApi on `kubernetes.aio`'s ApiClient: its credentials and connection pool, none of its models."""

    def __init__(self, client: ApiClient, bucket: TokenBucket, clock: Callable[[], float]) -> None:
        self._client, self._bucket, self._clock = client, bucket, clock
        self.calls: dict[tuple[str, str], int] = {}
        """Requests sent, by HTTP method and resource; /metrics shows them."""

    @property
    def host(self) -> str:
        """Address of the API server."""
        return str(self._client.configuration.host)

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """How the API server is known, and this client to it where it has a certificate."""
        context: ssl.SSLContext = self._client.rest_client.ssl_context
        return context

    async def authorization(self) -> str | None:
        """The newest token, as the header Authorization wants it; None where there is none."""
        setting = (await self._client.configuration.auth_settings()).get("BearerToken")
        return setting["value"] if setting else None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        try:
            return await self._call("GET", resource, resource.path(namespace, name))
        except KubeError as error:
            if error.status == 404:
                return None
            raise

    async def list_page(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", page: str = ""
    ) -> Page:
        query = {"limit": str(PAGE_SIZE), "labelSelector": labels, "fieldSelector": fields, "continue": page}
        answer = await self._call("GET", resource, resource.path(namespace), {k: v for k, v in query.items() if v})
        metadata = answer.get("metadata", {})
        items = [
            {"kind": resource.kind, "apiVersion": resource.api_version, **item} for item in answer.get("items", [])
        ]
        return Page(items, int(metadata.get("resourceVersion") or 0), metadata.get("continue", ""))

    async def apply(self, body: Body, manager: str, subresource: str = "") -> Body:
        resource, metadata = BY_KIND[body["kind"]], body["metadata"]
        path = resource.path(metadata["namespace"], metadata["name"], subresource)
        query = {"fieldManager": manager, "force": "true"}
        return await self._call("PATCH", resource, path, query, body, "application/apply-patch+yaml")

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._call("DELETE", resource, resource.path(namespace, name), body=options)
        except KubeError as error:
            if error.status not in (404, 409):
                raise

    async def create(self, resource: Resource, body: Body) -> Body:
        return await self._call("POST", resource, resource.path(body["metadata"]["namespace"]), body=body)

    async def replace(self, resource: Resource, body: Body) -> Body:
        metadata = body["metadata"]
        return await self._call("PUT", resource, resource.path(metadata["namespace"], metadata["name"]), body=body)

    async def _call(
        self,
        method: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Body | None = None,
        content_type: str = "application/json",
    ) -> Body:
        """Send, and again after a failure that may pass if the call may be repeated: all but POST and PUT may."""
        attempts = 1 if method in ("POST", "PUT") else ATTEMPTS
        for attempt in range(attempts):
            if resource is not LEASES:  # leadership must not wait behind the queue
                await asyncio.sleep(self._bucket.reserve(self._clock()))
            try:
                return await self._send(method, resource, path, query, body, content_type)
            except KubeError as error:
                wait_s = error.retry_after_s or FIRST_RETRY_S * 2**attempt * random.uniform(0.5, 1.5)  # noqa: S311  spread
                is_last = attempt + 1 == attempts or wait_s > MAX_RETRY_AFTER_S
                if is_last or not error.is_retryable or error.status == 409:
                    raise
                await asyncio.sleep(wait_s)
        raise AssertionError("the loop returns or raises")

    async def _send(
        self,
        method: str,
        resource: Resource,
        path: str,
        query: Mapping[str, str] | None,
        body: Body | None,
        content_type: str,
    ) -> Body:
        self.calls[method, resource.plural] = self.calls.get((method, resource.plural), 0) + 1
        target = f"{path}?{urlencode(query)}" if query else path
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            sent = await self._client.param_serialize(
                method, target, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = await self._client.call_api(*sent, _request_timeout=CALL_TIMEOUT_S)
            data = await response.read()
        except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError) as error:
            raise KubeError(f"{method} {path}: no answer: {error or type(error).__name__}") from error
        if response.status >= 300:
            raise KubeError(f"{method} {path}: {_message_of(data)}", response.status, _retry_after(response.headers))
        return dict(json.loads(data))


def _message_of(data: bytes) -> str:
    """The API server's own words."""
    try:
        return str(json.loads(data)["message"])
    except (ValueError, KeyError, TypeError):
        return data[:500].decode(errors="replace") or "empty answer"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdigit() else None


async def load_configuration(kubeconfig: str) -> Configuration:
    """Address and credentials: from a kubeconfig file, or those of the pod where none is given."""
    configuration = Configuration()
    if kubeconfig:
        await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    else:
        config.load_incluster_config(client_configuration=configuration)
    return configuration


async def connect(kubeconfig: str, qps: float, clock: Callable[[], float]) -> AioKube:
    """The API server that `load_configuration` finds, asked at most `qps` times a second, with bursts of twice that."""
    return AioKube(ApiClient(await load_configuration(kubeconfig)), TokenBucket(qps, 2 * qps), clock)


async def list_all(
    kube: KubeApi, resource: Resource, namespace: str | None, labels: str = ""
) -> tuple[list[Body], int]:
    """All pages together, for callers that keep little of each object; and the list's resourceVersion."""
    items: list[Body] = []
    page = await kube.list_page(resource, namespace, labels=labels)
    version = page.version
    items += page.items
    while page.next_page:
        page = await kube.list_page(resource, namespace, labels=labels, page=page.next_page)
        items += page.items
    return items, version
