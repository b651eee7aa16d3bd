"""Requests whose head the process knows, on a real connection: the parser and the task are really left out, and nobody can tell.

`torchmodel_http_requests_total` says which way each request went; tests/unit/test_runtime_heads.py what makes a head known.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from testkit.models import linear_config, mlp_config, save_linear, save_mlp
from testkit.runtime_process import RuntimeProcess
from testkit.wire import Wire, post, read_metric, read_ways
from torchmodel_runtime.config import Limits, Serving

PATH = "/v2/models/linear/infer"
KNOWN, PARSED, FRAMEWORK = ("known", "passage"), ("parsed", "passage"), ("parsed", "framework")


def body(identity: str = "i", first: float = 0.5) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [first] + [0.5] * 9}
    return json.dumps({"id": identity, "inputs": [tensor]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("linear")
    save_linear(folder)
    limits = Limits(body_timeout_seconds=2)
    with RuntimeProcess(linear_config(folder, serving=Serving(processes=1, limits=limits))) as process:
        yield process.wait_ready()


class Counted:
    """How many requests went which way since it was made."""

    def __init__(self, server: RuntimeProcess) -> None:
        self._server = server
        self._before = read_ways(server)

    def ways(self) -> dict[tuple[str, str], int]:
        changes = {way: count - self._before.get(way, 0) for way, count in read_ways(self._server).items()}
        return {way: count for way, count in changes.items() if count}


def ask(wire: Wire, request: bytes) -> dict[str, Any]:
    wire.send(request)
    status, _, answer = wire.answer()
    assert status == 200, answer
    decoded: dict[str, Any] = json.loads(answer)
    return decoded


def test_the_second_of_equal_heads_skips_the_parser_and_every_small_request_the_task(server: RuntimeProcess) -> None:
    counted, request = Counted(server), post(PATH, body(), "X-Test: skips")
    with Wire(server) as wire:
        answers = [ask(wire, request) for _ in range(5)]
    with Wire(server) as wire:  # heads are known to the process
        answers.append(ask(wire, request))
    assert counted.ways() == {PARSED: 1, KNOWN: 5}
    assert all(answer == answers[0] for answer in answers)


def test_what_comes_before_the_server_waits_for_it_takes_the_short_way_too(server: RuntimeProcess) -> None:
    """The first request comes with its connection, each of the others the moment that the answer before is there."""
    counted, request = Counted(server), post(PATH, body(), "X-Test: at once")
    for _ in range(20):
        with Wire(server) as wire:
            for _ in range(5):
                ask(wire, request)
                wire.send(b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n")
                assert wire.answer()[0] == 200
    assert counted.ways() == {PARSED: 1, KNOWN: 99}


def test_heads_of_requests_that_came_in_pieces_or_chunks_are_not_known(server: RuntimeProcess) -> None:
    counted, request = Counted(server), post(PATH, body(), "X-Test: pieces")
    for _ in range(2):
        with Wire(server) as wire:
            wire.send(request[:-20])
            time.sleep(0.05)
            ask(wire, request[-20:])
            ask(wire, request)  # what comes next is not known to begin a request
    assert counted.ways() == {FRAMEWORK: 2, PARSED: 2}


def test_a_request_cut_at_any_byte_after_a_known_head_is_answered(server: RuntimeProcess) -> None:
    request = post(PATH, body("first"), "X-Test: cut")
    following = post(PATH, body("other"), "X-Test: cut")
    for cut in range(1, len(following)):
        with Wire(server) as wire:
            assert ask(wire, request)["id"] == "first"
            wire.send(following[:cut])
            time.sleep(0.001)
            assert ask(wire, following[cut:])["id"] == "other", f"cut after {cut} bytes"


def test_pipelined_requests_after_a_known_head_are_answered_in_order(server: RuntimeProcess) -> None:
    names = [f"{number:02d}" for number in range(40)]  # more than are read ahead
    requests = [post(PATH, body(name), "X-Test: pipelined") for name in names]
    with Wire(server) as wire:
        ask(wire, requests[0])
        wire.send(requests[0])  # known, and on its way when the others come
        wire.send(b"".join(requests[1:]))
        assert [json.loads(wire.answer()[2])["id"] for _ in names] == names


def test_bytes_after_a_known_request_begin_the_next(server: RuntimeProcess) -> None:
    request = post(PATH, body("a"), "X-Test: rest")
    with Wire(server) as wire:
        ask(wire, request)
        wire.send(request + request[:30])
        assert json.loads(wire.answer()[2])["id"] == "a"
        assert ask(wire, request[30:])["id"] == "a"


def test_fields_that_say_more_are_heard_after_a_plain_head(server: RuntimeProcess) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    with Wire(server) as wire:
        for _ in range(2):
            ask(wire, post(PATH, body()))
        wire.send(post(PATH, body(), "x-request-id: mine"))
        assert wire.answer()[1]["x-request-id"] == "mine"
        wire.send(post(PATH, body(), f"traceparent: 00-{trace}-b7ad6b7169203331-01"))
        assert wire.answer()[0] == 200
        wire.send(post(PATH, body(), "X-Request-Timeout-Milliseconds: none"))
        assert wire.answer()[0] == 400
        wire.send(post(PATH, body(), "Accept: text/html"))
        assert wire.answer()[0] == 406
        wire.send(post(PATH, body(), "Content-Encoding: gzip"))
        assert wire.answer()[0] == 400
        wire.send(post(PATH, body()))  # and not after them
        status, headers, _ = wire.answer()
        assert status == 200
        assert headers["x-request-id"] != "mine"


def test_ids_of_answers_under_one_head_all_differ(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        ids = set()
        for _ in range(20):
            wire.send(post(PATH, body()))
            ids.add(wire.answer()[1]["x-request-id"])
    assert len(ids) == 20


def test_heads_that_differ_in_content_length_alone_keep_their_bodies_apart(server: RuntimeProcess) -> None:
    counted = Counted(server)
    with Wire(server) as wire:
        for _ in range(2):
            for name in ("a", "bb", "ccc"):
                assert ask(wire, post(PATH, body(name), "X-Test: length"))["id"] == name
    assert counted.ways() == {PARSED: 3, KNOWN: 3}


def test_a_body_with_an_empty_line_in_it_is_read_as_one(server: RuntimeProcess) -> None:
    request = post(PATH, b"{\r\n\r\n" + body()[1:] + b"\r\n\r\n", "X-Test: empty line")
    counted = Counted(server)
    with Wire(server) as wire:
        for _ in range(3):
            assert ask(wire, request)["id"] == "i"
    assert counted.ways() == {PARSED: 1, KNOWN: 2}


@pytest.mark.parametrize("part", ["all lines", "one line", "the last line"])
def test_a_known_head_with_bare_line_feeds_is_no_http(server: RuntimeProcess, part: str) -> None:
    request = post(PATH, body(), "X-Test: line feed")
    head, _, rest = request.partition(b"\r\n\r\n")
    bare = {
        "all lines": head.replace(b"\r\n", b"\n") + b"\n\n" + rest,
        "one line": head.replace(b"\r\nX-Test", b"\nX-Test") + b"\r\n\r\n" + rest,
        "the last line": head + b"\r\n\n" + rest,
    }[part]
    with Wire(server) as wire:
        ask(wire, request)
        wire.send(bare)
        assert wire.answer()[0] == 400
        assert wire.is_closed()


def test_what_is_wrong_with_a_body_under_a_known_head_is_told(server: RuntimeProcess) -> None:
    right = post(PATH, body(), "X-Test: wrong")
    wrong = right.replace(b'"FP32"', b'"FP64"')
    with Wire(server) as wire:
        ask(wire, right)
        wire.send(wrong)
        status, _, answer = wire.answer()
        assert status == 400
        assert "FP64" in json.loads(answer)["error"]
        ask(wire, right)


def test_connection_close_is_followed_after_known_heads(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        for _ in range(2):
            ask(wire, post(PATH, body()))
        wire.send(post(PATH, body(), "Connection: close"))
        status, headers, _ = wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert wire.is_closed()


def test_thousands_of_different_heads_are_all_answered_and_few_are_kept(server: RuntimeProcess) -> None:
    def numbered(number: int) -> bytes:
        return post(PATH, body(), f"X-Number: {number}", f"X-Padding: {'p' * 1500}")

    with Wire(server) as wire:
        for number in range(1100):
            ask(wire, numbered(number))
        before = read_metric(server, "process_resident_memory_bytes")
        for number in range(1100, 4400):
            ask(wire, numbered(number))
        after = read_metric(server, "process_resident_memory_bytes")
        assert after - before < 4 << 20  # all of them would be 5 MiB of bytes alone, and several times that as fields
        counted = Counted(server)
        ask(wire, numbered(0))
        ask(wire, numbered(4399))
    assert counted.ways() == {PARSED: 1, KNOWN: 1}


# --- passages under way ---


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[RuntimeProcess]:
    save_mlp(tmp_path)
    serving = Serving(processes=1, workers=1, limits=Limits(body_timeout_seconds=2))
    with RuntimeProcess(mlp_config(tmp_path, kwargs={"delay_seconds": 0.4}, serving=serving)) as process:
        yield process.wait_ready()


def test_clients_that_leave_in_the_middle_of_a_passage_are_counted_and_not_computed(slow: RuntimeProcess) -> None:
    request = post("/v2/models/mlp/infer", body())
    with Wire(slow) as busy:
        ask(busy, request)
        rows = read_metric(slow, "torchmodel_batch_rows_sum")
        counted = Counted(slow)
        busy.send(request)
        time.sleep(0.1)
        for _ in range(5):
            with Wire(slow) as leaving:
                leaving.send(request)
                time.sleep(0.03)
        assert busy.answer()[0] == 200
        assert ask(busy, request)["id"] == "i"  # the next batch, in which they would have been
    assert counted.ways() == {KNOWN: 7}
    assert read_metric(slow, "torchmodel_requests_total", dialect="v2", code="499") == 5
    assert read_metric(slow, "torchmodel_abandoned_total", cause="disconnected") == 5
    assert read_metric(slow, "torchmodel_batch_rows_sum") - rows == 2
    assert read_metric(slow, "torchmodel_in_flight_requests") == 0
    assert read_metric(slow, "torchmodel_queued_rows") == 0


def test_draining_answers_the_passages_under_way_and_ends_well(slow: RuntimeProcess) -> None:
    request = post("/v2/models/mlp/infer", body())
    wires = [Wire(slow) for _ in range(6)]
    try:
        for wire in wires:
            ask(wire, request)
        wires[0].send(request)
        time.sleep(0.1)  # it computes, the others wait
        for wire in wires[1:]:
            wire.send(request)
        time.sleep(0.05)
        slow.terminate()
        for wire in wires:
            status, headers, _ = wire.answer()
            assert (status, headers.get("connection")) == (200, "close")
            assert wire.is_closed()
    finally:
        for wire in wires:
            wire.socket.close()
    assert slow.wait_exit() == 0


def test_what_is_no_http_has_its_turn_after_the_passage_under_way(slow: RuntimeProcess) -> None:
    request = post("/v2/models/mlp/infer", body())
    with Wire(slow) as wire:
        ask(wire, request)
        wire.send(request)
        time.sleep(0.1)
        wire.send(b"NONSENSE\r\n\r\n")
        assert [wire.answer()[0] for _ in range(2)] == [200, 400]
        assert wire.is_closed()


def test_a_client_that_pauses_and_then_reads_gets_all_its_answers_in_order(tmp_path: Path) -> None:
    save_linear(tmp_path, outputs=4000)
    limits = Limits(body_timeout_seconds=3)
    config = linear_config(tmp_path, outputs=4000, serving=Serving(processes=1, limits=limits))
    names = [f"{number:03d}" for number in range(150)]  # answers of some 45 kB each
    with RuntimeProcess(config) as server:
        server.wait_ready()
        with Wire(server, receive_bytes=4096) as wire:
            first = post(PATH, body("000"))
            ask(wire, first)
            wire.send(first)
            wire.send(b"".join(post(PATH, body(name)) for name in names[1:]))
            time.sleep(1)
            with Wire(server) as other:
                ask(other, first)
                done = read_metric(server, "torchmodel_requests_total", code="200")
                assert done < len(names)  # nobody computes what the client does not read
            answers = [json.loads(wire.answer()[2]) for _ in names]
    assert [answer["id"] for answer in answers] == names
    assert all(answer["outputs"] == answers[0]["outputs"] for answer in answers)
