"""One request and its answer, whatever carried them: what the ports give to the server and get back.

`ports` make a `Call` of what arrived and write the `Answer`; `server.infer` and `codec` know no more of HTTP than this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Dialect = Literal["v2", "v1", "torchserve", "grpc"]
"""grpc: V2 in the messages of its gRPC form."""


OCTETS = "application/octet-stream"
"""HTTP's default where the client named no type (RFC 9110, 8.3)."""


def media_type(field: str) -> str:
    """Of a Content-Type: in lower case, without parameters; `OCTETS` where it says nothing."""
    return field.partition(";")[0].strip().lower() or OCTETS


@dataclass(slots=True)
class Call:
    """A request for inference, read whole."""

    dialect: Dialect
    model: str
    body: bytes
    headers: Mapping[str, str]
    """By name without regard to case."""
    content_type: str = OCTETS
    """As `media_type` gives it."""
    version: str | None = None
    """As in the path; None where the path names none."""
    timeout_s: float | None = None
    """How long the client waits, where the transport itself says so: gRPC's deadline."""
    is_plain: bool = False
    """JSON without a header field that changes how it is read, answered, timed or traced: nobody looks, `headers` is empty."""


@dataclass(slots=True)
class Answer:
    """A response, well or not."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    """Beyond Content-Type and Content-Length."""
