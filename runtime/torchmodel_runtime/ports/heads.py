"""Heads of requests that aiohttp's parser has read, so that the same bytes need not be read again. Called by `hotroute`.

A client that keeps its connection sends the same head with every request, but for the length of the body. The parser is a
function of the bytes: what it made of a head it makes of it again. So a request that is a known head and as many bytes as that
announces needs no parser; everything else does. Kept is only a head in which nothing changes how the body is read, answered,
timed or traced: what names a request differs with each, and would push the others out. So nobody has to read the fields of a
kept head, and only its bytes are kept: 2 MiB are the most that clients can make a process remember. Pure.
"""

from __future__ import annotations

from dataclasses import replace

from torchmodel_runtime import codec
from torchmodel_runtime.deadlines import ENVOY_HEADER, TIMEOUT_HEADER
from torchmodel_runtime.exchange import Call
from torchmodel_runtime.telemetry import REQUEST_ID

MAX_HEADS = 1024
"""As many are kept in a process, then all are forgotten: clients times lengths of body, a guess."""
MAX_HEAD_BYTES = 2048
"""A longer one is not kept."""

_END = b"\r\n\r\n"
_NO_FIELDS: dict[str, str] = {}
_TELLING = (
    *(name for name in codec.HEADERS if name != "Content-Type"),
    TIMEOUT_HEADER,
    ENVOY_HEADER,
    REQUEST_ID,
    "traceparent",
)
"""Fields that are read of a request whose body is JSON. A new one belongs here; a test compares."""

_NOT_TELLING = {"Accept": ("*/*", "application/json")}
"""What most clients send without meaning anything by it: a body of JSON is answered in JSON anyway."""


def spans(data: bytes, body_bytes: int) -> bool:
    """True when a request that begins with data, and has so long a body, is all of it.

    The first empty line ends the head, whoever reads it, where every line ends with CRLF (RFC 9112, 2.2).
    """
    last = data.find(_END)
    end = last + len(_END)
    return last >= 0 and end + body_bytes == len(data) and data.count(b"\n", 0, end) == data.count(b"\r\n", 0, end)


class Heads:
    """Known heads by their bytes, the empty line included. Of one process."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[int, Call]] = {}

    def find(self, data: bytes) -> Call | None:
        """The call that data is, all of it; None where that takes the parser. data begins a request."""
        end = data.find(_END) + len(_END)
        known = self._known.get(data[:end])
        if known is None:
            return None
        size, like = known
        if len(data) != size:
            return None
        return Call(like.dialect, like.model, data[end:], _NO_FIELDS, like.content_type, like.version, is_plain=True)

    def learn(self, data: bytes, call: Call) -> None:
        """Data, all of it (`spans`), was parsed to this call."""
        end = len(data) - len(call.body)
        if end > MAX_HEAD_BYTES or call.content_type != "application/json":
            return
        if any(call.headers.get(name) not in (None, *_NOT_TELLING.get(name, ())) for name in _TELLING):
            return
        if len(self._known) >= MAX_HEADS:
            self._known.clear()
        self._known[data[:end]] = (len(data), replace(call, body=b"", headers=_NO_FIELDS, is_plain=True))
