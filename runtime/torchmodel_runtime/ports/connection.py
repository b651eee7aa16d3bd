"""One client's connection: aiohttp's, with our own answer to what is no HTTP, and to clients that do not read. `hotroute` builds
on it.

aiohttp's own answer to such bytes repeats them, is of no dialect, in no metric, and logs a traceback each time. And its wait for
a client that reads nothing has no end. Leans on private names of `aiohttp.web_protocol.RequestHandler`, as `hotroute` does.
"""

from __future__ import annotations

import asyncio
import fcntl
import termios
from array import array
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import SERVER_SOFTWARE, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer
from torchmodel_runtime.ports.badhttp import explain_malformed
from torchmodel_runtime.server import Server
from torchmodel_runtime.telemetry import REQUEST_ID

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\nServer: {SERVER_SOFTWARE}\r\nDate: "
    for status in HTTPStatus
}
_CLOSE = "Connection: close\r\n"


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_incoming",
        "_is_refused",
        "_max_header_bytes",
        "_server",
        "_stall",
        "_stall_limit_s",
        "_unread_bytes",
    )

    def __init__(self, manager: web.Server, server: Server, **settings: Any) -> None:
        super().__init__(manager, **settings)
        limits = server.config.serving.limits
        self._server = server
        self._max_header_bytes = limits.max_header_bytes
        self._incoming: StreamReader | None = None
        """The body of the last request that was parsed, whole or not."""
        self._is_refused = False
        """What is no HTTP was part of that body: the request's own answer says so."""
        self._stall: asyncio.TimerHandle | None = None
        self._stall_limit_s = limits.body_timeout_seconds
        self._unread_bytes = 0
        """As the stall was last looked at."""

    def parse(self, data: bytes) -> None:
        """Messages from data, by aiohttp. What goes wrong inside of a body is told to the request that waits for it."""
        super().data_received(data)
        if not self._messages:
            return
        message, payload = self._messages[-1]
        if isinstance(message, RawRequestMessage):
            self._incoming = payload
        elif self._incoming is not None and not self._incoming.is_eof():
            self._incoming.set_exception(explain_malformed(message.exc, self._max_header_bytes))
            self._incoming.feed_eof()
            self._is_refused = True

    def write(self, answer: Answer, *, is_last: bool = False) -> None:
        """Send an answer; is_last: the connection closes after it."""
        if self.transport is not None:
            self.transport.write(serialize_head(answer, _CLOSE if is_last else "") + answer.body)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nobody is there to read any more."""
        self._cancel_stall()
        super().connection_lost(exc)

    # --- what is no HTTP ---

    def _make_error_handler(self, err_info: Any) -> Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]:
        """Called by `start` in the turn of what could not be parsed; the connection closes afterwards."""

        async def refuse(_: web.BaseRequest) -> web.StreamResponse:
            if not self._is_refused:
                self._write_refusal(explain_malformed(err_info.exc, self._max_header_bytes))
            return _Written()

        return refuse

    def _write_refusal(self, error: RequestError) -> None:
        """In V2's form, which is V1's too: its path may not have been read."""
        answer = self._server.refuse("v2", error)
        answer.headers[REQUEST_ID] = self._server.telemetry.note_refused(error)
        self.write(answer, is_last=True)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """A body that ends in what is no HTTP, of a request that was refused before it was read: its client's fault."""
        if not isinstance(kw.get("exc_info"), RequestError):
            super().log_exception(*args, **kw)

    # --- clients that do not read their answers ---

    def pause_writing(self) -> None:
        """The client's buffers are full: it may read slowly, but where it reads nothing for a while the connection is cut."""
        super().pause_writing()
        if self._stall is None:
            self._watch_reader()

    def resume_writing(self) -> None:
        """It has read nearly all."""
        self._cancel_stall()
        super().resume_writing()

    def _watch_reader(self) -> None:
        if self.transport is not None:
            self._unread_bytes = _count_unread(self.transport)
            self._stall = self._loop.call_later(self._stall_limit_s, self._check_reader)

    def _check_reader(self) -> None:
        self._stall = None
        if self.transport is not None and _count_unread(self.transport) < self._unread_bytes:
            self._watch_reader()
        else:
            self.cut()

    def cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _cancel_stall(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None


class _Written(web.Response):
    """Stands for an answer that is written already, and the last of its connection."""

    def __init__(self) -> None:
        super().__init__()
        self.force_close()

    async def prepare(self, request: web.BaseRequest) -> None:
        """Nothing is left to do."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Nothing is left to do."""


def _count_unread(transport: asyncio.Transport) -> int:
    """Bytes on their way that the client's machine has not taken, the kernel's included (tcp(7), SIOCOUTQ): the kernel asks for
    more only when a third of its megabytes is free, which for a slow client may take longer than it is given."""
    kernel = array("i", [0])
    fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, kernel)
    return transport.get_write_buffer_size() + kernel[0]


def serialize_head(answer: Answer, more: str = "") -> bytes:
    """Status line and header fields of an answer, the empty line included. ValueError for a field that would end its line."""
    fields = more
    for name, value in answer.headers.items():
        if "\r" in value or "\n" in value:
            raise ValueError(f"header {name}: {value!r} holds a line break")
        fields += f"{name}: {value}\r\n"
    return (
        f"{_STATUS_LINES[answer.status]}{rfc822_formatted_time()}\r\nContent-Type: {answer.content_type}\r\n"
        f"Content-Length: {len(answer.body)}\r\n{fields}\r\n"
    ).encode("latin-1")
