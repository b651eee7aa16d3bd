"""The shorter way for small requests against the usual one: the same answers, in order, whatever arrives on the connection."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testkit.models import linear_config, mlp_config, save_linear, save_mlp
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import Limits, Serving

DATA = [0.5] * 10
V2 = json.dumps({"id": "i", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": DATA}]}).encode()
V1 = json.dumps({"instances": [DATA]}).encode()
BAD = b'{"inputs": [}'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("linear")
    save_linear(folder)
    limits = Limits(body_timeout_seconds=1, idle_timeout_seconds=2)
    with RuntimeProcess(linear_config(folder, serving=Serving(processes=1, limits=limits))) as process:
        yield process.wait_ready()


class Wire:
    """One connection, read by Content-Length."""

    def __init__(self, server: RuntimeProcess) -> None:
        self.socket = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        self._seen = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        while b"\r\n\r\n" not in self._seen:
            self._receive()
        head, _, self._seen = self._seen.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        length = int(headers["content-length"])
        while len(self._seen) < length:
            self._receive()
        body, self._seen = self._seen[:length], self._seen[length:]
        return int(first.split()[1]), headers, body

    def is_closed(self) -> bool:
        return self.socket.recv(1) == b""

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._seen += data


def post(path: str, body: bytes, *headers: str, content_type: str = "application/json") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Type: {content_type}", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


PATHS = {
    "v2": ("/v2/models/linear/infer", V2),
    "v2 with version": ("/v2/models/linear/versions/1/infer", V2),
    "v1": ("/v1/models/linear:predict", V1),
    "torchserve": ("/predictions/linear", V1),
    "a bad body": ("/v2/models/linear/infer", BAD),
    "a bad body in the TorchServe dialect": ("/predictions/linear", BAD),
}


@pytest.mark.parametrize(("path", "body"), PATHS.values(), ids=PATHS.keys())
def test_both_ways_answer_alike(server: RuntimeProcess, path: str, body: bytes) -> None:
    with Wire(server) as wire:
        wire.send(post(path, body))
        hot = wire.answer()
        # chunked bodies and Expect go the usual way
        wire.send(
            f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        )
        usual = wire.answer()
    assert hot[0] == usual[0]
    assert json.loads(hot[2]) == json.loads(usual[2])
    volatile = ("date", "x-request-id")
    assert {k: v for k, v in hot[1].items() if k not in volatile} == {
        k: v for k, v in usual[1].items() if k not in volatile
    }


def test_pipelined_requests_of_both_ways_are_answered_in_order(server: RuntimeProcess) -> None:
    def numbered(number: int) -> bytes:
        return json.dumps({**json.loads(V2), "id": str(number)}).encode()

    path = "/v2/models/linear/infer"
    with Wire(server) as wire:
        wire.send(
            post(path, numbered(0))
            + post(path, numbered(1))
            + b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
            + post(path, BAD)
            + post("/v2/models/linear/%69nfer", numbered(4))  # another spelling: the usual way
            + post(path, numbered(5))
        )
        answers = [json.loads(wire.answer()[2]) for _ in range(6)]
    assert [answer.get("id") for answer in answers] == ["0", "1", None, None, "4", "5"]
    assert answers[2] == {"live": True}
    assert "error" in answers[3]


def test_a_request_in_pieces_is_answered(server: RuntimeProcess) -> None:
    request = post("/v2/models/linear/infer", V2)
    with Wire(server) as wire:
        for cut in (1, 40, len(request) - len(V2), len(request) - 5):
            wire.send(request[:cut])
            time.sleep(0.02)
            wire.send(request[cut:])
            assert wire.answer()[0] == 200


def test_connection_close_is_followed(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        wire.send(post("/v2/models/linear/infer", V2, "Connection: close"))
        status, headers, _ = wire.answer()
        assert (status, headers["connection"]) == (200, "close")
        assert wire.is_closed()


@pytest.mark.parametrize(
    "garbage",
    [
        b"NONSENSE\r\n\r\n",
        b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}",
        b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/linear/infer HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20000 + b"\r\n\r\n",
    ],
    ids=["no request", "two framings", "two lengths", "a negative length", "a header over the limit"],
)
def test_after_a_hot_request_bad_http_is_refused_and_the_connection_closed(
    server: RuntimeProcess, garbage: bytes
) -> None:
    with Wire(server) as wire:
        wire.send(post("/v2/models/linear/infer", V2))
        assert wire.answer()[0] == 200
        wire.send(garbage)
        assert wire.answer()[0] == 400
        assert wire.is_closed()


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        for _ in range(4):  # together longer than idleTimeoutSeconds
            time.sleep(0.7)
            wire.send(post("/v2/models/linear/infer", V2))
            assert wire.answer()[0] == 200
        began_s = time.monotonic()
        assert wire.is_closed()
        assert 1 < time.monotonic() - began_s < 8


def test_a_client_that_sends_slowly_is_timed_out(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        wire.send(post("/v2/models/linear/infer", V2)[:-10])
        status, _, body = wire.answer()
        assert status == 408
        assert "serving.limits.bodyTimeoutSeconds" in json.loads(body)["error"]


def test_a_client_that_sends_no_whole_head_is_cut(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        wire.send(b"POST /v2/models/linear/infer HTTP/1.1\r\nHost:")
        assert wire.is_closed()


def test_a_client_that_never_reads_is_cut_and_others_are_served(tmp_path: Path) -> None:
    save_linear(tmp_path, outputs=4000)
    limits = Limits(body_timeout_seconds=1)
    with RuntimeProcess(linear_config(tmp_path, outputs=4000, serving=Serving(limits=limits))) as process:
        process.wait_ready()
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", process.port))
        deaf.settimeout(20)
        deaf.sendall(post("/v2/models/linear/infer", V2) * 200)  # answers of some 40 kB each
        with Wire(process) as wire:
            for _ in range(20):
                wire.send(post("/v2/models/linear/infer", V2))
                assert wire.answer()[0] == 200
                time.sleep(0.1)
        assert _count_bytes(deaf) < 200 * 4000 * 5  # what the kernel held, and not all the answers


def _count_bytes(connection: socket.socket) -> int:
    """All that still comes, to the end."""
    count = 0
    with connection:
        try:
            while data := connection.recv(1 << 20):
                count += len(data)
        except ConnectionResetError:
            pass
    return count


def test_a_client_that_leaves_is_counted_and_not_computed(tmp_path: Path) -> None:
    save_mlp(tmp_path)
    with RuntimeProcess(mlp_config(tmp_path, kwargs={"delay_seconds": 0.4}, serving=Serving(workers=1))) as process:
        process.wait_ready()
        v2 = V2.replace(b"linear", b"mlp")
        with Wire(process) as busy:
            busy.send(post("/v2/models/mlp/infer", v2))
            time.sleep(0.1)
            for _ in range(3):
                with Wire(process) as leaving:
                    leaving.send(post("/v2/models/mlp/infer", v2))
                    time.sleep(0.05)
            assert busy.answer()[0] == 200
        time.sleep(0.2)
        metrics = process.get("/metrics")[1].decode()
        assert re.search(r'torchmodel_requests_total\{[^}]*code="499"[^}]*\} 3\.0', metrics)
        assert re.search(r"torchmodel_in_flight_requests\S* 0\.0", metrics)
