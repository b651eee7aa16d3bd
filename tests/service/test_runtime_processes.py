"""Several processes on one port: alike to clients, one in the metrics, gone with the first."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from testkit.models import linear_config, save_linear
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.circle import SAY_S
from torchmodel_runtime.config import Serving
from torchmodel_runtime.processes import SIBLING_VARIABLE

BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [0.5] * 10}]}
COUNT = 2


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def wait_until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not come to hold in time"
        time.sleep(0.05)


def listeners(port: int) -> int:
    """Sockets that listen on the port (state 0A in /proc/net/tcp)."""
    wanted = f":{port:04X} 00000000:0000 0A"
    return sum(wanted in line for line in Path("/proc/net/tcp").read_text().splitlines())


def metric(server: RuntimeProcess, pattern: str) -> float:
    text = server.get("/metrics")[1].decode()
    return sum(float(value) for value in re.findall(pattern + r" (\S+)", text))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RuntimeProcess]:
    save_linear(tmp_path)
    with RuntimeProcess(linear_config(tmp_path, serving=Serving(processes=COUNT))) as process:
        process.wait_ready()
        wait_until(lambda: listeners(process.port) == COUNT)
        yield process


def test_all_serve_and_say_the_same_and_metrics_add_up(server: RuntimeProcess) -> None:
    for _ in range(60):  # each on a connection of its own, spread by the kernel
        assert server.post("/v2/models/linear/infer", BODY)[0] == 200
    for _ in range(5):
        assert metric(server, r'torchmodel_requests_total\{[^}]*dialect="v2"[^}]*\}') == 60
    reports = {json.dumps(server.get("/v2/models/linear")[1], sort_keys=True) for _ in range(12)}
    assert len(reports) == 1
    assert json.loads(reports.pop())["parameters"]["parallelism"]["processes"] == COUNT


def kill_a_sibling(server: RuntimeProcess) -> None:
    """And wait until its socket is gone with it: the leader of its threads may be a zombie before that."""
    os.kill(children_of(server.process.pid)[0], signal.SIGKILL)
    wait_until(lambda: listeners(server.port) == COUNT - 1)


def requests_total(server: RuntimeProcess) -> float:
    return metric(server, r'torchmodel_requests_total\{[^}]*dialect="v2"[^}]*\}')


def test_sums_stay_what_they_were_when_one_is_killed_and_when_it_is_back(server: RuntimeProcess) -> None:
    for _ in range(40):
        assert server.post("/v2/models/linear/infer", BODY)[0] == 200
    assert requests_total(server) == 40
    for lives in range(2):
        kill_a_sibling(server)
        for _ in range(10):
            assert requests_total(server) == 40 + lives
        wait_until(lambda: listeners(server.port) == COUNT)
        for _ in range(10):
            assert requests_total(server) == 40 + lives
        assert metric(server, r"torchmodel_processes\{[^}]*\}") == COUNT
        assert server.post("/v2/models/linear/infer", BODY)[0] == 200
        assert requests_total(server) == 41 + lives


def test_what_nobody_saw_is_kept_too_when_it_is_a_second_old(server: RuntimeProcess) -> None:
    for _ in range(40):
        assert server.post("/v2/models/linear/infer", BODY)[0] == 200
    time.sleep(2 * SAY_S)
    kill_a_sibling(server)
    for _ in range(10):
        assert requests_total(server) == 40


def mappings(pid: int, name: str) -> dict[str, int]:
    """Of the process's memory maps of files with that ending, in KiB, by smaps' fields (proc(5))."""
    totals: dict[str, int] = {}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = line.endswith(name)
        elif inside and (found := re.match(r"(\w+): +(\d+) kB", line)):
            totals[found[1]] = totals.get(found[1], 0) + int(found[2])
    return totals


def test_weights_are_in_memory_once(tmp_path: Path) -> None:
    save_linear(tmp_path, features=2048, outputs=2048)
    weights_kib = 2048 * 2048 * 4 >> 10
    config = linear_config(tmp_path, features=2048, outputs=2048, serving=Serving(processes=COUNT))
    with RuntimeProcess(config) as process:
        process.wait_ready()
        wait_until(lambda: listeners(process.port) == COUNT)
        for pid in (process.process.pid, *children_of(process.process.pid)):
            found = mappings(pid, "linear.safetensors")
            assert found["Rss"] >= weights_kib, "all of them are mapped"
            assert found["Private_Dirty"] == 0, "and none was written to"
            assert found["Pss"] <= found["Rss"] / COUNT + 64, "the pages are the same in all"


def test_one_that_finds_the_first_gone_ends_without_a_word_of_error(tmp_path: Path) -> None:
    save_linear(tmp_path)
    config = linear_config(tmp_path, serving=Serving(processes=COUNT))
    sibling = {SIBLING_VARIABLE: f"{tmp_path / 'gone'}:1"}
    with RuntimeProcess(config, environment=sibling) as process:
        assert process.wait_exit() == 0
        assert "Traceback" not in process.log
        assert "the first process on this port is gone" in process.log


def test_one_that_is_killed_comes_back_and_the_others_serve_on(server: RuntimeProcess) -> None:
    kill_a_sibling(server)
    for _ in range(20):
        assert server.post("/v2/models/linear/infer", BODY)[0] == 200
    wait_until(lambda: listeners(server.port) == COUNT)
    assert "a process ended" in server.log


def test_all_end_with_the_first_even_when_it_is_killed(server: RuntimeProcess) -> None:
    others = children_of(server.process.pid)
    assert len(others) == COUNT - 1
    server.process.kill()
    wait_until(lambda: not any(is_running(pid) for pid in others), timeout_s=20)


def test_sigterm_drains_all_without_a_failed_request(server: RuntimeProcess) -> None:
    others = children_of(server.process.pid)
    failures: list[str] = []
    answered = threading.Event()
    stopping = threading.Event()

    def ask() -> None:
        body = json.dumps(BODY).encode()
        lines = ["POST /v2/models/linear/infer HTTP/1.1", "Host: t", "Content-Type: application/json"]
        request = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            while True:
                connection.sendall(request)
                answer = connection.recv(65536)
                if answer.startswith(b"HTTP/1.1 200"):
                    answered.set()
                elif stopping.is_set() and (not answer or b" 503 " in answer[:20]):
                    return
                else:
                    failures.append(repr(answer))
                    return
                if b"Connection: close" in answer:
                    return

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert answered.wait(20)
    stopping.set()
    server.terminate()
    assert server.wait_exit(20) == 0
    for thread in threads:
        thread.join(20)
    assert not failures
    assert not any(is_running(pid) for pid in others)


def test_an_end_before_the_others_have_begun_is_no_failure(tmp_path: Path) -> None:
    save_linear(tmp_path)
    with RuntimeProcess(linear_config(tmp_path, serving=Serving(processes=COUNT))) as process:
        process.wait_ready()  # by the first alone: the others are still being started
        assert process.stop() == 0, process.log


def test_a_port_that_somebody_else_has_is_not_shared(tmp_path: Path, server: RuntimeProcess) -> None:
    with RuntimeProcess(linear_config(tmp_path), port=server.port) as intruder:
        assert intruder.wait_exit() == 3
        failure = intruder.failure()
        assert failure is not None
        assert "Address already in use" in failure.message or "address already in use" in failure.message
