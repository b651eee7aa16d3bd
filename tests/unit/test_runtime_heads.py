"""Heads that need no parser: which are kept, what is made of them, and how many."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from multidict import CIMultiDict
from test_runtime_codec import plan, signature
from torchmodel_runtime import codec
from torchmodel_runtime.config import Architecture, ServerConfig
from torchmodel_runtime.deadlines import choose_timeout_s
from torchmodel_runtime.exchange import Call
from torchmodel_runtime.metrics import Metrics
from torchmodel_runtime.ports.heads import MAX_HEAD_BYTES, MAX_HEADS, Heads, spans
from torchmodel_runtime.telemetry import Telemetry

BODY = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}'


def request(*lines: str, body: bytes = BODY) -> bytes:
    head = ["POST /v2/models/m/infer HTTP/1.1", "Host: a", "Content-Type: application/json", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


def call(*lines: str, body: bytes = BODY, content_type: str = "application/json") -> Call:
    """As `hotroute` makes one of what the parser read."""
    headers = CIMultiDict([("Host", "a"), ("Content-Type", content_type)])
    headers.extend(tuple(line.split(": ", 1)) for line in lines)
    return Call("v2", "m", body, headers, content_type, None)


def known(*lines: str) -> Heads:
    heads = Heads()
    heads.learn(request(*lines), call(*lines))
    return heads


def test_a_head_that_was_read_once_is_a_call_without_header_fields_from_then_on() -> None:
    other = BODY.replace(b"[1, 2]}", b"[3, 4]}")
    assert known().find(request(body=other)) == Call("v2", "m", other, {}, "application/json", None, is_plain=True)


@pytest.mark.parametrize(
    "data",
    [
        request()[:-1],
        request() + b"P",
        request() + request(),
        request("X: y"),
        request(body=BODY + b" "),
        request().replace(b"Host: a", b"Host: b"),
        request().replace(b"Host: a", b"host: a"),
        request().replace(b"\r\n", b"\n"),
        b"",
        b"\r\n\r\n",
        request()[:40],
    ],
    ids=[
        "a byte too few",
        "a byte of the next request",
        "two requests",
        "another field",
        "another length",
        "another value",
        "another spelling",
        "bare line feeds",
        "nothing",
        "an empty line",
        "half a head",
    ],
)
def test_everything_else_takes_the_parser(data: bytes) -> None:
    assert known().find(data) is None


def test_an_empty_line_inside_of_the_body_ends_no_head() -> None:
    body = b"{\r\n\r\n" + BODY[1:]
    heads = Heads()
    heads.learn(request(body=body), call(body=body))
    found = heads.find(request(body=body))
    assert found is not None
    assert found.body == body


def test_heads_that_differ_in_the_length_of_the_body_alone_are_two() -> None:
    heads, longer = known(), BODY + b"\n"
    heads.learn(request(body=longer), call(body=longer))
    for body in (BODY, longer):
        found = heads.find(request(body=body))
        assert found is not None
        assert found.body == body


@pytest.mark.parametrize(
    "line",
    [
        "Accept: application/octet-stream",
        "Content-Encoding: gzip",
        "Inference-Header-Content-Length: 10",
        "X-Request-Timeout-Milliseconds: 5",
        "x-envoy-expected-rq-timeout-ms: 5",
        "x-request-id: a",
        "X-Request-ID: a",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        f"X-Long: {'x' * MAX_HEAD_BYTES}",
    ],
)
def test_a_head_that_says_more_is_not_kept(line: str) -> None:
    assert known(line).find(request(line)) is None


@pytest.mark.parametrize(
    "line", ["Accept: */*", "Accept: application/json", "User-Agent: curl/8.5.0", "Accept-Encoding: gzip"]
)
def test_what_clients_send_without_meaning_anything_by_it_is_kept(line: str) -> None:
    assert known(line).find(request(line)) is not None


def test_a_body_that_is_no_json_makes_no_head_known() -> None:
    heads = Heads()
    heads.learn(request(), call(content_type="application/octet-stream"))
    assert heads.find(request()) is None


def test_no_number_of_different_heads_makes_more_than_the_limit_be_kept() -> None:
    heads = Heads()
    lines = [f"X-Number: {number}" for number in range(3 * MAX_HEADS)]
    for line in lines:
        heads.learn(request(line), call(line))
        assert heads.find(request(line)) is not None  # the newest is always there
    kept = sum(heads.find(request(line)) is not None for line in lines)
    assert 0 < kept <= MAX_HEADS


@pytest.mark.parametrize(
    ("data", "body_bytes", "is_all"),
    [
        (b"A\r\n\r\nxy", 2, True),
        (b"A\r\n\r\nxy", 1, False),
        (b"A\r\n\r\nxy", 3, False),
        (b"A\r\n\r\n", 0, True),
        (b"A\nB\r\n\r\nxy", 2, False),
        (b"A\r\n\r\nx\n", 2, True),
        (b"A\r\n", 0, False),
    ],
    ids=["whole", "more", "less", "no body", "a bare line feed", "a line feed in the body", "no end"],
)
def test_data_is_one_request_when_head_and_body_are_all_of_it(data: bytes, body_bytes: int, is_all: bool) -> None:
    assert spans(data, body_bytes) is is_all


class Asked(Mapping[str, str]):
    """Header fields, none of them there, that remember what was asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def test_every_field_that_is_read_of_a_request_keeps_its_head_from_being_known() -> None:
    """Whoever reads another one has to name it in `heads`: of a known head nobody gets to see the fields."""
    config = ServerConfig(name="m", checkpoint_folder="/nowhere", architecture=Architecture(entrypoint="a:b"))
    tensors, asked = plan(signature(("x", "FP32", [-1, 2]))), Asked()
    Telemetry(config, Metrics("m")).begin("v2", asked)
    choose_timeout_s(asked, {}, 30)
    for body in (BODY, BODY + b" " * codec.HEAVY_JSON_BYTES):
        asking = Call("v2", "m", body, asked, "application/json")
        codec.is_heavy(asking, tensors)
        codec.decode_request(asking, tensors)
    assert len(asked.names) >= 6
    for name in asked.names:
        line = f"{name}: 1"
        assert known(line).find(request(line)) is None, f"{name} is read of requests, and heads with it are kept"
