"""What is no HTTP: answered as every other refusal is, counted, and neither repeated nor logged at length."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from testkit.models import linear_config, save_linear
from testkit.runtime_process import RuntimeProcess
from testkit.wire import Wire, post, read_metric
from torchmodel_runtime.config import Limits, Serving, Telemetry

PATH = "/v2/models/linear/infer"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [0.5] * 10}]}).encode()
CHUNKED = (
    f"POST {PATH} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
)


def head(*lines: str) -> bytes:
    return "\r\n".join([f"POST {PATH} HTTP/1.1", *lines, "", ""]).encode()


MALFORMED: dict[str, tuple[bytes, str]] = {
    "no request": (b"NONSENSE\r\n\r\n", "Invalid method"),
    "two framings": (
        head("Host: a", "Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        "Transfer-Encoding",
    ),
    "two lengths": (head("Host: a", "Content-Length: 1", "Content-Length: 2") + b"{}", "Content-Length"),
    "a negative length": (head("Host: a", "Content-Length: -1"), "Content-Length"),
    "a header over the limit": (head("Host: a", "X: " + "x" * 5000), "4096 bytes (serving.limits.maxHeaderBytes)"),
    "a target over the limit": (
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "serving.limits.maxHeaderBytes",
    ),
    "too many headers": (head("Host: a", *(f"X-{n}: y" for n in range(200))), "Too many headers"),
    "no host": (head("X: y"), "'Host'"),
    "a nul byte": (head("Host: a", "X: se\0cret"), "Invalid header value"),
    "bare line feeds": (head("Host: a").replace(b"\r\n", b"\n"), "CRLF"),
    "a folded line": (head("Host: a", "X: a", " secret"), "whitespace after header value"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", "TLS"),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2"),
    "another version": (head("Host: a").replace(b"HTTP/1.1", b"HTTP/3.0"), "version"),
    "a target that is no path": (b"CONNECT : HTTP/1.1\r\nHost: secret\r\n\r\n", "request line"),
    "a bad chunk": (CHUNKED + b"secret\r\n", "chunk size"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("linear")
    save_linear(folder)
    serving = Serving(
        processes=1,
        limits=Limits(body_timeout_seconds=20, max_header_bytes=4096),
        telemetry=Telemetry(access_log_ratio=0.1),
    )
    with RuntimeProcess(linear_config(folder, serving=serving)) as process:
        yield process.wait_ready()


@pytest.mark.parametrize("before", [False, True], ids=["first", "after a known head"])
@pytest.mark.parametrize(("data", "words"), MALFORMED.values(), ids=MALFORMED.keys())
def test_it_is_refused_in_our_own_form_and_the_connection_closed(
    server: RuntimeProcess, data: bytes, words: str, before: bool
) -> None:
    refused = read_metric(server, "torchmodel_rejected_total", reason="MALFORMED_REQUEST")
    with Wire(server) as wire:
        for _ in range(2 * before):
            wire.send(post(PATH, BODY))
            assert wire.answer()[0] == 200
        wire.send(data)
        status, headers, body = wire.answer()
        assert (status, headers["content-type"], headers["connection"]) == (400, "application/json", "close")
        assert headers["x-request-id"]
        message = json.loads(body)["error"]
        assert words in message
        assert "secret" not in message
        assert len(message) < 200
        assert wire.is_closed()
    assert read_metric(server, "torchmodel_rejected_total", reason="MALFORMED_REQUEST") == refused + 1


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(server: RuntimeProcess) -> None:
    request = post(PATH, BODY, "Expect: 100-continue")
    with Wire(server) as wire:
        wire.send(request[: -len(BODY)])
        assert wire.socket.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(BODY)
        assert wire.answer()[0] == 200


def test_an_expectation_that_is_unknown_is_refused_in_our_own_form(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        wire.send(post("/predictions/linear", BODY, "Expect: a miracle"))
        status, headers, body = wire.answer()
        assert (status, headers["content-type"]) == (417, "application/json")
        assert headers["x-request-id"]
        assert json.loads(body)["message"] == "Expect 'a miracle': must be 100-continue"


@pytest.mark.parametrize(
    ("path", "field"), [(PATH, "error"), ("/v1/models/linear:predict", "error"), ("/predictions/linear", "message")]
)
def test_a_body_that_stops_being_http_is_refused_at_once_in_the_form_of_its_route(
    server: RuntimeProcess, path: str, field: str
) -> None:
    with Wire(server) as wire:
        wire.send(CHUNKED.replace(PATH.encode(), path.encode()))
        time.sleep(0.1)  # the request is being read by now
        began_s = time.monotonic()
        wire.send(b'2\r\n{"\r\nsecret\r\n')
        status, _, body = wire.answer()
        assert status == 400
        assert "chunk size" in json.loads(body)[field]
        assert wire.is_closed()
        assert time.monotonic() - began_s < 10  # and not after bodyTimeoutSeconds


def test_a_refused_request_whose_body_stops_being_http_logs_no_error(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        wire.send(CHUNKED.replace(b"linear", b"another"))
        assert wire.answer()[0] == 404
        wire.send(b"secret\r\n")
        assert wire.is_closed()
    assert '"level":"error"' not in server.log


def test_a_thousand_of_them_leave_the_sample_in_the_log_and_no_traceback(server: RuntimeProcess) -> None:
    for _ in range(1000):
        with Wire(server) as wire:
            wire.send(b"NONSENSE with a secret\r\n\r\n")
            assert wire.answer()[0] == 400
    lines = [json.loads(line) for line in server.log.splitlines()]
    sample = [line for line in lines if line.get("code") == "MALFORMED_REQUEST"]
    assert 50 <= len(sample) <= 150
    assert all(line["status"] == 400 and line["requestId"] and "127.0.0.1" not in str(line) for line in sample)
    assert "secret" not in server.log
    assert '"level":"error"' not in server.log
