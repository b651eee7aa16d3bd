"""Bare torch's limit: the same forwards over the same inputs, no server, in as many ways as a server could run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import machine
from records import Limit
from workloads import Workload

BARE_TORCH = Path(__file__).resolve().parent / "bare_torch.py"


def measure_limits(workload: Workload, seconds: float, round_number: int) -> list[Limit]:
    """One process with a thread for each core, then a process with one thread for each core; each batch size."""
    available, limits = machine.cores(), []
    for processes, threads in [(1, available), (available, 1)] if available > 1 else [(1, 1)]:
        rates, other_cores = _rates(workload, processes, threads, seconds)
        for batch, rate in zip(workload.limit_batches, rates, strict=True):
            limit = Limit(
                round=round_number,
                workload=workload.name,
                processes=processes,
                threads=threads,
                batch=batch,
                items_per_s=rate,
                other_cores=other_cores,
            )
            limits.append(limit)
    return limits


def _rates(workload: Workload, processes: int, threads: int, seconds: float) -> tuple[list[float], float]:
    """Items a second for each batch size, all processes together; cores used by others from start to end."""
    start_s, busy_before_s, own_before_s = time.monotonic(), machine.busy_s(), _children_cpu_s()
    command = [sys.executable, BARE_TORCH, "rate", workload.name, str(threads), str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}
    started = [
        subprocess.Popen(
            [*command, *map(str, workload.limit_batches)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(processes)
    ]
    for process in started:
        process.stdout.readline()
    for process in started:  # all are loaded: now at the same time
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError(f"bare torch on {workload.name} ended with {[p.returncode for p in started]}")
    others_s = machine.busy_s() - busy_before_s - (_children_cpu_s() - own_before_s)
    rates = [sum(each) for each in zip(*map(json.loads, answers), strict=True)]
    return rates, max(0.0, others_s) / (time.monotonic() - start_s)


def _children_cpu_s() -> float:
    """CPU time of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system
