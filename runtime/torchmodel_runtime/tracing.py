"""Spans of a request for an OpenTelemetry collector, over OTLP/HTTP; the only module that knows OpenTelemetry.

`telemetry` imports it where serving.telemetry.otlpEndpoint is set. Whether a request is traced is decided when it comes (the
caller's decision, else a share of trace ids); spans are made when it has ended, with the times it wrote down, and leave by the
SDK's own thread. A collector that is away costs spans, never requests. The SDK reads its own environment besides
(OTEL_EXPORTER_OTLP_HEADERS for a collector that asks for a key, OTEL_RESOURCE_ATTRIBUTES).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from torchmodel_runtime.telemetry import Observation
from torchmodel_runtime.tracecontext import TraceContext

logger = logging.getLogger(__name__)

EXPORT_TIMEOUT_S = 5.0
"""For one export with its repetitions; the next one waits meanwhile and what comes too fast is dropped."""
FLUSH_S = 3.0
"""At the end, for what has not been sent: short beside the 30 s of a pod's grace period."""

_ID_RANGE = 1 << 64


class Tracing:
    """Decides, makes and exports. On the event loop."""

    def __init__(self, model: str, endpoint: str, ratio: float) -> None:
        self._model = model
        self._bound = round(ratio * _ID_RANGE)
        self._random = random.Random()  # noqa: S311 - ids are no secret, and this one is quick
        self._ids = _DecidedIds()
        exporter = OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=EXPORT_TIMEOUT_S)
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # only what `decide` took gets here
            resource=Resource.create({"service.name": model}),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("torchmodel_runtime")

    def decide(self, caller: TraceContext | None) -> tuple[bool, str]:
        """Whether to trace, and the trace's id: the caller decides for its own; else the id's lower half does.

        That is OpenTelemetry's ParentBased(TraceIdRatioBased), decided before anything is made.
        """
        if caller is not None:
            return caller.is_sampled, caller.trace_id
        trace_id = self._random.getrandbits(128)
        if trace_id % _ID_RANGE >= self._bound:
            return False, ""
        return True, f"{trace_id or 1:032x}"

    def export(self, seen: Observation, status: int, now_s: float) -> None:
        """The request's span and those of its steps; now_s: monotonic time at which it was answered."""
        now_ns = time.time_ns()

        def clock_ns(moment_s: float) -> int:
            return now_ns - int((now_s - moment_s) * 1e9)

        self._ids.trace_id = int(seen.trace_id, 16)
        span = self._tracer.start_span(
            f"infer {self._model}",
            context=_parent(seen.caller),
            kind=SpanKind.SERVER,
            start_time=clock_ns(seen.started_s),
            attributes={
                "torchmodel.model": self._model,
                "torchmodel.dialect": seen.dialect,
                "torchmodel.rows": seen.rows,
                "torchmodel.request_id": seen.request_id,
                "http.response.status_code": status,
            },
        )
        if seen.code:
            span.set_attribute("error.type", seen.code)
        if status >= 500:  # what the client did wrong is no error of a server's span (semantic conventions, HTTP)
            span.set_status(Status(StatusCode.ERROR, seen.code))
        inside = set_span_in_context(span, Context())
        for name, from_s, to_s, attributes in _steps(seen, now_s):
            step = self._tracer.start_span(name, context=inside, start_time=clock_ns(from_s), attributes=attributes)
            step.end(clock_ns(to_s))
        span.end(now_ns)

    async def close(self) -> None:
        """Send what waits, for FLUSH_S at most. In a thread that nobody joins: the SDK's own limit is 30 s."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def flush() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=flush, name="trace-flush", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), FLUSH_S)
        except asyncio.TimeoutError:
            logger.warning(
                "spans were not sent: the collector did not take them", extra={"fields": {"seconds": FLUSH_S}}
            )


class _DecidedIds(RandomIdGenerator):
    """Trace ids as `decide` drew them, so that logs and spans say the same."""

    def __init__(self) -> None:
        self.trace_id = 0

    def generate_trace_id(self) -> int:
        """For a span without a parent."""
        return self.trace_id


def traces_url(endpoint: str) -> str:
    """Where spans go: an endpoint without a path of its own is the collector's root (OTLP specification, OTLP/HTTP request)."""
    return endpoint if endpoint.endswith("/v1/traces") else f"{endpoint.rstrip('/')}/v1/traces"


def _parent(caller: TraceContext | None) -> Context:
    if caller is None:
        return Context()
    remote = SpanContext(
        trace_id=int(caller.trace_id, 16),
        span_id=int(caller.parent_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
        trace_state=TraceState(caller.state),
    )
    return set_span_in_context(NonRecordingSpan(remote), Context())


def _steps(seen: Observation, now_s: float) -> list[tuple[str, float, float, dict[str, int]]]:
    """Name, begin, end (monotonic seconds) and attributes of the steps that were reached."""
    steps: list[tuple[str, float, float, dict[str, int]]] = []
    if seen.decoded_s:
        steps.append(("decode", seen.read_s, seen.decoded_s, {}))
    if seen.prepared_s:
        steps.append(("prepare", seen.decoded_s, seen.prepared_s, {}))
    if seen.batched_s:
        steps.append(("queue", seen.prepared_s, seen.batched_s, {}))
        ended_s = seen.batched_s + seen.batch_seconds
        steps.append(("compute", seen.batched_s, ended_s, {"torchmodel.batch.rows": seen.batch_rows}))
    if seen.finished_s:
        steps.append(("encode", seen.finished_s, now_s, {}))
    return steps
