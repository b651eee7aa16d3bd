"""The gRPC port: Open Inference Protocol V2, and gRPC's health service. Imported and made by `__main__` where
serving.grpc.enabled says so.

Inference goes to `Server.answer` as a dialect like the others, so that limits, batches, deadlines, metrics and the log are the
same (docs/design/0003-grpc-as-a-dialect.md). ModelInfer is registered as a stream of requests, which on the wire is the same as
one: so it is our code that waits for the message, no longer than serving.limits.bodyTimeoutSeconds, and draining knows of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import grpc
import grpc.aio

from torchmodel_runtime import errors
from torchmodel_runtime.codec.v2messages import read_model
from torchmodel_runtime.config import Serving
from torchmodel_runtime.exchange import Call
from torchmodel_runtime.ports.grpc_health import Health
from torchmodel_runtime.ports.grpc_status import Context, Handler, finish, read_headers
from torchmodel_runtime.ports.grpc_told import SERVICE, Told
from torchmodel_runtime.ports.listener import check_free
from torchmodel_runtime.server import Server

MAX_CONNECTION_AGE_S = 120
"""A client's connection is renewed after so long, between its requests: a channel has one connection, and would stay with one
replica and one process for good. Also the end of clients that do not read their answers. A guess; the transport varies it by
a tenth."""
MIN_PING_INTERVAL_S = 10
"""A client that asks more often whether its connection lives is sent away; by default every five minutes is too often."""
QUIET_S = 0.05
"""A port to which nothing came for so long is quiet: many times what a client on the same network takes to ask again."""
LONGEST_HOLD_S = 0.5
"""Clients that ask without waiting for answers are never quiet."""


class GrpcPort:
    """The gRPC port of one process."""

    def __init__(self, server: Server, max_connection_age_s: int = MAX_CONNECTION_AGE_S) -> None:
        self._server = server
        self._config = server.config
        self._max_connection_age_s = max_connection_age_s
        self._transport: grpc.aio.Server | None = None
        self._closing = asyncio.Event()
        self._refusing = asyncio.Event()
        """From then on the transport takes no request."""
        self._arrived_s = 0.0
        """When the last request came, by the event loop's clock."""

    async def open(self, *, shared: bool) -> None:
        """Listen; OSError when the address cannot be had. shared: another process of ours listens there already."""
        host, port = self._config.host, self._config.grpc_port
        if not shared:
            check_free(host, port)
        told = Told(self._server)
        handlers = {
            f"/{SERVICE}/ModelInfer": grpc.stream_unary_rpc_method_handler(self._infer),
            **told.handlers(),
            **Health(self._server, self._closing).handlers(),
        }
        self._transport = grpc.aio.server(options=_options(self._config.serving, self._max_connection_age_s))
        self._transport.add_generic_rpc_handlers((_Methods(handlers, told.not_here),))
        try:
            self._transport.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(str(error)) from error
        await self._transport.start()

    async def close(self) -> None:
        """Send clients elsewhere, and end when what was taken is answered.

        The transport tells clients that nobody has seen the requests that come from then on. But it cancels those that have come
        and that it has not handed over yet, which is one or more at any moment for as long as clients are at it. So answers are
        held back until clients have nothing more to send, and are given when the transport refuses.
        """
        self._closing.set()
        if self._transport is None:
            return
        loop = asyncio.get_running_loop()
        most_s = loop.time() + LONGEST_HOLD_S
        while (left_s := min(most_s, self._arrived_s + QUIET_S) - loop.time()) > 0:  # noqa: ASYNC110 - no polling: exactly so long
            await asyncio.sleep(left_s)
        # one second more than `Server.drain` waits, so that it is drain which says that it took too long
        stopping = loop.create_task(self._transport.stop(self._config.serving.drain_timeout_seconds + 1))
        await asyncio.sleep(0)  # it has begun
        self._refusing.set()
        await stopping

    async def _infer(self, _: AsyncIterator[bytes], context: Context) -> bytes:
        self._arrived_s = asyncio.get_running_loop().time()
        headers = read_headers(context)
        answer = await self._server.answer("grpc", headers, self._read(headers, context))
        if self._closing.is_set():
            await self._refusing.wait()
        return await finish(context, answer)

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
                f"no message of at most {limit} bytes came (serving.grpc.maxMessageBytes), or none at all"
            )
        name, version = read_model(body)
        return Call("grpc", name, body, headers, "application/grpc", version, timeout_s)


class _Methods(grpc.GenericRpcHandler):
    """Where the transport finds the handler of a method; each has one."""

    def __init__(self, handlers: dict[str, Handler], otherwise: Callable[[str], Handler]) -> None:
        self._handlers = handlers
        self._otherwise = otherwise

    def service(self, details: grpc.HandlerCallDetails) -> Handler:
        """By the method's path."""
        return self._handlers.get(details.method) or self._otherwise(details.method)


def _options(serving: Serving, max_connection_age_s: int) -> list[tuple[str, int]]:
    """Of the transport; gRPC's core says in channel_arg_names.h what each means."""
    limits = serving.limits
    longest_s = serving.request_timeout_seconds + limits.body_timeout_seconds
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", serving.grpc.max_message_bytes),  # inflated, where it came compressed
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
        ("grpc.max_connection_idle_ms", limits.idle_timeout_seconds * 1000),
        ("grpc.max_connection_age_ms", max_connection_age_s * 1000),
        ("grpc.max_connection_age_grace_ms", longest_s * 1000),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_S * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
    ]
