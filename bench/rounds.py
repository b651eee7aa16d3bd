"""The measurement: rounds over workloads and servers, one server at a time.

Every server is started afresh for each round and workload, so that a lucky or unlucky start is part of the spread. What
fails is recorded, and the others go on.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from bare_torch import EXPECTED_FILE
from launch import save_model, serving
from limits import measure_limits
from load import compare_answers, run_wrk, wait_ready, write_bodies
from processes import ServerProcess
from records import Answers, Failure, Outcome, Point, Run
from targets import Target
from workloads import WORKLOADS, Workload


@dataclass(frozen=True)
class Method:
    """How a run measures."""

    rounds: int
    seconds: int
    """Of each point, times the workload's `stretch`."""
    warm_up_s: int
    """Before each point, at its own number of connections."""
    limit_s: float
    """Of bare torch at each batch size."""
    connections: tuple[int, ...]
    """Instead of each workload's own; empty: those."""
    overrides: Mapping[str, Any]
    """ServerConfig.serving fields of our runtime, beyond its defaults."""

    def describe(self) -> dict[str, str]:
        """For the report."""
        return {
            "rounds": str(self.rounds),
            "each point": f"{self.seconds} s ({self._stretched()}) after {self.warm_up_s} s of warm-up, wrk -t1, closed loop",
            **({"our serving fields": json.dumps(self.overrides)} if self.overrides else {}),
        }

    def _stretched(self) -> str:
        return ", ".join(f"{w.name} {self.seconds * w.stretch} s" for w in WORKLOADS.values() if w.stretch > 1)


@dataclass(frozen=True)
class Bench:
    """One server with one workload: where its model and its requests lie."""

    target: Target
    workload: Workload
    model_folder: Path
    bodies: Path

    @property
    def form(self) -> str:
        """How this target spells a request."""
        return self.target.formats[self.workload.name]

    def describe(self) -> dict[str, str]:
        """For the report."""
        return {"format": self.form, "settings": str(self.target.settings.get(self.workload.name, "its defaults"))}


def prepare_bench(target: Target, workload: Workload, folder: Path) -> Bench:
    """The model saved once for each workload, the requests written for the target's format."""
    form = target.formats[workload.name]
    bodies = write_bodies(workload, form, folder / f"{workload.name}-{form}")
    return Bench(target, workload, save_model(workload, folder / workload.name), bodies)


def measure_all(
    run: Run, targets: list[Target], workloads: list[Workload], method: Method, folder: Path, results: Path
) -> None:
    """Fill `run`, saved into `results` after each server; folder takes models and requests."""
    benches = {w.name: [prepare_bench(t, w, folder) for t in targets] for w in workloads}
    for name, row in benches.items():
        run.settings[name] = {bench.target.name: bench.describe() for bench in row}
    for round_number in range(method.rounds):
        for workload in workloads:
            for bench in benches[workload.name]:
                measure_one(run, bench, method, round_number)
                run.save(results)
            if workload.limit_batches:
                run.limits.extend(measure_limits(workload, method.limit_s, round_number))
                run.save(results)


def measure_one(run: Run, bench: Bench, method: Method, round_number: int) -> None:
    """One server in one round, or the reason why not."""
    try:
        with serving(bench.target, bench.workload, bench.model_folder, method.overrides) as (server, url):
            wait_ready(server, url, bench.form, bench.workload)
            if round_number == 0:
                run.answers.append(check_answers(bench, url))
            for connections in method.connections or bench.workload.connections:
                point = measure_point(server, url, bench, method, connections, round_number)
                run.points.append(point)
                print(line_of(point), flush=True)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        failure = Failure(
            round=round_number, workload=bench.workload.name, target=bench.target.name, message=str(error)
        )
        run.failures.append(failure)
        print(f"round {round_number + 1} {failure.workload} {failure.target}: FAILED: {failure.message}", flush=True)


def check_answers(bench: Bench, url: str) -> Answers:
    """All inputs at the same time. RuntimeError when the server serves another model."""
    expected = np.load(bench.model_folder / EXPECTED_FILE)
    worst = compare_answers(url, bench.form, bench.workload, expected)
    return Answers(workload=bench.workload.name, target=bench.target.name, count=len(expected), max_difference=worst)


def measure_point(
    server: ServerProcess, url: str, bench: Bench, method: Method, connections: int, round_number: int
) -> Point:
    """Warm up, let the server work off what is left, measure; memory is read right after."""
    if method.warm_up_s:
        run_wrk(url, bench.bodies, connections, method.warm_up_s)
    server.settle()
    server.check_alive()
    busy_before_s, cpu_before_s = machine.busy_s(), server.cpu_s()
    load = run_wrk(url, bench.bodies, connections, method.seconds * bench.workload.stretch)
    cpu_s, busy_s = server.cpu_s() - cpu_before_s, machine.busy_s() - busy_before_s
    memory = server.memory()
    return Point(
        round=round_number,
        workload=bench.workload.name,
        target=bench.target.name,
        connections=connections,
        requests_per_s=(load.requests - load.bad_status) / load.seconds,
        **{name: getattr(load, name) for name in Outcome.__struct_fields__},
        cpu_s_per_1000=cpu_s * 1000 / max(load.requests, 1),
        server_cores=cpu_s / load.seconds,
        generator_cores=load.cpu_s / load.seconds,
        other_cores=max(0.0, busy_s - cpu_s - load.cpu_s) / load.seconds,
        rss_mib=memory.rss_mib,
        pss_mib=memory.pss_mib,
        processes=memory.processes,
    )


def line_of(point: Point) -> str:
    """For the terminal, while the run goes on."""
    where = f"round {point.round + 1} {point.workload:9} {point.target:11} c={point.connections:<3}"
    times = f"{point.requests_per_s:9.1f}/s p50 {point.p50_ms:8.2f} p99 {point.p99_ms:8.2f} ms"
    errors = f"errors {point.bad_status}+{point.bad_socket}"
    cores = f"cores {point.server_cores:.2f}+{point.generator_cores:.2f}, others {point.other_cores:.2f}"
    return f"{where} {times}, {errors}, {cores}, PSS {point.pss_mib:.0f} MiB in {point.processes}"
