"""One request as it is seen: `Server.answer` begins an `Observation` and ends it; metrics, access log and traces come of it.

The steps in between write down when they were done (`Observation.*_s`, monotonic seconds, 0 for what was not reached), which
costs an assignment each. Everything that costs more happens in `end`, for the few requests that are logged or traced.
Request ids: the client's `x-request-id` where it can be logged as it is, else a new one; every answer carries it.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from itertools import count
from math import inf
from time import monotonic
from typing import TYPE_CHECKING

from torchmodel_runtime.accesslog import AccessLog
from torchmodel_runtime.config import CONFIG_INVALID, ServerConfig
from torchmodel_runtime.errors import RequestError, StartError
from torchmodel_runtime.exchange import Dialect
from torchmodel_runtime.metrics import Metrics
from torchmodel_runtime.tracecontext import TraceContext, parse_trace_context

if TYPE_CHECKING:  # imported when serving.telemetry.otlpEndpoint asks for it: it takes a tenth of a second
    from torchmodel_runtime.tracing import Tracing

REQUEST_ID = "x-request-id"
"""TorchServe's and Envoy's name for it."""

MAX_ID_LENGTH = 128
"""Longer ones are replaced; a UUID has 36 characters."""

CLIENT_LEFT = 499
"""nginx's number for a client that closed the connection; HTTP has none."""


class Observation:
    """What is known of one request. Class attributes are what a request begins with: it then costs only what it sets."""

    dialect: Dialect
    request_id: str
    started_s: float
    """When its header had been read; the deadline runs from here."""
    read_s: float
    """When its body had been read."""
    decoded_s: float = 0.0
    prepared_s: float = 0.0
    """When it was ready for the queue."""
    batched_s: float = 0.0
    """When its (first) batch began."""
    batch_seconds: float = 0.0
    """The model's own time for that batch."""
    batch_rows: int = 0
    finished_s: float = 0.0
    """When its outputs were there, to be encoded."""
    rows: int = 0
    request_bytes: int = 0
    deadline_s: float = inf
    """When nobody waits for it any more, once that is known."""
    code: str = ""
    """The error's stable code; empty for an answer."""
    caller: TraceContext | None = None
    """The caller's trace, if it has one."""
    trace_id: str = ""
    """The caller's, or our own where one was begun."""
    is_traced: bool = False
    """True when spans are to be exported."""

    def identity(self) -> dict[str, str]:
        """What joins log lines of one request."""
        if self.trace_id:
            return {"requestId": self.request_id, "traceId": self.trace_id}
        return {"requestId": self.request_id}


class Telemetry:
    """Metrics, access log and traces of one process's requests. On the event loop."""

    def __init__(self, config: ServerConfig, metrics: Metrics) -> None:
        """Raises StartError when traces are configured and cannot be made."""
        self._metrics = metrics
        self._log = AccessLog(config.serving.telemetry.access_log_ratio, metrics.count_dropped_line)
        self._tracing = _make_tracing(config)
        self._id_prefix = secrets.token_hex(8)  # by process, so that no two of a fleet say the same
        self._ids = count(1)

    def begin(self, dialect: Dialect, headers: Mapping[str, str]) -> Observation:
        """A request came; headers by lower-case name or without regard to case."""
        seen = Observation()
        seen.dialect = dialect
        seen.started_s = seen.read_s = monotonic()
        given = headers.get(REQUEST_ID)
        seen.request_id = f"{self._id_prefix}{next(self._ids):08x}" if given is None else self._take_id(given)
        if headers.get("traceparent") is not None:
            # the state goes into spans alone, so it is not read where there are none
            states = _all_of(headers, "tracestate") if self._tracing is not None else ()
            seen.caller = parse_trace_context(_all_of(headers, "traceparent"), states)
            if seen.caller is not None:
                seen.trace_id = seen.caller.trace_id
        if self._tracing is not None:
            seen.is_traced, seen.trace_id = self._tracing.decide(seen.caller)
        return seen

    def end(self, seen: Observation, status: int, response_bytes: int) -> None:
        """It was answered, well or not; status CLIENT_LEFT when there was nobody to answer any more."""
        now_s = monotonic()
        tally = self._metrics.dialects[seen.dialect]
        tally.requests[status] += 1
        tally.request_s.observe(now_s - seen.started_s)
        tally.request_bytes += seen.request_bytes
        tally.response_bytes += response_bytes
        if seen.decoded_s:
            tally.decode_s.observe(seen.decoded_s - seen.read_s)
            if seen.prepared_s:
                self._metrics.prepare_s.observe(seen.prepared_s - seen.decoded_s)
                if seen.finished_s:
                    tally.encode_s.observe(now_s - seen.finished_s)
        if status == CLIENT_LEFT:
            self._metrics.count_abandoned("disconnected")
        elif seen.code == "TIMEOUT":
            self._metrics.count_abandoned("expired")
        if self._log.wants(status):
            self._log.write(now_s, _log_fields(seen, status, response_bytes, now_s))
        if seen.is_traced and self._tracing is not None:
            self._tracing.export(seen, status, now_s)

    def request_id(self, headers: Mapping[str, str]) -> str:
        """The id of a request that is no inference: the client's, or a new one."""
        return self._take_id(headers.get(REQUEST_ID, ""))

    def note_refused(self, error: RequestError) -> str:
        """A line for the sample of what came and could not even be read as a request; the id that its answer carries."""
        request_id = self._take_id("")
        if self._log.wants(error.status):
            fields = {"status": error.status, "code": error.code, "error": error.message, "requestId": request_id}
            self._log.write(monotonic(), fields)
        return request_id

    async def close(self) -> None:
        """Say what is still to be said, and send what is still to be sent, for a few seconds at most."""
        self._log.tell_dropped()
        if self._tracing is not None:
            await self._tracing.close()

    def _take_id(self, given: str) -> str:
        """The client's id where it is short, printable ASCII; else a new one."""
        if 0 < len(given) <= MAX_ID_LENGTH and given.isascii() and given.isprintable():
            return given
        return f"{self._id_prefix}{next(self._ids):08x}"


def _make_tracing(config: ServerConfig) -> Tracing | None:
    endpoint = config.serving.telemetry.otlp_endpoint
    if not endpoint:
        return None
    try:
        from torchmodel_runtime.tracing import Tracing
    except ImportError as error:
        raise StartError(
            CONFIG_INVALID,
            f"serving.telemetry.otlpEndpoint is {endpoint}, but traces cannot be made here: {error}",
            "Install torchmodel-operator[runtime,tracing] in the image, or leave serving.telemetry.otlpEndpoint empty.",
        ) from error
    return Tracing(config.name, endpoint, config.serving.telemetry.trace_ratio)


def _all_of(headers: Mapping[str, str], name: str) -> list[str]:
    """Every field of that name; a plain `get` hides that there are two. `getall` is that of aiohttp's headers."""
    getall = getattr(headers, "getall", None)
    if getall is not None:
        found: list[str] = getall(name, [])
        return found
    return [value for key, value in headers.items() if key.lower() == name]


def _log_fields(seen: Observation, status: int, response_bytes: int, now_s: float) -> dict[str, object]:
    """A line of the access log: seconds with microseconds, and only the steps that were reached."""
    fields: dict[str, object] = {"dialect": seen.dialect, "status": status}
    if seen.code:
        fields["code"] = seen.code
    fields["seconds"] = round(now_s - seen.started_s, 6)
    if seen.decoded_s:
        fields["decodeSeconds"] = round(seen.decoded_s - seen.read_s, 6)
    if seen.batched_s:
        fields["queueSeconds"] = round(seen.batched_s - seen.prepared_s, 6)
        fields["computeSeconds"] = round(seen.batch_seconds, 6)
        fields["batchRows"] = seen.batch_rows
    if seen.finished_s:
        fields["encodeSeconds"] = round(now_s - seen.finished_s, 6)
    fields.update(rows=seen.rows, requestBytes=seen.request_bytes, responseBytes=response_bytes)
    return {**fields, **seen.identity()}
