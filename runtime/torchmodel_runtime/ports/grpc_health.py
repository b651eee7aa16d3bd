"""gRPC's health service, as Kubernetes' gRPC probes and Envoy ask it: whether the server is ready, or there at all.

Made by `grpc_v2`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc

from torchmodel_runtime import errors
from torchmodel_runtime.codec.v2messages import parse
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.ports.grpc_status import Context, Handler, finish, make_handler
from torchmodel_runtime.ports.grpc_told import SERVICE
from torchmodel_runtime.protos.health_pb2 import HealthCheckRequest, HealthCheckResponse
from torchmodel_runtime.server import Server

HEALTH = "grpc.health.v1.Health"

LIVE = "live"
"""As the service that is asked for: whether the process is there, for a liveness probe. The other names ask for readiness."""


class Health:
    """The service over one server."""

    def __init__(self, server: Server, closing: asyncio.Event) -> None:
        self._server = server
        self._closing = closing
        """Set when the port closes."""

    def handlers(self) -> dict[str, Handler]:
        """By method."""
        return {
            f"/{HEALTH}/Check": make_handler(self._server, HealthCheckRequest, self._check),
            f"/{HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }

    def _check(self, request: HealthCheckRequest) -> HealthCheckResponse:
        status = self._status(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise errors.not_found(f"no service {request.service[:100]!r}; there are '', {SERVICE!r} and {LIVE!r}")
        return HealthCheckResponse(status=status)

    async def _watch(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        """The status now, then every change of it, until the port closes."""
        try:
            service = parse(HealthCheckRequest, body).service
        except RequestError as error:
            await finish(context, self._server.refuse("grpc", error))
            return
        told: HealthCheckResponse.ServingStatus | None = None
        while True:
            turned = self._server.turned
            if (status := self._status(service)) != told:
                told = status
                yield HealthCheckResponse(status=status).SerializeToString()
            if self._closing.is_set():
                return
            await _wait_for_either(turned, self._closing)

    def _status(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service == LIVE:
            return HealthCheckResponse.SERVING
        if service not in ("", SERVICE):
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._server.ready else HealthCheckResponse.NOT_SERVING


async def _wait_for_either(one: asyncio.Event, other: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in (one, other)]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
