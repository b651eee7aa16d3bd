"""Requests to a running server: until it is ready, all inputs at once with their answers compared, and wrk's load."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from processes import ServerProcess
from records import Load
from workloads import Workload, decode, encode, make_inputs

POST_LUA = Path(__file__).resolve().parent / "post.lua"
START_LIMIT_S = 120
CHECK_CONNECTIONS = 64
TOLERANCE = 2e-3
"""Absolute and relative; a server beyond it serves another model, and is not measured."""


def require_wrk() -> None:
    """SystemExit that says how to install it."""
    if not shutil.which("wrk"):
        raise SystemExit("wrk is not on PATH; Debian and Ubuntu: apt-get install wrk, macOS and others: its own README")


def write_bodies(workload: Workload, form: str, folder: Path) -> Path:
    """Every request of a workload as post.lua reads it: N.body and one file of headers."""
    folder.mkdir(parents=True, exist_ok=True)
    common: dict[str, str] = {}
    for number, x in enumerate(make_inputs(workload.name)):
        body, headers = encode(form, x)
        common = common or headers
        if headers != common:
            raise ValueError(f"{workload.name} as {form}: headers differ between bodies, wrk sends one set: {headers}")
        (folder / f"{number}.body").write_bytes(body)
    (folder / "headers").write_text("".join(f"{name}: {value}\n" for name, value in common.items()))
    return folder


def post(url: str, form: str, x: np.ndarray) -> np.ndarray:
    """One request; the outputs, flat float32."""
    body, headers = encode(form, x)
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.urlopen(request, timeout=60) as response:
        return decode(form, response.read(), response.headers)


def wait_ready(server: ServerProcess, url: str, form: str, workload: Workload) -> None:
    """Until the first input is answered; RuntimeError with the log when the server ends, refuses or takes too long."""
    end, last = time.monotonic() + START_LIMIT_S, ""
    while time.monotonic() < end:
        server.check_alive()
        try:
            post(url, form, make_inputs(workload.name)[0])
            return
        except urllib.error.HTTPError as error:
            last = f"{error.code} {error.read()[:500]!r}"
            if 400 <= error.code < 500 and error.code not in (404, 429):  # a route may appear late, nothing else does
                raise RuntimeError(f"the first request was refused: {last}") from None
        except OSError as error:
            last = str(error)
        time.sleep(0.2)
    raise RuntimeError(f"not ready after {START_LIMIT_S} s, last answer: {last}\n{server.log_tail()}")


def compare_answers(url: str, form: str, workload: Workload, expected: np.ndarray) -> float:
    """Post all inputs concurrently; the greatest absolute difference from `expected` (inputs, outputs).

    RuntimeError when an answer is further off than TOLERANCE, or of another shape.
    """
    with ThreadPoolExecutor(CHECK_CONNECTIONS) as pool:
        answers = list(pool.map(lambda x: post(url, form, x), make_inputs(workload.name)))
    for number, (got, wanted) in enumerate(zip(answers, expected, strict=True)):
        if got.shape != wanted.shape or not np.allclose(got, wanted, atol=TOLERANCE, rtol=TOLERANCE):
            raise RuntimeError(f"answer {number} is {got[:4]}, must be {wanted[:4]} within {TOLERANCE}")
    return float(np.abs(np.stack(answers) - expected).max())


def run_wrk(url: str, bodies: Path, connections: int, seconds: int) -> Load:
    """Closed loop from one thread: each connection sends its next request when it has its answer."""
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", POST_LUA]
    before = os.times()
    done = subprocess.run(["wrk", *options, url, "--", bodies], check=True, capture_output=True, text=True)
    after = os.times()
    result = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return Load(**json.loads(result.removeprefix("RESULT ")), cpu_s=cpu_s)
