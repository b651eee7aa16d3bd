"""A shorter way through aiohttp for small inference requests, whose cost is counted in microseconds.

What is a valid request, where its body ends and which limits hold is the decision of aiohttp's parser alone, here as elsewhere.
What is left out for a whole, small request to an inference route is what aiohttp does afterwards: a Request, a task that runs
middlewares and the router, a Response, a payload writer; and the parser itself for a head, byte for byte the same, that it
has read before (`heads`). That is most of the time of a small request (docs/design/0002-the-hot-route.md). Such a request goes
by `passage`; everything else, and whatever is unusual about a request, the usual way to `Server.answer`. Requests of one
connection are answered in order, whichever way each goes.

`HotConnection` leans on private names of `aiohttp.web_protocol.RequestHandler`; the requirement in pyproject.toml is as narrow
as that. tests/service/test_runtime_hotroute.py holds the two ways against each other, test_runtime_known_heads.py shows that the
short one is taken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader

from torchmodel_runtime.config import ServerConfig
from torchmodel_runtime.exchange import OCTETS, Answer, Call, Dialect, media_type
from torchmodel_runtime.passage import Passage, is_quick
from torchmodel_runtime.ports.connection import Connection
from torchmodel_runtime.ports.heads import Heads, spans
from torchmodel_runtime.server import VERSION, Server

logger = logging.getLogger(__name__)

MAX_HOT_BYTES = 65536
"""A larger body does not come in one read of the socket anyway (aiohttp's and uvloop's buffers)."""


def hot_routes(config: ServerConfig) -> dict[str, tuple[Dialect, str | None]]:
    """Dialect and version by exact path; other spellings of the same path go the usual way."""
    name = config.name
    return {
        f"/v2/models/{name}/infer": ("v2", None),
        f"/v2/models/{name}/versions/{VERSION}/infer": ("v2", VERSION),
        f"/v1/models/{name}:predict": ("v1", None),
        f"/predictions/{name}": ("torchserve", None),
    }


class HotConnection(Connection):
    """One client's connection, with the short way.

    `start` is aiohttp's own loop over the connection's messages. It waits on `_waiter` while there are none; as long as a hot
    request is being answered that future is set aside, so that `start` neither sees messages nor takes the connection for idle.
    """

    __slots__ = (
        "_early",
        "_heads",
        "_hot",
        "_is_aligned",
        "_max_bytes",
        "_routes",
        "_set_aside",
        "_starting",
        "_ways",
    )

    def __init__(
        self, manager: web.Server, server: Server, routes: Mapping[str, Any], heads: Heads, **settings: Any
    ) -> None:
        super().__init__(manager, server, **settings)
        self._routes = routes
        self._heads = heads
        self._ways = server.metrics.ways
        self._max_bytes = min(MAX_HOT_BYTES, server.config.serving.max_request_bytes)
        self._is_aligned = True
        """What comes next begins a request: every byte before it belonged to a whole one."""
        self._early = b""
        """What came before `start` waited for it."""
        self._hot: asyncio.Task[None] | Passage | None = None
        self._starting = False
        self._set_aside: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """A request whose head is known at once; else parse, answer what is hot, in order, and wake `start` for the rest."""
        waiter = self._waiter
        if waiter is None or self._early:
            if data and (self._early or not (self._request_in_progress or self._messages)):
                self._hold(data)
            else:  # `start` is at work on a request, or a hot one is: what comes now waits its turn
                self._parse(data)
            return
        if self._is_aligned and not self._messages and (call := self._heads.find(data)) is not None:
            if not (self._close or self._force_close):
                self._begin(waiter, call, "known")
            return
        self._waiter = None
        self._parse(data)
        self._waiter = waiter
        if self._messages:
            self._next(data if self._is_aligned and len(self._messages) == 1 else b"")

    def _hold(self, data: bytes) -> None:
        """`start` is on its way to wait, and would take the request itself: the data comes again after its next step.

        So comes the first request of a connection, and whatever a client sends the moment that it has its answer.
        """
        if not self._early:
            self._loop.call_soon(self._release)
        self._early += data

    def _release(self) -> None:
        data, self._early = self._early, b""
        if self.transport is None:
            return
        if self._waiter is None:
            self._parse(data)
        else:
            self.data_received(data)

    def _parse(self, data: bytes) -> None:
        waiting = len(self._messages)
        self.parse(data)
        if data:  # aiohttp calls with none when it resumes
            self._is_aligned = self._is_aligned and len(self._messages) == waiting + 1 and self._is_whole(data)

    def _is_whole(self, data: bytes) -> bool:
        """True when data, parsed just now at the beginning of a request, is the one that waits last and nothing else."""
        message, payload = self._messages[-1]
        return (
            isinstance(message, RawRequestMessage)
            and payload.is_eof()
            and not message.upgrade
            and spans(data, payload.total_bytes)
        )

    def _next(self, data: bytes = b"") -> None:
        """Begin with the first message that waits: hot, or by waking `start`. One after the other until one has to wait.

        data: what the first one was read from, where that is all of it.
        """
        if self._starting:
            return
        self._starting = True
        while self._messages:
            waiter = self._waiter
            if waiter is None or waiter.done():
                break
            message, payload = self._messages[0]
            if not self._is_hot(message, payload):
                waiter.set_result(None)
                break
            self._messages.popleft()
            if self._parser is not None:
                self._parser.message_consumed()
            if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
                self._resume_reading_if_drained()
            call = self._make_call(message, payload)
            if data:
                self._heads.learn(data, call)
                data = b""
            self._begin(waiter, call, "parsed")
        self._starting = False

    def _is_hot(self, message: Any, payload: StreamReader) -> bool:
        """True for a whole, small request to an inference route that asks for nothing special."""
        return (
            isinstance(message, RawRequestMessage)
            and message.path in self._routes
            and message.method == "POST"
            and payload.is_eof()
            and not (message.should_close or message.upgrade or message.chunked)
            and message.version == HttpVersion11
            and payload.total_bytes <= self._max_bytes
            and "Expect" not in message.headers
        )

    def _make_call(self, message: Any, payload: StreamReader) -> Call:
        headers = message.headers
        dialect, version = self._routes[message.path]
        content_type = headers.get("Content-Type", OCTETS)
        if content_type != "application/json":
            content_type = media_type(content_type)
        body = payload.read_nowait(-1)
        return Call(dialect, self._server.config.name, body, headers, content_type, version)

    def _begin(self, waiter: asyncio.Future[None], call: Call, head: str) -> None:
        """Answer a hot request; `start` does not see the connection meanwhile. head: known, or parsed."""
        self._request_in_progress = True
        self._set_aside, self._waiter = waiter, None
        if is_quick(self._server, call):
            self._ways[head, "passage"] += 1
            self._hot = passage = Passage(self._server, call, self._reply)
            passage.begin()
        else:
            self._ways[head, "task"] += 1
            self._hot = self._loop.create_task(self._answer(call))

    def _reply(self, answer: Answer) -> None:
        """Never raises: whoever calls has the answers of other clients in hand."""
        try:
            self._write(answer)
            if self._paused:
                self._hot = self._loop.create_task(self._wait_for_reader())
            else:
                self._done()
        except Exception:
            logger.exception("an answer could not be written")
            self.cut()

    async def _wait_for_reader(self) -> None:
        """The client's buffers are full: its next request waits until they are not."""
        try:
            await self._drain_helper()
        except ConnectionError:
            self.force_close()
        finally:
            self._done()

    async def _answer(self, call: Call) -> None:
        try:
            answer = await self._server.answer(call.dialect, call.headers, call)
            self._write(answer)
            if self._paused:
                await self._drain_helper()
        except ConnectionError:
            self.force_close()
        finally:
            self._done()

    def _write(self, answer: Answer) -> None:
        is_last = self._server.is_leaving
        self.write(answer, is_last=is_last)
        if is_last:
            self._close = True

    def _done(self) -> None:
        """The connection is idle again, or at its next message, or closes."""
        self._hot = None
        self._request_in_progress = False
        self._waiter, self._set_aside = self._set_aside, None
        if self._handler_waiter is not None and not self._handler_waiter.done():
            self._handler_waiter.set_result(None)
        if self._close or self._force_close:
            if self._waiter is not None:
                self._waiter.cancel()
            if self.transport is not None:
                self.transport.close()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._messages:
            self._next()

    def _process_keepalive(self) -> None:
        """As aiohttp does, but a hot request is no idleness."""
        if self._hot is not None:
            self._keepalive_handle = self._loop.call_later(self._keepalive_timeout, self._process_keepalive)
            return
        super()._process_keepalive()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client left: its request leaves the queue."""
        if isinstance(self._hot, Passage):
            self._hot.abandon()
        elif self._hot is not None:
            self._hot.cancel()
        super().connection_lost(exc)
