"""Connections: what is no HTTP, what two readers could read differently, and clients that are slow, silent or gone."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hostile.asking import TIMEOUT_S, ask, failures_inside, read_answer
from hostile.attack import v2
from hostile.attacks import http
from hostile.attacks.http import CHUNKED, PATH, Bytes, head
from testkit.models import mlp_config, save_mlp
from testkit.runtime_process import RuntimeProcess
from testkit.wire import Wire, post
from torchmodel_runtime.config import Limits, Serving

LIMITS = Limits(body_timeout_seconds=2, idle_timeout_seconds=3)
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("mlp")
    save_mlp(folder)
    serving = Serving(processes=1, workers=1, threads=1, max_request_bytes=1 << 20, limits=LIMITS)
    with RuntimeProcess(mlp_config(folder, serving=serving)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def good(server: RuntimeProcess) -> Any:
    status, answer = server.post(PATH, v2())
    assert status == 200
    return answer


@pytest.mark.parametrize("attack", http.ATTACKS, ids=[attack.title for attack in http.ATTACKS])
@pytest.mark.parametrize("before", [0, 2], ids=["first", "after good requests"])
def test_it_gets_one_answer_and_the_connection_is_closed(
    server: RuntimeProcess, good: Any, attack: Bytes, before: int
) -> None:
    """After good requests the server knows the head, and has a shorter way for it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        for _ in range(before):
            connection.sendall(post(PATH, v2()))
            assert read_answer(connection)[0] == 200
        # where it closes before it has read ten megabytes
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(attack.sent)
        got = _read_all(connection)
    told, _, body = got.partition(b"\r\n\r\n")
    assert int(told.split()[1]) == attack.status, got
    assert attack.status != 400 or b"Connection: close" in told
    error = json.loads(body)  # the whole rest: there is no second answer
    assert attack.says in (error.get("error") or error["message"])
    assert server.post(PATH, v2()) == (200, good)


def _read_all(connection: socket.socket) -> bytes:
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            got += data
    return got


UNUSUAL = {
    "a chunk's size of 10,000 digits": head(CHUNKED) + b"0" * 10_000 + b"%x\r\n%s\r\n0\r\n\r\n" % (len(v2()), v2()),
    "a chunk's extension": head(CHUNKED) + b"%x;name=value\r\n%s\r\n0\r\n\r\n" % (len(v2()), v2()),
    "a chunk for each byte": head(CHUNKED) + b"".join(b"1\r\n%c\r\n" % byte for byte in v2()) + b"0\r\n\r\n",
    "trailers": head(CHUNKED) + b"%x\r\n%s\r\n0\r\nX: y\r\n\r\n" % (len(v2()), v2()),
    "empty lines before": b"\r\n\r\n" + post(PATH, v2()),
    "a target in absolute form": post(PATH, v2()).replace(b"POST /", b"POST http://other/"),
    "a path in escapes": post(PATH.replace("infer", "%69%6e%66%65%72"), v2()),
    "two blanks in the request line": post(PATH, v2()).replace(b"POST ", b"POST  "),
    "fields of every kind": post(PATH, v2(), *(f"X-{n}: {'y' * n}" for n in range(100)), "Cookie: a=b", "Upgrade: h2c"),
    "a request id of garbage": post(PATH, v2(), "X-Request-Id: \u00e9\u00e8" + "x" * 500),
    "a trace of garbage": post(PATH, v2(), "traceparent: 00-0-0-0", "traceparent: \u00ff", "tracestate: ,,=,"),
    "an expectation": head("Expect: 100-continue", f"Content-Length: {len(v2())}") + v2(),
}


@pytest.mark.parametrize("sent", UNUSUAL.values(), ids=UNUSUAL.keys())
def test_what_is_unusual_and_right_is_answered(server: RuntimeProcess, good: Any, sent: bytes) -> None:
    """And what follows on the connection is read from where it begins."""
    with Wire(server) as wire:
        wire.send(sent + LIVE)
        status, headers, body = _answer_after_continue(wire)
        assert (status, json.loads(body)) == (200, good)
        assert headers["x-request-id"].isascii()
        assert json.loads(wire.answer()[2]) == {"live": True}


def _answer_after_continue(wire: Wire) -> tuple[int, dict[str, str], bytes]:
    wire.socket.settimeout(TIMEOUT_S)
    begin = wire.socket.recv(25, socket.MSG_PEEK)
    if begin.startswith(b"HTTP/1.1 100"):
        assert wire.socket.recv(len(b"HTTP/1.1 100 Continue\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return wire.answer()


def test_http_0_9_is_read_to_its_line_and_no_further(server: RuntimeProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(b"GET /v2/health/live\r\n\r\n" + LIVE)
        assert _read_all(connection).count(b'{"live":true}') <= 1


def test_a_body_that_does_not_come_gets_408(server: RuntimeProcess) -> None:
    for path, more in ((PATH, b'{"inputs"'), ("/predictions/mlp", b""), ("/v2/repository/index", b"{")):
        began_s = time.monotonic()
        sent = head("Content-Length: 100", path=path) + more
        status, _, body = ask(server, sent)
        assert (status, b"2 s (serving.limits.bodyTimeoutSeconds)" in body) == (408, True), path
        assert 1.5 < time.monotonic() - began_s < TIMEOUT_S


@pytest.mark.parametrize("framing", ["Content-Length: 100000", CHUNKED], ids=["length", "chunks"])
def test_a_body_that_drips_gets_408(server: RuntimeProcess, framing: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(head(framing))
        connection.setblocking(False)
        end_s = time.monotonic() + TIMEOUT_S
        seen = b""
        while not seen and time.monotonic() < end_s:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(b" " if framing != CHUNKED else b"1\r\n \r\n")
            time.sleep(0.1)
            with contextlib.suppress(BlockingIOError):
                seen = connection.recv(65536)
        connection.settimeout(TIMEOUT_S)
        assert read_answer(connection, seen)[0] == 408


def test_a_head_that_drips_is_cut(server: RuntimeProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        began_s = time.monotonic()
        connection.sendall(b"POST /v2/models/mlp/infer HTTP/1.1\r\nHost: ")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while time.monotonic() - began_s < TIMEOUT_S:
                connection.sendall(b"x")
                time.sleep(0.2)
        assert time.monotonic() - began_s < TIMEOUT_S


def test_a_silent_connection_is_closed(server: RuntimeProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        began_s = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - began_s < TIMEOUT_S


def test_too_large_a_body_is_refused_before_it_is_sent(server: RuntimeProcess) -> None:
    status, _, body = ask(server, head(f"Content-Length: {1 << 40}"))
    assert (status, b"1048576 bytes (serving.maxRequestBytes)" in body) == (413, True)
    status, _, body = ask(server, head(CHUNKED) + b"%x\r\n" % (2 << 20) + b" " * (2 << 20))
    assert (status, b"1048576 bytes (serving.maxRequestBytes)" in body) == (413, True)


def test_a_chunk_that_turns_bad_after_a_while_is_no_failure_inside(server: RuntimeProcess) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(head(CHUNKED) + b"5\r\n     \r\n")
        time.sleep(0.3)
        connection.sendall(b"no number\r\n" + LIVE)
        got = _read_all(connection)
    assert got.startswith(b"HTTP/1.1 400")
    assert b"chunk size" in got
    assert b"live" not in got


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"PO",
        head("Content-Length: 100"),
        head("Content-Length: 100") + b'{"in',
        head(CHUNKED) + b"5\r\nab",
        post(PATH, v2()),
    ],
    ids=["at once", "in the method", "before the body", "in the body", "in a chunk", "before the answer"],
)
def test_clients_that_leave_are_no_failure_inside(server: RuntimeProcess, good: Any, sent: bytes) -> None:
    for how in (socket.SHUT_RDWR, socket.SHUT_WR, None):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
                connection.sendall(sent)
                if how is not None:
                    connection.shutdown(how)
                else:  # reset
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert server.post(PATH, v2()) == (200, good)


def test_a_bad_request_in_the_middle_of_a_pipeline(server: RuntimeProcess) -> None:
    """What follows it is answered where the framing is whole, and never seen where it is not."""
    with Wire(server) as wire:
        numbered = [v2(more={"id": str(number)}) for number in range(4)]
        bad = [v2(name="z"), b"{", b"[" * 100_000]
        mixed = [body for pair in zip(numbered, [*bad, numbered[0]], strict=True) for body in pair]
        wire.send(b"".join(post(PATH, body) for body in mixed))
        answers = [wire.answer() for _ in mixed]
        assert [status for status, _, _ in answers] == [200, 400, 200, 400, 200, 400, 200, 200]
        assert [json.loads(body).get("id") for _, _, body in answers[::2]] == ["0", "1", "2", "3"]
        wire.send(head("Content-Length: x") + post(PATH, numbered[2]))
        assert wire.answer()[0] == 400
        assert wire.is_closed()


def test_a_thousand_requests_at_once_on_one_connection_are_answered_in_order(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        for start in range(0, 1000, 100):
            wire.send(b"".join(post(PATH, v2(more={"id": str(n)})) for n in range(start, start + 100)))
            for number in range(start, start + 100):
                assert json.loads(wire.answer()[2])["id"] == str(number)


def test_many_silent_connections_keep_nobody_out(server: RuntimeProcess, good: Any) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) for _ in range(500)]
    try:
        for index, connection in enumerate(silent):
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall((b"", b"POST ", head("Content-Length: 9"), head(CHUNKED) + b"9\r\n")[index % 4])
        assert server.post(PATH, v2()) == (200, good)
    finally:
        for connection in silent:
            connection.close()


def test_no_attack_was_a_failure_inside(server: RuntimeProcess) -> None:
    assert failures_inside(server) == []
