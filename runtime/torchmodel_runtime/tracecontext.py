"""The caller's trace, from its headers: W3C Trace Context, level 1 (https://www.w3.org/TR/trace-context-1/).

Called by `telemetry.begin` for requests that carry `traceparent`. Whatever cannot be read is left out, as the recommendation
demands: a broken trace never costs a request. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
"""Section 3.2.2; what follows the flags is for versions after 00 (section 4.3)."""

_KEY = re.compile(r"[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13}")
"""Section 3.3.1.3.1: a simple key, or tenant@system."""
_VALUE = re.compile(r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
"""Section 3.3.1.3.2: printable, without comma and equals sign, not ending with a space."""

MAX_MEMBERS = 32
"""Section 3.3.1.1: at most so many list-members."""


@dataclass(frozen=True, slots=True)
class TraceContext:
    """Where the caller stands in its trace."""

    trace_id: str
    """32 hexadecimal digits, not all zero."""
    parent_id: str
    """The caller's span: 16 hexadecimal digits, not all zero."""
    is_sampled: bool
    state: tuple[tuple[str, str], ...] = ()
    """What tracing systems said in `tracestate`, the latest first."""


def parse_trace_context(parents: Sequence[str], states: Sequence[str] = ()) -> TraceContext | None:
    """The fields `traceparent` and `tracestate`, each as often as it came; None where they name no trace.

    Of `traceparent` there is one, or it cannot be told which holds. An unreadable `tracestate` leaves `traceparent` as it is.
    """
    if len(parents) != 1:
        return None
    match = _TRACEPARENT.fullmatch(parents[0])
    if match is None:
        return None
    version, trace_id, parent_id, flags, more = match.groups()
    if version == "ff" or (version == "00" and more) or not trace_id.strip("0") or not parent_id.strip("0"):
        return None
    return TraceContext(trace_id, parent_id, bool(int(flags, 16) & 1), parse_state(states))


def parse_state(fields: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Keys and values of `tracestate`; several fields are one list. Empty where any of it is not valid.

    Of a key that comes twice the first, later written one stays.
    """
    members: dict[str, str] = {}
    listed = [member for field in fields for member in field.split(",")]
    for member in listed:
        key, equals, value = member.strip(" \t").partition("=")
        if not key and not equals:
            continue  # empty members are allowed (section 3.3.1.1)
        if not _KEY.fullmatch(key) or not _VALUE.fullmatch(value):
            return ()
        members.setdefault(key, value)
    return tuple(members.items()) if len(members) <= MAX_MEMBERS else ()
