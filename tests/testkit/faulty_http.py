"""An HTTP server that misbehaves on purpose, one fault per path; it counts what it was asked and what it sent.

    async with FaultyServer() as server:
        server.serve("/model.pth", content, Cut(after_bytes=1000), Answer(503))
        ... server.url("/model.pth"), server.requests, server.bytes_sent

Each request to a path takes the next fault of its list; when the list is empty the file is served properly, with ranges.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field

from aiohttp import web

PIECE_BYTES = 16 * 1024


@dataclass(frozen=True)
class Proper:
    """No fault."""


@dataclass(frozen=True)
class Answer:
    """Only a status, with headers."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass(frozen=True)
class Cut:
    """The connection ends after so many bytes of the body."""

    after_bytes: int


@dataclass(frozen=True)
class Stall:
    """Nothing more comes after so many bytes of the body, and the connection stays open."""

    after_bytes: int


@dataclass(frozen=True)
class LieAboutLength:
    """The Content-Length is off by so many bytes; the connection then ends."""

    by_bytes: int


@dataclass(frozen=True)
class IgnoreRange:
    """Always 200 and the whole file, as simple servers do."""


@dataclass(frozen=True)
class WrongRange:
    """206 from another place than was asked for."""

    shift_bytes: int


@dataclass(frozen=True)
class NewContent:
    """From here on the file is another one, with another ETag unless told to keep it."""

    content: bytes
    keeps_etag: bool = False


@dataclass(frozen=True)
class Chunked:
    """Without Content-Length."""

    cut_after_bytes: int | None = None


@dataclass(frozen=True)
class WeakETag:
    """The ETag is a weak one; then cut after so many bytes."""

    cut_after_bytes: int


@dataclass(frozen=True)
class Slow:
    """So many bytes each second; then, if told, cut."""

    bytes_per_second: int


@dataclass(frozen=True)
class Encoded:
    """Content-Encoding though none was accepted."""

    encoding: str = "gzip"


Fault = (
    Proper
    | Answer
    | Cut
    | Stall
    | LieAboutLength
    | IgnoreRange
    | WrongRange
    | NewContent
    | Chunked
    | WeakETag
    | Slow
    | Encoded
)


@dataclass(frozen=True)
class Seen:
    """One request as the server saw it."""

    path: str
    headers: dict[str, str]


@dataclass
class _File:
    content: bytes
    etag: str
    faults: list[Fault]
    always: Fault


class FaultyServer:
    """One server on a free loopback port."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._files: dict[str, _File] = {}
        self._released = asyncio.Event()
        self._moved = asyncio.Event()
        self._runner: web.ServerRunner | None = None
        self.port = 0
        self.requests: list[Seen] = []
        self.bytes_sent = 0

    def serve(
        self, path: str, content: bytes, *faults: Fault, always: Fault | None = None, etag: str = '"one"'
    ) -> None:
        """Serve bytes under a path: each request takes the next fault, and `always` once they are used up."""
        self._files[path] = _File(content, etag, list(faults), always or Proper())

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        """URL of a path; `host="localhost"` is another origin with the same server behind it."""
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}{path}"

    async def sent(self, total_bytes: int) -> None:
        """Wait until so many bytes of bodies have been sent in all."""
        while self.bytes_sent < total_bytes:
            self._moved.clear()
            await self._moved.wait()

    async def __aenter__(self) -> FaultyServer:
        self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._released.set()
        if self._runner:
            await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(Seen(request.path_qs, {name.lower(): value for name, value in request.headers.items()}))
        file = self._files.get(request.path)
        if file is None:
            return web.Response(status=404)
        fault = file.faults.pop(0) if file.faults else file.always
        if isinstance(fault, Answer):
            return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
        if isinstance(fault, NewContent):
            file.content = fault.content
            file.etag = file.etag if fault.keeps_etag else '"two"'
        with contextlib.suppress(ConnectionError):
            return await self._send(request, file, fault)
        return web.Response(status=500)

    async def _send(self, request: web.BaseRequest, file: _File, fault: Fault) -> web.StreamResponse:
        content, etag = file.content, file.etag
        if isinstance(fault, WeakETag):
            etag = f"W/{etag}"
        start = 0 if isinstance(fault, IgnoreRange) else _range_start(request, etag)
        if start >= len(content) > 0:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{len(content)}"})
        shown = start + fault.shift_bytes if isinstance(fault, WrongRange) and start else start
        body = content[shown:]
        response = web.StreamResponse(status=206 if start else 200)
        if etag not in ("", "W/"):
            response.headers["ETag"] = etag
        if start:
            response.headers["Content-Range"] = f"bytes {shown}-{len(content) - 1}/{len(content)}"
        if isinstance(fault, Encoded):
            response.headers["Content-Encoding"] = fault.encoding
        if isinstance(fault, Chunked):
            response.enable_chunked_encoding()
        else:
            response.content_length = len(body) + (fault.by_bytes if isinstance(fault, LieAboutLength) else 0)
        await response.prepare(request)
        await self._send_body(request, response, body, fault)
        return response

    async def _send_body(
        self, request: web.BaseRequest, response: web.StreamResponse, body: bytes, fault: Fault
    ) -> None:
        limit = len(body)
        if isinstance(fault, Cut | Stall):
            limit = min(limit, fault.after_bytes)
        if isinstance(fault, Chunked | WeakETag) and fault.cut_after_bytes is not None:
            limit = min(limit, fault.cut_after_bytes)
        if isinstance(fault, LieAboutLength):
            limit = min(limit, limit + fault.by_bytes)
        for place in range(0, limit, PIECE_BYTES):
            piece = body[place : min(place + PIECE_BYTES, limit)]
            await response.write(piece)
            self.bytes_sent += len(piece)
            self._moved.set()
            if isinstance(fault, Slow):
                await asyncio.sleep(len(piece) / fault.bytes_per_second)
        if isinstance(fault, Stall):
            await self._released.wait()
        is_short = limit < len(body) or isinstance(fault, LieAboutLength)
        if is_short and request.transport:
            # close, not abort: what was written is still delivered
            request.transport.close()
        elif not is_short:
            await response.write_eof()


def _range_start(request: web.BaseRequest, etag: str) -> int:
    value = request.headers.get("Range", "")
    if not value.startswith("bytes=") or request.headers.get("If-Range", etag) != etag:
        return 0
    if request.headers.get("If-Match", etag) != etag:
        return 0
    return int(value[len("bytes=") :].partition("-")[0])
