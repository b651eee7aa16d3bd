"""Starting, overload, time-outs, leaving clients and draining of a real process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from testkit.models import linear_config, mlp_config, save_linear, save_mlp
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import Architecture, Batching, CodeFile, Queue, Serving

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [1.0] * 10}]}

DELAY_MS = 1000

SLOW_TO_LOAD = """
import time, torch
time.sleep(1.5)
class Net(torch.nn.Linear):
    pass
"""

GATED = """
import pathlib, time, torch

class Gated(torch.nn.Linear):
    '''Waits in forward while the file `gate` exists.'''
    def __init__(self, gate):
        super().__init__(10, 1)
        self.gate = pathlib.Path(gate)

    def forward(self, x):
        while self.gate.exists():
            time.sleep(0.01)
        return super().forward(x)
"""


class Gate:
    """Holds the model's forward from the outside."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def close(self) -> None:
        self.path.touch()

    def open(self) -> None:
        self.path.unlink(missing_ok=True)


def wait_for(server: RuntimeProcess, text: str, timeout_s: float = 10) -> None:
    """Until a line of the metrics begins with text."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if any(line.startswith(text) for line in server.get("/metrics")[1].decode().splitlines()):
            return
        time.sleep(0.01)
    raise AssertionError(f"no metric {text}:\n{server.get('/metrics')[1].decode()}")


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RuntimeProcess, Gate]]:
    folder = tmp_path_factory.mktemp("gated")
    save_linear(folder)
    gate = Gate(folder / "gate")
    config = mlp_config(
        folder,
        name="gated",
        architecture=Architecture(entrypoint="model:Gated", kwargs={"gate": str(gate.path)}),
        code=CodeFile(inline=GATED),
        # threads=2: a model that is held must not run on the event loop, as a small one does by default
        serving=Serving(batching=Batching(max_size=2), queue=Queue(max_rows=4), request_timeout_seconds=2, threads=2),
    )
    with RuntimeProcess(config) as server:
        yield server.wait_ready(), gate
        gate.open()


def test_while_loading_it_lives_and_is_not_ready(tmp_path: Path) -> None:
    save_linear(tmp_path)
    config = mlp_config(
        tmp_path,
        name="slow",
        architecture=Architecture(entrypoint="model:Net", kwargs={"in_features": 10, "out_features": 1}),
        code=CodeFile(inline=SLOW_TO_LOAD),
    )
    with RuntimeProcess(config) as server:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert server.get("/v2/health/live") == (200, {"live": True})
                break
            except ConnectionRefusedError:
                assert time.monotonic() < deadline, server.log
                time.sleep(0.02)
        assert server.get("/v2/health/ready") == (503, {"ready": False})
        assert server.get("/ping") == (503, {"status": "Unhealthy"})
        assert server.get("/v1/models/slow") == (503, {"name": "slow", "ready": False})
        status, headers, answer = server.request("POST", "/v2/models/slow/infer", BODY)
        assert (status, headers["Retry-After"]) == (503, "1")
        assert answer == {"error": "model 'slow' is still loading"}
        time.sleep(1.2)
        status, headers, _ = server.request("POST", "/v2/models/slow/infer", BODY)
        assert status == 503
        assert int(headers["Retry-After"]) >= 2, "as long again as the start has taken"
        assert server.get("/v2/models/slow")[0] == 503
        server.wait_ready()
        assert server.post("/v2/models/slow/infer", BODY)[0] == 200


def test_sigterm_while_loading_ends_with_0(tmp_path: Path) -> None:
    save_linear(tmp_path)
    with RuntimeProcess(linear_config(tmp_path)) as server:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            try:
                server.get("/v2/health/live")
                break
            except ConnectionRefusedError:
                time.sleep(0.02)
        server.terminate()
        assert server.wait_exit(20) == 0


def test_a_full_queue_refuses_at_once_and_recovers(gated: tuple[RuntimeProcess, Gate]) -> None:
    server, gate = gated
    gate.close()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.post, "/v2/models/gated/infer", BODY)
        wait_for(server, 'torchmodel_in_flight_requests{model="gated"} 1.0')
        wait_for(server, 'torchmodel_queued_rows{model="gated"} 0.0')
        waiting = [pool.submit(server.post, "/v2/models/gated/infer", BODY) for _ in range(4)]
        wait_for(server, 'torchmodel_queued_rows{model="gated"} 4.0')
        started = time.monotonic()
        status, headers, answer = server.request("POST", "/v2/models/gated/infer", BODY)
        assert status == 429
        assert int(headers["Retry-After"]) >= 1
        assert "4 of 4 rows wait" in answer["error"]
        assert time.monotonic() - started < 1
        assert server.request("POST", "/predictions/gated", [[1] * 10])[2]["code"] == 429
        gate.open()
        assert [future.result()[0] for future in [first, *waiting]] == [200] * 5
    assert 'torchmodel_rejected_total{model="gated",reason="QUEUE_FULL"} 2.0' in server.get("/metrics")[1].decode()


def test_no_answer_in_time_gets_504_and_the_next_one_is_served(gated: tuple[RuntimeProcess, Gate]) -> None:
    server, gate = gated
    before = _metric(server, 'torchmodel_abandoned_total{cause="expired"')
    gate.close()
    status, answer = server.post("/v2/models/gated/infer", BODY)
    assert status == 504
    assert _metric(server, 'torchmodel_abandoned_total{cause="expired"') - before == 1
    assert "no answer within 2 s" in answer["error"]
    gate.open()
    assert server.post("/v2/models/gated/infer", BODY)[0] == 200


def test_clients_that_leave_are_never_computed(gated: tuple[RuntimeProcess, Gate]) -> None:
    server, gate = gated
    before = _metric(server, "torchmodel_batch_rows_sum{")
    left_before = _metric(server, 'torchmodel_abandoned_total{cause="disconnected"')
    gate.close()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.post, "/v2/models/gated/infer", BODY)
        wait_for(server, 'torchmodel_in_flight_requests{model="gated"} 1.0')
        leavers = []
        payload = json.dumps(BODY).encode()
        head = (
            "POST /v2/models/gated/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        )
        for _ in range(3):
            client = socket.create_connection(("127.0.0.1", server.port))
            client.sendall(head.encode() + payload)
            leavers.append(client)
        wait_for(server, 'torchmodel_queued_rows{model="gated"} 3.0')
        for client in leavers:
            client.close()
        wait_for(server, 'torchmodel_queued_rows{model="gated"} 0.0')
        gate.open()
        assert first.result()[0] == 200
    assert _metric(server, "torchmodel_batch_rows_sum{") - before == 1
    assert _metric(server, 'torchmodel_abandoned_total{cause="disconnected"') - left_before == 3


def test_what_waits_together_is_computed_together(gated: tuple[RuntimeProcess, Gate]) -> None:
    server, gate = gated
    before = _metric(server, "torchmodel_batch_rows_count{")
    gate.close()
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(server.post, "/v2/models/gated/infer", BODY)
        wait_for(server, 'torchmodel_in_flight_requests{model="gated"} 1.0')
        waiting = [pool.submit(server.post, "/v2/models/gated/infer", BODY) for _ in range(4)]
        wait_for(server, 'torchmodel_queued_rows{model="gated"} 4.0')
        gate.open()
        assert [future.result()[0] for future in [first, *waiting]] == [200] * 5
    assert _metric(server, "torchmodel_batch_rows_count{") - before == 3  # 1, then 2 and 2


def test_company_is_waited_for_as_long_as_the_manifest_says(tmp_path: Path) -> None:
    save_linear(tmp_path)
    gate = Gate(tmp_path / "gate")
    config = mlp_config(
        tmp_path,
        architecture=Architecture(entrypoint="model:Gated", kwargs={"gate": str(gate.path)}),
        code=CodeFile(inline=GATED),
        serving=Serving(batching=Batching(max_size=4, max_delay_milliseconds=DELAY_MS), threads=2),
    )
    with RuntimeProcess(config) as server, ThreadPoolExecutor(3) as pool:
        server.wait_ready()
        gate.close()
        running = pool.submit(server.post, "/v2/models/mlp/infer", BODY)
        wait_for(server, 'torchmodel_queue_wait_seconds_count{model="mlp"} 1')
        arrived_s = time.monotonic()
        waiting = [pool.submit(server.post, "/v2/models/mlp/infer", BODY) for _ in range(2)]
        wait_for(server, 'torchmodel_queued_rows{model="mlp"} 2.0')
        gate.open()
        assert running.result()[0] == 200
        assert [request.result()[0] for request in waiting] == [200, 200]
        assert time.monotonic() - arrived_s >= DELAY_MS / 1000, "two of four wait for company"
        wait_for(server, 'torchmodel_batch_rows_count{model="mlp"} 2.0')


def test_uploads_that_only_begin_lock_nobody_out(gated: tuple[RuntimeProcess, Gate]) -> None:
    """However many bodies are on their way: only what waits for the model fills the queue."""
    server, _ = gated
    head = b"POST /v2/models/gated/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{"
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(11)]
    try:
        for client in clients:
            client.sendall(head)
        wait_for(server, 'torchmodel_in_flight_requests{model="gated"} 11.0')
        assert server.post("/v2/models/gated/infer", BODY)[0] == 200
        wait_for(server, 'torchmodel_in_flight_bytes{model="gated"} 11.0')
    finally:
        for client in clients:
            client.close()
    wait_for(server, 'torchmodel_in_flight_bytes{model="gated"} 0.0')


def _metric(server: RuntimeProcess, sample: str) -> float:
    """Of the first line that begins so."""
    for line in server.get("/metrics")[1].decode().splitlines():
        if line.startswith(sample):
            return float(line.split()[1])
    raise AssertionError(sample)


def test_a_drain_that_takes_too_long_is_given_up_and_said(tmp_path: Path) -> None:
    save_linear(tmp_path)
    gate = Gate(tmp_path / "gate")
    config = mlp_config(
        tmp_path,
        architecture=Architecture(entrypoint="model:Gated", kwargs={"gate": str(gate.path)}),
        code=CodeFile(inline=GATED),
        serving=Serving(processes=1, workers=1, threads=2, drain_timeout_seconds=1),
    )
    with RuntimeProcess(config) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready()
        gate.close()
        hanging = pool.submit(server.post, "/v2/models/mlp/infer", BODY)
        wait_for(server, 'torchmodel_in_flight_requests{model="mlp"} 1.0')
        server.terminate()
        assert server.wait_exit(20) == 1
        assert "draining timed out" in server.log
        with pytest.raises((OSError, http.client.HTTPException)):
            hanging.result()


def test_sigterm_under_load_loses_nothing(tmp_path: Path) -> None:
    """Clients that come until readiness is off, as they do behind an endpoint, are all answered."""
    save_mlp(tmp_path)
    config = mlp_config(tmp_path, kwargs={"delay_seconds": 0.02}, drain_delay_seconds=1)
    with RuntimeProcess(config) as server:
        server.wait_ready()
        results: list[Any] = []
        withdrawn = threading.Event()

        def load() -> None:
            while not withdrawn.is_set():
                try:
                    results.append(server.post("/v2/models/mlp/infer", BODY)[0])
                except (OSError, http.client.HTTPException) as error:
                    results.append(repr(error))

        threads = [threading.Thread(target=load) for _ in range(12)]
        for thread in threads:
            thread.start()
        wait_for(server, 'torchmodel_requests_total{code="200",dialect="v2",model="mlp"}')
        server.terminate()
        while server.get("/v2/health/ready")[0] == 200:
            time.sleep(0.02)
        served_before = len(results)
        time.sleep(0.3)  # an endpoint is withdrawn some time after readiness is off
        withdrawn.set()
        for thread in threads:
            thread.join()
        assert server.wait_exit(20) == 0, server.log
        assert set(results) == {200}
        assert len(results) > served_before
        assert '"drained":true' in server.log


def test_what_is_queued_at_sigterm_is_finished_and_new_requests_are_refused(tmp_path: Path) -> None:
    save_mlp(tmp_path)
    serving = Serving(batching=Batching(max_size=1), workers=1, processes=1)
    config = mlp_config(tmp_path, kwargs={"delay_seconds": 0.5}, serving=serving)
    with RuntimeProcess(config) as server, ThreadPoolExecutor(4) as pool:
        server.wait_ready()
        waiting = [pool.submit(server.post, "/v2/models/mlp/infer", BODY) for _ in range(4)]
        wait_for(server, 'torchmodel_queued_rows{model="mlp"} 3.0')
        server.terminate()
        while server.get("/v2/health/ready")[0] == 200:
            time.sleep(0.01)
        status, headers, answer = server.request("POST", "/v2/models/mlp/infer", BODY)
        assert (status, answer) == (503, {"error": "the server is shutting down"})
        assert "Retry-After" not in headers, "a successor may be there at once, or never"
        assert [future.result()[0] for future in waiting] == [200] * 4
        assert server.wait_exit(20) == 0
