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
from testkit.wire import Wire, post
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


def test_an_idle_connection_is_closed_and_a_busy_one_is_not(server: RuntimeProcess) -> None:
    with Wire(server) as wire:
        for _ in range(4):  # together longer than idleTimeoutSeconds
            time.sleep(0.7)
            wire.send(post("/v2/models/linear/infer", V2))
            assert wire.answer()[0] == 200
        began_s = time.monotonic()
        assert wire.is_closed()
        assert 1 < time.monotonic() - began_s < 8


@pytest.mark.parametrize("path", ["/v2/models/linear/infer", "/v2/repository/index"])
def test_a_client_that_sends_slowly_is_timed_out(server: RuntimeProcess, path: str) -> None:
    with Wire(server) as wire:
        wire.send(post(path, V2)[:-10])
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


def test_a_client_that_reads_slowly_but_steadily_gets_all_of_a_large_answer(tmp_path: Path) -> None:
    save_linear(tmp_path, outputs=4000)
    limits = Limits(body_timeout_seconds=1)
    with RuntimeProcess(linear_config(tmp_path, outputs=4000, serving=Serving(limits=limits))) as process:
        process.wait_ready()
        body = json.dumps({"instances": [DATA] * 250}).encode()  # an answer of some 20 MB: more than the kernel holds
        with Wire(process, receive_bytes=1 << 16) as wire:
            wire.send(post("/v1/models/linear:predict", body))
            began_s, size, head = time.monotonic(), 0, b""
            while time.monotonic() - began_s < 4:  # several times bodyTimeoutSeconds
                data = wire.socket.recv(1 << 16)
                assert data
                head = head or data
                size += len(data)
                time.sleep(0.05)
            length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
            whole = length + head.index(b"\r\n\r\n") + 4
            assert size < whole / 2, "the answer was too small to show anything"
            while size < whole:
                data = wire.socket.recv(1 << 20)
                assert data, f"cut after {size} of {whole} bytes"
                size += len(data)


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
