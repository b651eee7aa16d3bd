"""Measures our server's memory: above bare torch, and whether it stays flat under load and under malformed requests.

  .venv/bin/python bench/memory.py                                        a million requests, ten thousand malformed ones
  .venv/bin/python bench/memory.py --requests 20000 --malformed 500       a quick look
  .venv/bin/python bench/memory.py --write docs/performance.md            and put the tables into the page

The floor is a process that has imported torch and loaded the same weights, measured in the same run. This script imports
no torch itself, so that PSS does not share torch's pages with it; other processes that use the same environment do, so
run it alone.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import itertools
import json
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from launch import save_model, serving
from load import require_wrk, run_wrk, wait_ready, write_bodies
from malformed import ask, make_malformed
from processes import Memory, ServerProcess
from report import markdown_table, replace_section
from targets import HERE, OURS, SERVERS, TARGETS
from workloads import WORKLOADS, Workload

SECTION = "memory"
OVERHEAD_GOAL_MIB = 60
FLAT_GOAL = 0.02
CHUNK_S = 5
"""wrk counts seconds, not requests: load comes in pieces of this length until there are enough."""
SETTLED_SHARE = 0.1
"""Of the requests are sent before the first reading: pools and caches fill once."""


REQUESTS_A_CONNECTION = 50
"""Malformed ones, so that every process of the server gets its share."""
NO_ANSWER = 0
"""Counted as this status: the connection was closed."""


@dataclass(frozen=True)
class Reading:
    """Memory after so many requests."""

    requests: int
    memory: Memory

    @staticmethod
    def change(readings: list[Reading]) -> float:
        """Greatest relative change of RSS from the first reading, either way."""
        first = readings[0].memory.rss_mib
        return max((abs(r.memory.rss_mib / first - 1) for r in readings), default=0.0)


@dataclass(frozen=True)
class Overhead:
    """Memory of one workload's model: in a process with torch and nothing else, there after one forward, in our server of one
    process, and in our server as it plans itself, where those are several."""

    workload: str
    floor: Memory
    computed: Memory
    single: Memory
    planned: Memory | None = None

    @property
    def above_mib(self) -> float:
        """RSS of the server's one process over the floor: what the runtime adds, wherever torch itself is needed again or not."""
        return self.single.rss_mib - self.floor.rss_mib

    def rows(self) -> list[list[str]]:
        """Of the table."""
        rows = [
            [f"{self.workload}, torch + weights", *cells(self.floor), "", ""],
            [f"{self.workload}, and one forward", *cells(self.computed), *above(self.computed, self.floor)],
            [f"{self.workload}, server when ready", *cells(self.single), *above(self.single, self.floor)],
        ]
        if self.planned is not None:
            rows.append([f"{self.workload}, server as planned", *cells(self.planned), *above(self.planned, self.floor)])
        return rows


def find_missed(overhead: list[Overhead], flat: Mapping[str, list[Reading]], statuses: Mapping[int, int]) -> list[str]:
    """The goals that were not met, each in a sentence."""
    missed = [
        f"{each.workload}: {each.above_mib:.1f} MiB above torch and weights, at most {OVERHEAD_GOAL_MIB} are allowed"
        for each in overhead
        if each.above_mib > OVERHEAD_GOAL_MIB
    ]
    missed += [
        f"{name}: memory changed by {Reading.change(readings):.2%}, at most {FLAT_GOAL:.0%} is allowed"
        for name, readings in flat.items()
        if Reading.change(readings) > FLAT_GOAL
    ]
    wrong = {status: count for status, count in sorted(statuses.items()) if not 400 <= status < 500}
    return missed + ([f"malformed requests got {wrong}, must be 4xx"] if wrong else [])


def main() -> int:
    """Measure, print, write; 1 when a goal is missed or a wrong request was not refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000, help="right ones, to the mlp; default: %(default)s")
    parser.add_argument("--malformed", type=int, default=10_000, help="wrong ones; default: %(default)s")
    parser.add_argument(
        "--serving", type=json.loads, default={}, metavar="JSON", help="our ServerConfig's serving fields"
    )
    parser.add_argument("--overhead", default=",".join(WORKLOADS), help="of these workloads; default: %(default)s")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    options = parser.parse_args()
    require_wrk()
    with tempfile.TemporaryDirectory(prefix="torchmodel-memory-") as folder:
        overhead = [
            measure_overhead(WORKLOADS[name], Path(folder), options.serving) for name in options.overhead.split(",")
        ]
        flat, statuses = measure_flatness(Path(folder), options.requests, options.malformed, options.serving)
    text = render(overhead, flat, statuses)
    print(text)
    if options.write:
        options.write.write_text(replace_section(options.write.read_text(), SECTION, text))
    missed = find_missed(overhead, flat, statuses)
    for words in missed:
        print(f"missed: {words}", file=sys.stderr)
    return 1 if missed else 0


@contextlib.contextmanager
def ready_server(
    workload: Workload, folder: Path, overrides: Mapping[str, Any]
) -> Iterator[tuple[ServerProcess, str, Path]]:
    """Our server with a workload, its URL and the folder of its requests."""
    target = TARGETS[OURS]
    form = target.formats[workload.name]
    bodies = write_bodies(workload, form, folder / f"{workload.name}-{form}")
    with serving(target, workload, save_model(workload, folder / workload.name), overrides) as (server, url):
        wait_ready(server, url, form, workload)
        yield server, url, bodies


def measure_overhead(workload: Workload, folder: Path, overrides: Mapping[str, Any]) -> Overhead:
    """The floor, the floor after one forward, and our server when ready."""
    model_folder = save_model(workload, folder / workload.name)
    floor = bare_memory(workload, model_folder)
    computed = bare_memory(workload, model_folder, "forward")
    planned = ready_memory(workload, folder, overrides)
    if planned.processes == 1:
        return Overhead(workload.name, floor, computed, planned)
    return Overhead(
        workload.name, floor, computed, ready_memory(workload, folder, {**overrides, "processes": 1}), planned
    )


def ready_memory(workload: Workload, folder: Path, overrides: Mapping[str, Any]) -> Memory:
    """Of our server, before its first load."""
    with ready_server(workload, folder, overrides) as (server, _, _):
        server.settle()
        return server.memory()


def bare_memory(workload: Workload, model_folder: Path, *forward: str) -> Memory:
    """Of a process that has torch and the weights, and does nothing."""
    command = [sys.executable, HERE / "bare_torch.py", "hold", workload.name, model_folder, *forward]
    variables = {"PYTHONPATH": str(SERVERS), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryDirectory(prefix="bench-bare-") as folder,
        ServerProcess(command, variables, Path(folder)) as process,
    ):
        while "ready" not in process.log_tail():
            process.check_alive()
            time.sleep(0.1)
        return process.memory()


def measure_flatness(
    folder: Path, requests: int, malformed: int, overrides: Mapping[str, Any]
) -> tuple[dict[str, list[Reading]], collections.Counter[int]]:
    """Readings over the right requests and over the wrong ones, on one server, and the statuses of the wrong ones."""
    workload = WORKLOADS["mlp"]
    with ready_server(workload, folder, overrides) as (server, url, bodies):
        right = list(load_in_pieces(server, url, bodies, requests))
        statuses: collections.Counter[int] = collections.Counter()
        wrong: list[Reading] = []
        piece = max(int(malformed * SETTLED_SHARE), 1)  # the first one starts the process that decodes what is large
        while statuses.total() < malformed:
            statuses += send_malformed(url, min(piece, malformed - statuses.total()))
            wrong.append(Reading(statuses.total(), read_settled(server)))
        wait_ready(server, url, TARGETS[OURS].formats[workload.name], workload)  # it still answers what is right
    return {"requests": right, "malformed requests": wrong}, statuses


def load_in_pieces(server: ServerProcess, url: str, bodies: Path, requests: int) -> Iterator[Reading]:
    """Load at 64 connections until there were enough; a reading after each piece from SETTLED_SHARE on."""
    sent = 0
    while sent < requests:
        load = run_wrk(url, bodies, 64, CHUNK_S if requests > 100_000 else 1)
        if load.bad_status or not load.requests:
            raise RuntimeError(f"after {sent} requests: {load}")
        sent += load.requests
        if sent >= requests * SETTLED_SHARE:
            yield Reading(sent, read_settled(server))


def read_settled(server: ServerProcess) -> Memory:
    """Memory once what was in flight is worked off."""
    server.settle()
    server.check_alive()
    return server.memory()


def send_malformed(url: str, count: int) -> collections.Counter[int]:
    """So many wrong requests over four connections; how often each status came."""
    parts = urllib.parse.urlparse(url)
    wrong = list(itertools.islice(itertools.cycle(make_malformed("bench")), count))

    def send(share: list[Any]) -> collections.Counter[int]:
        statuses: collections.Counter[int] = collections.Counter()
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
        for number, request in enumerate(share):
            if number % REQUESTS_A_CONNECTION == 0:
                connection.close()  # the next one may reach another process
            try:
                status = ask(connection, request)
                statuses[status] += 1
                if status != request.status:
                    print(f"{request.title}: {status}, must be {request.status}", file=sys.stderr)
            except (ConnectionError, http.client.BadStatusLine):
                connection.close()
                statuses[NO_ANSWER] += 1
                print(f"{request.title}: the connection was closed without an answer", file=sys.stderr)
        connection.close()
        return statuses

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(send, (wrong[n::4] for n in range(4))), collections.Counter())


def cells(memory: Memory) -> list[str]:
    """For the table, MiB."""
    return [str(memory.processes), f"{memory.rss_mib:.1f}", f"{memory.pss_mib:.1f}"]


def above(memory: Memory, floor: Memory) -> list[str]:
    """MiB above the floor."""
    return [f"{memory.rss_mib - floor.rss_mib:+.1f}", f"{memory.pss_mib - floor.pss_mib:+.1f}"]


def render(overhead: list[Overhead], flat: Mapping[str, list[Reading]], statuses: collections.Counter[int]) -> str:
    """The section of the page."""
    head = ["MiB", "processes", "RSS", "PSS", "RSS above", "PSS above"]
    rows = [
        [
            name,
            f"{readings[-1].requests:,}",
            f"{readings[0].requests:,}: {readings[0].memory.rss_mib:.1f}",
            f"{readings[-1].memory.rss_mib:.1f}",
            f"{Reading.change(readings):.2%}",
            "yes" if Reading.change(readings) <= FLAT_GOAL else "no",
        ]
        for name, readings in flat.items()
    ]
    flat_head = ["mlp", "count", "RSS MiB after the first", "RSS MiB at the end", "greatest change"]
    return "\n".join(
        [
            *(f"- {name}: {value}" for name, value in machine.describe().items()),
            f"\nGoal: the server when ready at most {OVERHEAD_GOAL_MIB} MiB above torch and weights.\n",
            *markdown_table(head, [row for each in overhead for row in each.rows()]),
            f"Goal: within ± {FLAT_GOAL:.0%}. RSS of the whole process tree.\n",
            *markdown_table([*flat_head, "flat"], rows),
            f"Statuses of the malformed requests: {dict(sorted(statuses.items()))}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
