"""Small bodies that become large, bodies that never end, work that nobody waits for: memory and time stay bounded."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread
from typing import Any

import msgspec
import numpy as np
import pytest
import soundfile
from testkit.media_files import picture
from testkit.models import linear_config, save_linear
from testkit.runtime_process import RuntimeProcess
from testkit.tiny_media import serve_images, serve_speech, serve_texts
from torchmodel_runtime.config import Limits, Queue, ServerConfig, Serving, Speech, Task

MIB = 1 << 20
LIMITS = Serving(
    processes=1,
    workers=1,
    threads=1,
    queue=Queue(max_bytes=32 * MIB),
    max_request_bytes=16 * MIB,
    limits=Limits(max_bytes_in_flight=128 * MIB),
)


class Watch:
    """The most memory that a process holds meanwhile, beyond what it held before."""

    def __init__(self, server: RuntimeProcess) -> None:
        self._status = Path(f"/proc/{server.process.pid}/status")
        self._ended = Event()
        self._base = self._most = self._resident()
        self._thread = Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def growth(self) -> int:
        return self._most - self._base

    def _look(self) -> None:
        while not self._ended.wait(0.01):
            self._most = max(self._most, self._resident())

    def _resident(self) -> int:
        found = re.search(r"^VmRSS:\s+(\d+) kB", self._status.read_text(), re.MULTILINE)
        assert found
        return int(found[1]) * 1024


def one_pixel() -> str:
    return base64.b64encode(picture(size=(1, 1))).decode()


def silence(seconds: int) -> str:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(seconds * 16_000, np.float32), 16_000, format="FLAC")
    return base64.b64encode(buffer.getvalue()).decode()


def serve_usual_images(folder: Path, **changes: Any) -> ServerConfig:
    """Pictures of 224 x 224, as by default: 600 kB each."""
    return msgspec.structs.replace(serve_images(folder, **changes), task=Task(type="image-classification"))


def serve_long_speech(folder: Path, **changes: Any) -> ServerConfig:
    """Recordings of five minutes, as by default."""
    return msgspec.structs.replace(serve_speech(folder, **changes), task=Task(type="speech", speech=Speech()))


@pytest.mark.parametrize(
    ("serve", "rows", "says"),
    [
        (
            serve_usual_images,
            lambda: [one_pixel()] * 3000,
            "3000 rows, the queue takes at most 1024 (serving.queue.maxRows)",
        ),
        (serve_long_speech, lambda: [silence(300)] * 60, "(serving.queue.maxBytes)"),
        (serve_texts, lambda: ["a"] * 300_000, "300000 rows, the queue takes at most 1024 (serving.queue.maxRows)"),
        (serve_texts, lambda: ["a." * MIB], "at most 134217728 (serving.limits.maxBytesInFlight)"),
    ],
    ids=["pictures", "recordings", "texts", "one long text"],
)
def test_a_small_body_that_becomes_large_is_refused_before_it_does(
    tmp_path: Path, serve: Any, rows: Any, says: str
) -> None:
    with RuntimeProcess(serve(tmp_path, serving=LIMITS)) as server:
        server.wait_ready()
        body = json.dumps({"instances": rows()}).encode()
        with Watch(server) as watch:
            status, answer = server.post(f"/v1/models/{server.config.name}:predict", body)
        assert (status, says in answer["error"]) == (413, True), answer
        # the budget, the body in JSON and as Python's strings, and what libraries need the first time
        assert watch.growth < 256 * MIB
        assert b'torchmodel_in_flight_bytes{model="%s"} 0.0' % server.config.name.encode() in server.get("/metrics")[1]


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("linear")
    save_linear(folder)
    with RuntimeProcess(linear_config(folder, serving=LIMITS)) as server:
        yield server.wait_ready()


ROW = {"instances": [[1.0] * 10]}
HEAD = (
    "POST /v1/models/linear:predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
)


def test_bodies_on_their_way_share_a_budget(linear: RuntimeProcess) -> None:
    with ExitStack() as stack, Watch(linear) as watch:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", linear.port))) for _ in range(16)]

        def send(client: socket.socket) -> bytes:
            """Ten MiB of eleven: what the server says to that, or nothing."""
            client.settimeout(3)
            try:
                client.sendall(HEAD.format(11 * MIB).encode() + b" " * (10 * MIB))
                return client.recv(4096)
            except (TimeoutError, ConnectionError):
                return b""

        with ThreadPoolExecutor(16) as pool:
            answers = [answer for answer in pool.map(send, clients) if answer]
        assert answers, "sixteen do not fit"
        assert len(answers) >= 16 - 12
        for answer in answers:
            assert answer.startswith(b"HTTP/1.1 429 ")
            assert b"Retry-After: " in answer
            assert b"(serving.limits.maxBytesInFlight)" in answer
        assert linear.post("/v1/models/linear:predict", ROW)[0] == 200, "small requests come through"
    assert watch.growth < 2 * 128 * MIB
    deadline = time.monotonic() + 10
    while b'torchmodel_in_flight_bytes{model="linear"} 0.0' not in (text := linear.get("/metrics")[1]):
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    big = json.dumps(ROW).encode() + b" " * (10 * MIB)
    assert linear.post("/v1/models/linear:predict", big)[0] == 200, "and large ones, now that there is room"


def test_a_body_that_says_it_is_too_large_is_refused_unread(linear: RuntimeProcess) -> None:
    with socket.create_connection(("127.0.0.1", linear.port), timeout=10) as client:
        client.sendall(HEAD.format(17 * MIB).encode())
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 16777216 bytes (serving.maxRequestBytes)" in answer


def test_what_nobody_waits_for_any_more_is_not_decoded(linear: RuntimeProcess) -> None:
    """Bodies whose decoding takes long, one after the other: most of them only begin after their deadline."""
    body = json.dumps({"instances": np.zeros((100_000, 10)).tolist()}).encode()
    headers = {"Content-Type": "application/json", "X-Request-Timeout-Milliseconds": "300"}
    decoded_before = count_decoded(linear)

    def ask(_: int) -> tuple[int, str]:
        status, _, answer = linear.request("POST", "/v1/models/linear:predict", body, headers)
        return status, answer["error"]

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask, range(12)))
    late = [message for status, message in answers if status == 504]
    assert late
    assert set(late) == {"no answer within 0.3 s (serving.requestTimeoutSeconds, or the request's own)"}
    assert count_decoded(linear) - decoded_before == len(answers) - len(late)


def count_decoded(server: RuntimeProcess) -> int:
    found = re.search(
        rb'torchmodel_decode_seconds_count\{dialect="v1",model="linear"\} (\d+)', server.get("/metrics")[1]
    )
    return int(found[1]) if found else 0
