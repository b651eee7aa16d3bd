"""The gRPC port: Open Inference Protocol V2, and gRPC's own health service. Imported and made by `__main__` where
serving.grpc.enabled says so; knows grpc, and `server`.

Inference goes to `Server.answer` as a dialect like the others, so that limits, batches, deadlines, metrics and the log are the
same (docs/design/0003-grpc-as-a-dialect.md). A ModelInfer is registered as a stream of requests, which on the wire is the same as
one: so it is our code that waits for the message, for so long as serving.limits.bodyTimeoutSeconds, and draining knows of it.
Messages reach us as bytes; `codec` reads those of ModelInfer, since it may do so in another process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from importlib.metadata import version
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from multidict import CIMultiDict

from torchmodel_runtime import errors
from torchmodel_runtime.codec import v2messages
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.ports import catalogue
from torchmodel_runtime.ports.listener import check_free
from torchmodel_runtime.protos import open_inference_pb2 as oip
from torchmodel_runtime.protos.health_pb2 import HealthCheckRequest, HealthCheckResponse
from torchmodel_runtime.server import VERSION, Server
from torchmodel_runtime.startup import LoadedModel
from torchmodel_runtime.telemetry import REQUEST_ID

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[bytes, bytes]

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"

LIVE = "live"
"""As a service of the health check: whether the process is there at all. Every other name asks whether it is ready."""

MAX_CONNECTION_AGE_S = 300
"""A client's connection is renewed after so long, between two of its requests: a channel has one connection, and would stay with
one replica and one process for good. A guess; the transport varies it by a tenth."""
MIN_PING_INTERVAL_S = 10
"""A client that asks more often whether its connection lives is sent away; by default every five minutes is too often."""
MAX_DETAILS = 1000
"""Characters of an error's sentence: it travels as a header, of which clients take 8 KiB in all."""

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,  # as gRPC itself says of a message that is too large
    429: grpc.StatusCode.UNAVAILABLE,  # gRPC's own mapping, and Triton's: come again; RESOURCE_EXHAUSTED is not retried
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""By the status that the same error has over HTTP."""

_NOT_HERE = {
    "ModelStatistics": catalogue.NOT_HERE["stats"],
    "RepositoryModelLoad": catalogue.NOT_HERE["load"],
    "RepositoryModelUnload": catalogue.NOT_HERE["load"],
    "ModelStreamInfer": "requests are not streamed; call ModelInfer for each",
    "SystemSharedMemoryStatus": "no shared memory is read; send tensors in the request",
    "SystemSharedMemoryRegister": "no shared memory is read; send tensors in the request",
    "SystemSharedMemoryUnregister": "no shared memory is read; send tensors in the request",
    "CudaSharedMemoryStatus": "no shared memory is read; send tensors in the request",
    "CudaSharedMemoryRegister": "no shared memory is read; send tensors in the request",
    "CudaSharedMemoryUnregister": "no shared memory is read; send tensors in the request",
    "TraceSetting": "traces are set in the TorchModel resource, serving.telemetry",
    "LogSettings": "logs are set in the TorchModel resource, serving.telemetry",
}
"""What Triton's clients can ask for and this server does not do, and what to do instead."""

_Request = TypeVar("_Request", bound=Message)


class GrpcPort:
    """The gRPC port of one process."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._config = server.config
        self._transport: grpc.aio.Server | None = None
        self._closing = asyncio.Event()

    async def open(self, *, shared: bool) -> None:
        """Listen; OSError when the address cannot be had. shared: another process of ours listens there already."""
        host, port = self._config.host, self._config.grpc_port
        if not shared:
            check_free(host, port)
        self._transport = grpc.aio.server(options=_options(self._config))
        self._transport.add_generic_rpc_handlers((_Methods(self._handlers(), self._not_here),))
        try:
            self._transport.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from error
        await self._transport.start()

    async def close(self) -> None:
        """Send clients elsewhere, and end when what was taken is answered. Requests on their way meanwhile are not failed: the
        transport tells the client that nobody has seen them."""
        self._closing.set()
        if self._transport is not None:
            # one second more than `Server.drain` waits, so that it is drain which says that it took too long
            await self._transport.stop(self._config.serving.drain_timeout_seconds + 1)

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        return {
            f"/{SERVICE}/ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            f"/{SERVICE}/ServerLive": self._unary(oip.ServerLiveRequest, self._server_live),
            f"/{SERVICE}/ServerReady": self._unary(oip.ServerReadyRequest, self._server_ready),
            f"/{SERVICE}/ModelReady": self._unary(oip.ModelReadyRequest, self._model_ready),
            f"/{SERVICE}/ServerMetadata": self._unary(oip.ServerMetadataRequest, self._server_metadata),
            f"/{SERVICE}/ModelMetadata": self._unary(oip.ModelMetadataRequest, self._model_metadata),
            f"/{SERVICE}/ModelConfig": self._unary(oip.ModelConfigRequest, self._model_config),
            f"/{SERVICE}/RepositoryIndex": self._unary(oip.RepositoryIndexRequest, self._repository_index),
            f"/{HEALTH}/Check": self._unary(HealthCheckRequest, self._check_health),
            f"/{HEALTH}/Watch": grpc.unary_stream_rpc_method_handler(self._watch_health),
        }

    # --- inference ---

    async def _infer(self, _: AsyncIterator[bytes], context: Context) -> bytes:
        headers = _headers(context)
        return _finish(context, await self._server.answer("grpc", headers, self._read(headers, context)))

    async def _read(self, headers: Mapping[str, str], context: Context) -> Call:
        """The whole message; what can be refused without it is refused before."""
        timeout_s = context.time_remaining()
        self._server.admit(self._config.name, None)
        limits = self._config.serving.limits
        try:
            async with asyncio.timeout(limits.body_timeout_seconds):
                body = await context.read()
        except TimeoutError:
            raise errors.body_too_slow(limits.body_timeout_seconds) from None
        if not isinstance(body, bytes):
            limit = self._config.serving.grpc.max_message_bytes
            raise errors.too_large(
                f"there was no message, or none of at most {limit} bytes (serving.grpc.maxMessageBytes)"
            )
        model, wanted_version = v2messages.read_model(body)
        return Call("grpc", model, body, headers, "application/grpc", wanted_version, timeout_s)

    # --- what is served, and whether ---

    def _server_live(self, _: oip.ServerLiveRequest) -> oip.ServerLiveResponse:
        return oip.ServerLiveResponse(live=True)

    def _server_ready(self, _: oip.ServerReadyRequest) -> oip.ServerReadyResponse:
        return oip.ServerReadyResponse(ready=self._server.ready)

    def _model_ready(self, request: oip.ModelReadyRequest) -> oip.ModelReadyResponse:
        self._server.check_name(request.name, request.version or None)
        return oip.ModelReadyResponse(ready=self._server.ready)

    def _server_metadata(self, _: oip.ServerMetadataRequest) -> oip.ServerMetadataResponse:
        return oip.ServerMetadataResponse(**catalogue.server_metadata(version("torchmodel-operator")))

    def _model_metadata(self, request: oip.ModelMetadataRequest) -> oip.ModelMetadataResponse:
        model = self._model(request.name, request.version)
        told = catalogue.model_metadata(self._config.name, VERSION, model.task.signature, model.report)
        tensor = oip.ModelMetadataResponse.TensorMetadata
        return oip.ModelMetadataResponse(
            name=told["name"],
            versions=told["versions"],
            platform=told["platform"],
            inputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in told["inputs"]],
            outputs=[tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in told["outputs"]],
        )

    def _model_config(self, request: oip.ModelConfigRequest) -> oip.ModelConfigResponse:
        model = self._model(request.name, request.version)
        told = catalogue.model_config(self._config.name, model.task.signature, model.report)
        return oip.ModelConfigResponse(config=oip.ModelConfig(**told))

    def _repository_index(self, request: oip.RepositoryIndexRequest) -> oip.RepositoryIndexResponse:
        index = catalogue.repository_index(
            self._config.name, VERSION, ready=self._server.ready, only_ready=request.ready
        )
        entry = oip.RepositoryIndexResponse.ModelIndex
        return oip.RepositoryIndexResponse(models=[entry(**model) for model in index])

    def _model(self, name: str, wanted_version: str) -> LoadedModel:
        """RequestError 404 for another, 503 while it is loading."""
        self._server.check_name(name, wanted_version or None)
        if self._server.model is None:
            raise errors.unavailable(f"model {self._config.name!r} is still loading")
        return self._server.model

    # --- gRPC's health service ---

    def _check_health(self, request: HealthCheckRequest) -> HealthCheckResponse:
        status = self._health(request.service)
        if status == HealthCheckResponse.SERVICE_UNKNOWN:
            raise errors.not_found(f"no service {request.service[:100]!r}; there are '', {SERVICE!r} and {LIVE!r}")
        return HealthCheckResponse(status=status)

    async def _watch_health(self, body: bytes, context: Context) -> AsyncIterator[bytes]:
        """The status now, then every change of it, until the port closes."""
        try:
            service = v2messages.parse(HealthCheckRequest, body).service
        except RequestError as error:
            _finish(context, self._server.refuse("grpc", error))
            return
        told: HealthCheckResponse.ServingStatus | None = None
        closing = asyncio.create_task(self._closing.wait())
        try:
            while True:
                turned = self._server.turned
                if (status := self._health(service)) != told:
                    told = status
                    yield HealthCheckResponse(status=status).SerializeToString()
                if self._closing.is_set():
                    return
                turning = asyncio.create_task(turned.wait())
                await asyncio.wait((turning, closing), return_when=asyncio.FIRST_COMPLETED)
                turning.cancel()
        finally:
            closing.cancel()

    def _health(self, service: str) -> HealthCheckResponse.ServingStatus:
        if service == LIVE:
            return HealthCheckResponse.SERVING
        if service not in ("", SERVICE):
            return HealthCheckResponse.SERVICE_UNKNOWN
        return HealthCheckResponse.SERVING if self._server.ready else HealthCheckResponse.NOT_SERVING

    # --- around them ---

    def _unary(
        self, kind: type[_Request], answer: Callable[[_Request], Message]
    ) -> grpc.RpcMethodHandler[bytes, bytes]:
        """One message in, one out; errors as a status."""

        async def handle(body: bytes, context: Context) -> bytes:
            try:
                return answer(v2messages.parse(kind, body)).SerializeToString()
            except RequestError as error:
                refused = self._server.refuse("grpc", error)
            except Exception:
                logger.exception("a request failed inside the server", extra={"fields": {"message": kind.__name__}})
                refused = self._server.refuse("grpc", errors.internal())
            refused.headers[REQUEST_ID] = self._server.telemetry.request_id(_headers(context))
            return _finish(context, refused)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _not_here(self, method: str) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Whatever else is called: a sentence instead of nothing."""

        async def refuse(_requests: AsyncIterator[bytes], context: Context) -> bytes:
            service, _, name = method.strip("/").partition("/")
            sentence = _NOT_HERE.get(name) if service == SERVICE else None
            if sentence is None:
                sentence = f"no method {method[:200]}; there are {SERVICE} and {HEALTH}"
            return _finish(context, self._server.refuse("grpc", RequestError(501, "NOT_IMPLEMENTED", sentence)))

        return grpc.stream_unary_rpc_method_handler(refuse)


class _Methods(grpc.GenericRpcHandler):
    """What gRPC asks for the handler of a method."""

    def __init__(
        self,
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]],
        otherwise: Callable[[str], grpc.RpcMethodHandler[bytes, bytes]],
    ) -> None:
        self._handlers = handlers
        self._otherwise = otherwise

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler; every method has one."""
        return self._handlers.get(details.method) or self._otherwise(details.method)


def _options(config: Any) -> list[tuple[str, int]]:
    """Of the transport (grpc_types.h of gRPC's core says what each means)."""
    serving = config.serving
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", serving.grpc.max_message_bytes),  # inflated, where it came compressed
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", serving.limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", serving.limits.max_header_bytes),
        ("grpc.max_connection_idle_ms", serving.limits.idle_timeout_seconds * 1000),
        ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_S * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _headers(context: Context) -> CIMultiDict[str]:
    """What the client sent beside the message; values in bytes, whose names end in -bin, are nothing we read."""
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers.add(name, value)
    return headers


def _finish(context: Context, answer: Answer) -> bytes:
    """The message to send; of an error its status instead."""
    trailing = [(name.lower(), value) for name, value in answer.headers.items()]
    if answer.status == 200:
        context.set_trailing_metadata(tuple(trailing))
        return answer.body
    retry_after_s = answer.headers.get("Retry-After")
    if retry_after_s is not None:
        # what gRPC's own retries go by (gRFC A6); the other is what HTTP says, for those who write their own
        trailing.append(("grpc-retry-pushback-ms", f"{retry_after_s}000"))
    context.set_trailing_metadata(tuple(trailing))
    details = answer.body.decode()
    context.set_code(code_of(answer.status))
    context.set_details(details if len(details) <= MAX_DETAILS else f"{details[:MAX_DETAILS]}...")
    return b""


def code_of(status: int) -> grpc.StatusCode:
    """gRPC's code for the status that the same error has over HTTP."""
    if status in _CODES:
        return _CODES[status]
    return grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL
