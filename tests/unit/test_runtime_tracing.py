"""The caller's trace by the W3C's rules, request ids, and which requests are traced."""

from __future__ import annotations

import asyncio
import time

import pytest
from multidict import CIMultiDict
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased
from torchmodel_runtime.config import Architecture, ServerConfig, Serving
from torchmodel_runtime.config import Telemetry as TelemetryConfig
from torchmodel_runtime.metrics import Metrics
from torchmodel_runtime.telemetry import MAX_ID_LENGTH, Observation, Telemetry
from torchmodel_runtime.tracecontext import MAX_MEMBERS, TraceContext, parse_state, parse_trace_context
from torchmodel_runtime.tracing import FLUSH_S, Tracing, traces_url

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = f"00-{TRACE}-{PARENT}-01"


def telemetry(**settings: object) -> Telemetry:
    """As a server makes it."""
    serving = Serving(telemetry=TelemetryConfig(**settings))  # type: ignore[arg-type]
    config = ServerConfig(
        name="m", checkpoint_folder="/nowhere", architecture=Architecture(entrypoint="a:B"), serving=serving
    )
    return Telemetry(config, Metrics("m"))


@pytest.mark.parametrize(
    ("header", "is_sampled"),
    [
        pytest.param(SAMPLED, True, id="sampled"),
        pytest.param(f"00-{TRACE}-{PARENT}-00", False, id="not sampled"),
        pytest.param(f"00-{TRACE}-{PARENT}-02", False, id="another flag is set, the sampled one is not"),
        pytest.param(f"00-{TRACE}-{PARENT}-ff", True, id="unknown flags beside the sampled one"),
        pytest.param(f"01-{TRACE}-{PARENT}-01", True, id="a later version of the same length"),
        pytest.param(f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", True, id="a later version that says more"),
    ],
)
def test_a_trace_is_read(header: str, is_sampled: bool) -> None:
    assert parse_trace_context([header]) == TraceContext(TRACE, PARENT, is_sampled)


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param([""], id="an empty one"),
        pytest.param([SAMPLED, SAMPLED], id="two of them"),
        pytest.param([f"{SAMPLED},{SAMPLED}"], id="two in one field"),
        pytest.param([f"ff-{TRACE}-{PARENT}-01"], id="the forbidden version"),
        pytest.param([f"0-{TRACE}-{PARENT}-01"], id="a version of one digit"),
        pytest.param([f"000-{TRACE}-{PARENT}-01"], id="a version of three digits"),
        pytest.param([f"00-{'0' * 32}-{PARENT}-01"], id="a trace of zeros"),
        pytest.param([f"00-{TRACE}-{'0' * 16}-01"], id="a parent of zeros"),
        pytest.param([f"00-{TRACE.upper()}-{PARENT}-01"], id="capital letters in the trace"),
        pytest.param([f"00-{TRACE}-{PARENT.upper()}-01"], id="capital letters in the parent"),
        pytest.param([f"00-{TRACE[1:]}-{PARENT}-01"], id="a trace that is too short"),
        pytest.param([f"00-{TRACE}0-{PARENT}-01"], id="a trace that is too long"),
        pytest.param([f"00-{TRACE[:-1]}.-{PARENT}-01"], id="a trace that is no number"),
        pytest.param([f"00-{TRACE}-{PARENT[1:]}-01"], id="a parent that is too short"),
        pytest.param([f"00-{TRACE}-{PARENT}-1"], id="flags of one digit"),
        pytest.param([f"00-{TRACE}-{PARENT}-.1"], id="flags that are no number"),
        pytest.param([f"00-{TRACE}-{PARENT}"], id="no flags"),
        pytest.param([f"00-{TRACE}-{PARENT}-01-what"], id="version 00 that says more"),
        pytest.param([f"cc-{TRACE}-{PARENT}-01.what"], id="a later version without a dash after the flags"),
        pytest.param([f" {SAMPLED}"], id="a space in front"),
        pytest.param([f"{SAMPLED}\n"], id="a line break behind"),
        pytest.param(
            [f"00-{TRACE}-{PARENT}-\N{ARABIC-INDIC DIGIT ZERO}\N{ARABIC-INDIC DIGIT ONE}"],
            id="digits of another script",
        ),
    ],
)
def test_no_trace_is_read(headers: list[str]) -> None:
    assert parse_trace_context(headers, ["a=1"]) is None


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param(["foo=1"], (("foo", "1"),), id="one member"),
        pytest.param(["foo=1,bar=2"], (("foo", "1"), ("bar", "2")), id="two members in order"),
        pytest.param(["foo=1", "bar=2"], (("foo", "1"), ("bar", "2")), id="two fields are one list"),
        pytest.param(["foo=1 \t , \t bar=2"], (("foo", "1"), ("bar", "2")), id="space around the comma"),
        pytest.param(["foo=1,,bar=2,"], (("foo", "1"), ("bar", "2")), id="empty members"),
        pytest.param(["foo= a b"], (("foo", " a b"),), id="spaces inside a value"),
        pytest.param(["foo=1,foo=2"], (("foo", "1"),), id="the later written of two with one key"),
        pytest.param(["fw529a3039@dt=1"], (("fw529a3039@dt", "1"),), id="a tenant of a system"),
        pytest.param([f"{'z' * 256}=1"], (("z" * 256, "1"),), id="the longest key"),
        pytest.param([f"{'t' * 241}@{'v' * 14}=1"], (("t" * 241 + "@" + "v" * 14, "1"),), id="the longest tenant"),
        pytest.param([f"a={'v' * 256}"], (("a", "v" * 256),), id="the longest value"),
        pytest.param([",".join(f"k{n}=1" for n in range(MAX_MEMBERS))], None, id="as many members as may be"),
        pytest.param([""], (), id="an empty field"),
        pytest.param([",".join(f"k{n}=1" for n in range(MAX_MEMBERS + 1))], (), id="one member too many"),
        pytest.param(["foo"], (), id="no equals sign"),
        pytest.param(["foo="], (), id="no value"),
        pytest.param(["=1"], (), id="no key"),
        pytest.param(["foo =1"], (), id="space before the equals sign"),
        pytest.param(["FOO=1"], (), id="capital letters"),
        pytest.param(["foo=1=2"], (), id="two equals signs"),
        pytest.param(["foo.bar=1"], (), id="a dot in a key"),
        pytest.param(["1foo=1"], (), id="a simple key that begins with a digit"),
        pytest.param(["foo@=1"], (), id="a tenant without a system"),
        pytest.param(["@foo=1"], (), id="a system without a tenant"),
        pytest.param(["foo@bar@baz=1"], (), id="two at signs"),
        pytest.param([f"{'z' * 257}=1"], (), id="a key that is too long"),
        pytest.param([f"{'t' * 242}@v=1"], (), id="a tenant that is too long"),
        pytest.param([f"t@{'v' * 15}=1"], (), id="a system that is too long"),
        pytest.param([f"a={'v' * 257}"], (), id="a value that is too long"),
        pytest.param(["a=\x07"], (), id="a control character"),
        pytest.param(["good=1,b ad=2"], (), id="one bad member among good ones"),
    ],
)
def test_the_state_is(fields: list[str], expected: tuple[tuple[str, str], ...] | None) -> None:
    state = parse_state(fields)
    if expected is None:
        assert len(state) == MAX_MEMBERS
    else:
        assert state == expected


def test_a_bad_state_leaves_the_trace_as_it_is() -> None:
    assert parse_trace_context([SAMPLED], ["BAD"]) == TraceContext(TRACE, PARENT, True)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("abc", id="a short one"),
        pytest.param("x" * MAX_ID_LENGTH, id="the longest"),
        pytest.param("a b/c=d;e", id="with other printable signs"),
    ],
)
def test_a_clients_request_id_is_taken(given: str) -> None:
    assert telemetry().begin("v2", CIMultiDict({"X-Request-ID": given})).request_id == given


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("", id="an empty one"),
        pytest.param("x" * (MAX_ID_LENGTH + 1), id="one that is too long"),
        pytest.param("grün", id="one that is not ASCII"),
        pytest.param("a\tb", id="one with a control character"),
        pytest.param("a\r\nSet-Cookie: b", id="one that would begin another header"),
    ],
)
def test_a_request_id_is_replaced(given: str) -> None:
    request_id = telemetry().begin("v2", {"x-request-id": given}).request_id
    assert request_id != given
    assert len(request_id) == 24


def test_new_request_ids_differ_between_requests_and_processes() -> None:
    first, second = telemetry(), telemetry()
    ids = [server.begin("v2", {}).request_id for server in (first, first, second, second)]
    assert len({*ids}) == 4


def test_the_trace_of_the_caller_is_known_without_a_collector() -> None:
    seen = telemetry().begin("v2", CIMultiDict({"Traceparent": SAMPLED, "X-Request-ID": "r"}))
    assert seen.identity() == {"requestId": "r", "traceId": TRACE}
    assert not seen.is_traced


def test_two_traceparent_fields_name_no_trace() -> None:
    headers = CIMultiDict([("traceparent", SAMPLED), ("Traceparent", SAMPLED)])
    assert telemetry().begin("v2", headers).trace_id == ""


@pytest.fixture
def tracing() -> Tracing:
    """With a collector that is not there."""
    return Tracing("m", "http://127.0.0.1:9", 0.5)


@pytest.mark.parametrize("is_sampled", [pytest.param(True, id="trace"), pytest.param(False, id="do not trace")])
async def test_the_callers_decision_wins(tracing: Tracing, is_sampled: bool) -> None:
    caller = TraceContext(TRACE, PARENT, is_sampled)
    assert {tracing.decide(caller) for _ in range(20)} == {(is_sampled, TRACE)}
    await tracing.close()


@pytest.mark.parametrize(
    ("ratio", "least", "most"),
    [
        pytest.param(0.0, 0, 0, id="none"),
        pytest.param(0.3, 2500, 3500, id="three in ten, give or take ten standard deviations"),
        pytest.param(1.0, 10000, 10000, id="all"),
    ],
)
async def test_of_our_own_traces_a_share_is_begun(ratio: float, least: int, most: int) -> None:
    tracing = Tracing("m", "http://127.0.0.1:9", ratio)
    decisions = [tracing.decide(None) for _ in range(10_000)]
    begun = [int(trace_id, 16) for is_traced, trace_id in decisions if is_traced]
    assert least <= len(begun) <= most
    sampler = TraceIdRatioBased(ratio)
    assert all(sampler.should_sample(None, trace, "").decision is Decision.RECORD_AND_SAMPLE for trace in begun)
    await tracing.close()


async def test_a_collector_that_is_away_costs_little_time_at_the_end(
    tracing: Tracing, caplog: pytest.LogCaptureFixture
) -> None:
    seen = Observation()
    seen.dialect, seen.request_id, seen.trace_id, seen.started_s = "v2", "r", TRACE, 1.0
    tracing.export(seen, 200, 1.5)
    started_s = time.monotonic()
    await asyncio.wait_for(tracing.close(), FLUSH_S + 2)
    assert time.monotonic() - started_s < FLUSH_S + 1
    assert caplog.records, "nobody was told that spans are lost"


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        pytest.param("http://c:4318", "http://c:4318/v1/traces", id="the collector's root"),
        pytest.param("http://c:4318/", "http://c:4318/v1/traces", id="with a slash"),
        pytest.param("https://c/otlp", "https://c/otlp/v1/traces", id="below a path"),
        pytest.param("http://c:4318/v1/traces", "http://c:4318/v1/traces", id="the whole address"),
    ],
)
def test_spans_go_to(endpoint: str, url: str) -> None:
    assert traces_url(endpoint) == url
