"""gRPC beside HTTP on a real process: one queue, deadlines, clients that leave, drain, several processes, no port to be had."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from testkit.grpc_client import SERVICE, GrpcClient, make_request, refusal_of
from testkit.models import linear_config, mlp_config, save_linear, save_mlp
from testkit.runtime_process import RuntimeProcess, find_free_port
from testkit.wire import read_metric
from torchmodel_runtime.config import (
    EXIT_PERMANENT,
    EXIT_RETRYABLE,
    Batching,
    Grpc,
    Limits,
    Queue,
    Serving,
)
from torchmodel_runtime.ports.grpc_v2 import GrpcPort
from torchmodel_runtime.protos import open_inference_pb2 as pb
from torchmodel_runtime.protos.health_pb2 import HealthCheckRequest, HealthCheckResponse
from torchmodel_runtime.server import Server

HEALTH = "grpc.health.v1.Health"
Code = grpc.StatusCode
ROW = np.full((1, 10), 0.5, np.float32)
ENABLED = Grpc(enabled=True)
DELAY_S = 1.0
"""Long enough to see in the metrics what waits meanwhile, on a machine that does other things too."""
HTTP = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [0.5] * 10}]}


def wait_until(holds: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come to hold in time"
        time.sleep(0.02)


def serve_slowly(folder: Path, **serving: Any) -> RuntimeProcess:
    """A model that takes DELAY_S for a batch, whatever is in it."""
    save_mlp(folder)
    settings = Serving(**{"grpc": ENABLED, "processes": 1, "workers": 1, "batching": Batching(max_size=8), **serving})
    return RuntimeProcess(mlp_config(folder, kwargs={"delay_seconds": DELAY_S}, serving=settings))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with serve_slowly(tmp_path_factory.mktemp("mlp")) as server:
        yield server.wait_ready()


@pytest.fixture
def busy(slow: RuntimeProcess) -> Iterator[GrpcClient]:
    """A client of the slow model, which has just begun with a batch of one row."""
    with GrpcClient(slow) as client:
        wait_until(lambda: read_metric(slow, "torchmodel_in_flight_requests") == 0)
        begun = batches(slow)[0]
        first = client.begin(make_request(ROW, "mlp"))
        wait_until(lambda: read_metric(slow, "torchmodel_queue_wait_seconds_count") > begun)
        yield client
        assert first.result().outputs


def batches(server: RuntimeProcess) -> tuple[float, float]:
    """How many there were, and the rows in them."""
    name = "torchmodel_batch_rows"
    return read_metric(server, f"{name}_count"), read_metric(server, f"{name}_sum")


def queued(server: RuntimeProcess) -> float:
    return read_metric(server, "torchmodel_queued_rows")


def answered(server: RuntimeProcess, code: int) -> float:
    return read_metric(server, "torchmodel_requests_total", dialect="grpc", code=str(code))


# --- one queue, one deadline ---


def test_grpc_and_http_share_a_batch(slow: RuntimeProcess, busy: GrpcClient) -> None:
    count, rows = batches(slow)
    with ThreadPoolExecutor() as pool:
        over_http = pool.submit(slow.post, "/v2/models/mlp/infer", HTTP)
        over_grpc = busy.begin(make_request(ROW, "mlp"))
        wait_until(lambda: queued(slow) == 2)
        status, told = over_http.result()
        answer = over_grpc.result()
    assert status == 200
    assert np.frombuffer(answer.raw_output_contents[0], np.float32) == pytest.approx(told["outputs"][0]["data"])
    count_now, rows_now = batches(slow)
    assert (count_now - count, rows_now - rows) == (2, 3), "the first row alone, then the two together"


def test_a_request_past_its_deadline_is_not_computed_and_counts_as_expired(
    slow: RuntimeProcess, busy: GrpcClient
) -> None:
    expired, late = read_metric(slow, "torchmodel_abandoned_total", cause="expired"), answered(slow, 504)
    rows = batches(slow)[1]
    with pytest.raises(grpc.RpcError) as caught:
        busy.infer(make_request(ROW, "mlp"), timeout=DELAY_S / 4)
    assert caught.value.code() == Code.DEADLINE_EXCEEDED
    wait_until(lambda: answered(slow, 504) == late + 1)
    assert read_metric(slow, "torchmodel_abandoned_total", cause="expired") == expired + 1
    assert queued(slow) == 0
    wait_until(lambda: read_metric(slow, "torchmodel_in_flight_requests") == 0)
    assert batches(slow)[1] == rows + 1, "only the row that was being computed"


@pytest.mark.parametrize(
    ("metadata", "parameters"),
    [
        pytest.param((("x-request-timeout-milliseconds", "100"),), {}, id="our header"),
        pytest.param((("x-envoy-expected-rq-timeout-ms", "100"),), {}, id="Envoy's header"),
        pytest.param((), {"timeout": pb.InferParameter(int64_param=100_000)}, id="Triton's parameter"),
    ],
)
def test_a_shorter_deadline_may_be_said_as_over_http(
    busy: GrpcClient, metadata: tuple[tuple[str, str], ...], parameters: dict[str, pb.InferParameter]
) -> None:
    began_s = time.monotonic()
    refusal = busy.refusal(make_request(ROW, "mlp", parameters=parameters), metadata=metadata)
    assert refusal.code in (Code.DEADLINE_EXCEEDED, Code.UNAVAILABLE), (
        "or refused at once: it would not be ready in time"
    )
    assert "0.1 s" in refusal.details
    assert time.monotonic() - began_s < DELAY_S


def test_a_client_that_leaves_takes_its_request_out_of_the_queue(slow: RuntimeProcess, busy: GrpcClient) -> None:
    left, rows = answered(slow, 499), batches(slow)[1]
    leaving = busy.begin(make_request(ROW, "mlp"))
    wait_until(lambda: queued(slow) == 1)
    leaving.cancel()
    wait_until(lambda: queued(slow) == 0)
    wait_until(lambda: answered(slow, 499) == left + 1)
    wait_until(lambda: read_metric(slow, "torchmodel_in_flight_requests") == 0)
    assert batches(slow)[1] == rows + 1


def test_a_connection_that_breaks_takes_its_requests_out_of_the_queue(slow: RuntimeProcess, busy: GrpcClient) -> None:
    left = answered(slow, 499)
    with GrpcClient(slow) as other:
        pending = [other.begin(make_request(ROW, "mlp")) for _ in range(3)]
        wait_until(lambda: queued(slow) == 3)
    assert {refusal_of(call.exception()).code for call in pending} == {Code.CANCELLED}
    wait_until(lambda: queued(slow) == 0)
    wait_until(lambda: answered(slow, 499) == left + 3)


def test_a_row_that_the_model_fails_on_fails_alone(slow: RuntimeProcess, busy: GrpcClient) -> None:
    poison = make_request(np.full((1, 10), 666, np.float32), "mlp")
    well = busy.begin(make_request(ROW, "mlp"))
    refusal = busy.refusal(poison)
    assert refusal.code == Code.INTERNAL
    assert "secret" not in refusal.details
    assert well.result().outputs


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    with serve_slowly(tmp_path, queue=Queue(max_rows=1)) as server, GrpcClient(server.wait_ready()) as client:
        first = client.begin(make_request(ROW, "mlp"))
        wait_until(lambda: read_metric(server, "torchmodel_queue_wait_seconds_count") == 1)
        second = client.begin(make_request(ROW, "mlp"))
        wait_until(lambda: queued(server) == 1)
        refusal = client.refusal(make_request(ROW, "mlp"))
        assert refusal.code == Code.UNAVAILABLE
        assert "the queue is full: 1 of 1 rows wait already" in refusal.details
        assert int(refusal.trailing["retry-after"]) >= 1
        assert refusal.trailing["grpc-retry-pushback-ms"] == refusal.trailing["retry-after"] + "000"
        assert first.result().outputs
        assert second.result().outputs


# --- from the start to the end ---


def check(client: GrpcClient, service: str = "") -> int:
    return client.ask(
        "Check", HealthCheckRequest(service=service), HealthCheckResponse, HEALTH, wait_for_ready=True
    ).status


def test_from_the_first_moment_it_tells_that_it_is_not_ready(tmp_path: Path) -> None:
    save_linear(tmp_path)
    config = linear_config(tmp_path, serving=Serving(grpc=ENABLED, processes=1))
    with RuntimeProcess(config) as server, GrpcClient(server) as client:
        assert check(client, "live") == HealthCheckResponse.SERVING
        assert check(client) == HealthCheckResponse.NOT_SERVING
        assert client.ask("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
        assert not client.ask("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
        assert not client.ask("ModelReady", pb.ModelReadyRequest(name="linear"), pb.ModelReadyResponse).ready
        for method in ("ModelInfer", "ModelMetadata", "ModelConfig"):
            request = pb.ModelInferRequest(model_name="linear")
            refusal = client.refusal(request, f"/{SERVICE}/{method}")
            assert (refusal.code, refusal.details) == (Code.UNAVAILABLE, "model 'linear' is still loading")
            assert int(refusal.trailing["retry-after"]) >= 1
        watch = client.channel.unary_stream(f"/{HEALTH}/Watch", response_deserializer=HealthCheckResponse.FromString)
        told = watch(b"", timeout=60)
        assert next(told).status == HealthCheckResponse.NOT_SERVING
        server.wait_ready()
        assert next(told).status == HealthCheckResponse.SERVING
        server.terminate()
        assert next(told).status == HealthCheckResponse.NOT_SERVING
        assert list(told) == []
        assert server.wait_exit(20) == 0


def test_grpc_s_own_retries_go_by_what_a_refusal_says(tmp_path: Path) -> None:
    """A call that comes while the model loads is refused, waits as long as it was told to, and is answered."""
    save_linear(tmp_path)
    policy = {"maxAttempts": 5, "initialBackoff": "0.001s", "maxBackoff": "0.001s", "backoffMultiplier": 1}
    policy["retryableStatusCodes"] = ["UNAVAILABLE"]
    service = json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": policy}]})
    config = linear_config(tmp_path, serving=Serving(grpc=ENABLED, processes=1))
    with RuntimeProcess(config) as server, GrpcClient(server, ("grpc.service_config", service)) as client:
        assert check(client) == HealthCheckResponse.NOT_SERVING
        assert client.infer(make_request(ROW)).outputs
        assert 1 <= answered(server, 503) < 5, "with a back-off of a millisecond the attempts would have been used up"
        assert answered(server, 200) == 1


class Asking:
    """Threads that ask over and over, each on a connection of its own, and what came of it."""

    def __init__(self, server: RuntimeProcess, count: int = 6, model: str = "linear", **options: Any) -> None:
        self.outcomes: Counter[tuple[Code, str]] = Counter()
        self._connected = threading.Barrier(count + 1, timeout=30)
        self._server = server
        self._request = make_request(ROW, model)
        self._options = options
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def __enter__(self) -> Asking:
        for thread in self._threads:
            thread.start()
        self._connected.wait()
        wait_until(lambda: self.outcomes[Code.OK, ""] > 20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with GrpcClient(self._server) as client:
            client.infer(self._request, wait_for_ready=True)
            self._connected.wait()
            while not self._stopping.is_set():
                try:
                    client.infer(self._request, **self._options)
                    self.outcomes[Code.OK, ""] += 1
                except grpc.RpcError as error:
                    refusal = refusal_of(error)
                    self.outcomes[refusal.code, refusal.details] += 1
                    if "Failed to connect" in refusal.details or "Connection refused" in refusal.details:
                        return


def test_draining_answers_every_request_that_was_taken(tmp_path: Path) -> None:
    with serve_slowly(tmp_path) as server, GrpcClient(server.wait_ready()) as client:
        pending = [client.begin(make_request(ROW, "mlp")) for _ in range(12)]
        wait_until(lambda: queued(server) > 0)
        server.terminate()
        assert all(call.result().outputs for call in pending)
        assert server.wait_exit(20) == 0


def test_under_load_a_drain_fails_no_request_but_for_want_of_another_server(tmp_path: Path) -> None:
    save_linear(tmp_path)
    with RuntimeProcess(linear_config(tmp_path, serving=Serving(grpc=ENABLED, processes=1))) as server:
        with Asking(server.wait_ready()) as asking:
            server.terminate()
            assert server.wait_exit(20) == 0
        codes = {code for code, _ in asking.outcomes}
        assert codes <= {Code.OK, Code.UNAVAILABLE}
        assert all("connect" in details.lower() for code, details in asking.outcomes if code != Code.OK), (
            asking.outcomes
        )


# --- several processes ---


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def listeners(port: int) -> int:
    """Sockets that listen on the port (state 0A); those of gRPC take both families."""
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return sum(line[1].endswith(f":{port:04X}") and line[3] == "0A" for line in lines)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[RuntimeProcess]:
    save_linear(tmp_path)
    with RuntimeProcess(linear_config(tmp_path, serving=Serving(grpc=ENABLED, processes=2))) as server:
        server.wait_ready()
        wait_until(lambda: listeners(server.grpc_port) == 2, 60)
        yield server


def test_processes_share_the_port_and_their_requests_add_up(two: RuntimeProcess) -> None:
    for _ in range(30):
        with GrpcClient(two) as client:
            assert client.infer(make_request(ROW)).outputs
    assert answered(two, 200) == 30


def test_a_process_that_drains_while_others_serve_on_fails_no_request(two: RuntimeProcess) -> None:
    (sibling,) = children_of(two.process.pid)
    # the kernel may hand a new connection to the socket that closes just then; such a client tries another
    with Asking(two, count=8, wait_for_ready=True) as asking:
        os.kill(sibling, signal.SIGTERM)
        wait_until(lambda: listeners(two.grpc_port) == 1)
        before = asking.outcomes[Code.OK, ""]
        wait_until(lambda: asking.outcomes[Code.OK, ""] > before + 100)
    assert set(asking.outcomes) == {(Code.OK, "")}, asking.outcomes


# --- a port that cannot be ---


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    save_linear(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = RuntimeProcess(
            linear_config(tmp_path, serving=Serving(grpc=ENABLED)), grpc_port=taken.getsockname()[1]
        )
        with server:
            assert server.wait_exit(30) == EXIT_RETRYABLE
            failure = server.failure()
    assert failure is not None
    assert failure.reason == "ConfigInvalid"
    assert failure.message == f"cannot listen on 127.0.0.1:{server.grpc_port}: Address already in use"


def test_an_image_without_the_extra_ends_the_start_with_its_name(tmp_path: Path) -> None:
    save_linear(tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "grpc.py").write_text("raise ModuleNotFoundError(\"No module named 'grpc'\")\n")
    variables = {"PYTHONPATH": os.pathsep.join([str(hidden), os.environ.get("PYTHONPATH", "")])}
    with RuntimeProcess(linear_config(tmp_path, serving=Serving(grpc=ENABLED)), variables) as server:
        assert server.wait_exit(30) == EXIT_PERMANENT
        failure = server.failure()
    assert failure is not None
    assert failure.reason == "ConfigInvalid"
    assert "serving.grpc.enabled is true, but gRPC cannot be served here: No module named 'grpc'" in failure.message
    assert "torchmodel-operator[runtime,grpc]" in failure.next_step


def test_where_it_is_not_enabled_nothing_of_it_is_loaded(tmp_path: Path) -> None:
    save_linear(tmp_path)
    with RuntimeProcess(linear_config(tmp_path)) as server:
        server.wait_ready()
        assert server.post("/v2/models/linear/infer", {**HTTP})[0] == 200
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
        assert "cygrpc" not in mapped
        assert "google/_upb" not in mapped
        assert listeners(server.grpc_port) == 0


# --- connections ---


class Http2:
    """A client that says only what it is told to, and never more: frames by RFC 9113, header fields by RFC 7541."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self._frame(4, 0, 0, b""))

    def call(self, path: str, message: bytes) -> None:
        """One request on the first stream, whole."""
        fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "t"}
        fields |= {"content-type": "application/grpc", "te": "trailers"}
        block = b"".join(b"\0" + bytes([len(n)]) + n.encode() + bytes([len(v)]) + v.encode() for n, v in fields.items())
        data = b"\0" + struct.pack(">I", len(message)) + message
        self.socket.sendall(self._frame(1, 4, 1, block) + self._frame(0, 1, 1, data))

    def read(self) -> bytes:
        """What comes until the server closes."""
        read = b""
        while more := self.socket.recv(65536):
            read += more
        return read

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


async def test_a_connection_has_an_age_and_so_an_end_even_for_who_never_reads_its_answers() -> None:
    """max_connection_age_s, and then as long as a request and its body may take."""
    serving = Serving(grpc=ENABLED, request_timeout_seconds=1, limits=Limits(body_timeout_seconds=1))
    config = linear_config(Path("/nowhere"), serving=serving, grpc_port=find_free_port())
    port = GrpcPort(Server(config), max_connection_age_s=1)
    await port.open(shared=False)
    try:
        connection = Http2(config.grpc_port)
        connection.call(f"/{HEALTH}/Watch", b"")  # never ends by itself
        began_s = time.monotonic()
        read = await asyncio.to_thread(connection.read)
        seconds = time.monotonic() - began_s
        connection.socket.close()
    finally:
        await port.close()
    assert b"max_age" in read, "the client is told to make a new connection"
    assert b"\0\0\0\0\2\x08\2" in read, "the call goes on until then: NOT_SERVING"
    assert 1.9 < seconds < 6
