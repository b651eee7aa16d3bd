"""Measures what bad clients cost good ones: latency beside a hostile stream to that of a quiet server, the same server in turn.

  .venv/bin/python bench/neighbours.py                                    two workloads, about 4 minutes
  .venv/bin/python bench/neighbours.py --workloads mlp --rounds 1         a quick look
  .venv/bin/python bench/neighbours.py --write docs/performance.md        and put the tables into the page

In each round a server is started afresh. Good clients (wrk) ask it alone, beside `hostile_stream.py`, alone, beside it and so
on, a few seconds each: the stream is stopped and goes on. A ratio is that of one of these to the mean of its two neighbours, so
that a machine that is disturbed for a while disturbs both. The load generators are on the same cores.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import machine
from launch import save_model, serving
from load import Load, require_wrk, run_wrk, wait_ready, write_bodies
from processes import ServerProcess
from report import markdown_table, replace_section, spread
from targets import HERE, OURS, TARGETS
from workloads import WORKLOADS, Workload

SECTION = "neighbours"
GOAL = 1.5
WARM_UP_S = 3
PAUSE_S = 0.5
"""Until what was in work of a stream that was stopped is worked off."""
WORKLOADS_HERE = ("mlp", "encoder")
"""The smallest model, where every microsecond of the server shows, and one whose answers take milliseconds. The attacks are on
the first; the few that are right for the second are left out there."""


@dataclass(frozen=True)
class Trio:
    """Good clients alone, beside bad ones, and alone again."""

    before: Load
    beside: Load
    after: Load

    def quiet(self, figure: Callable[[Load], float]) -> float:
        """Of good clients alone: the mean of the two times."""
        return (figure(self.before) + figure(self.after)) / 2

    def ratio(self, figure: Callable[[Load], float]) -> float:
        """Beside bad clients to alone."""
        return figure(self.beside) / self.quiet(figure)


@dataclass
class Measured:
    """One workload, over all rounds."""

    trios: list[Trio] = field(default_factory=list)
    statuses: collections.Counter[str] = field(default_factory=collections.Counter)
    """What bad clients were told."""
    left_out: int = 0
    """Attacks that this model takes."""


FIGURES: dict[str, Callable[[Load], float]] = {
    "p50 ms": lambda load: load.p50_ms,
    "p99 ms": lambda load: load.p99_ms,
    "requests/s": lambda load: load.requests / load.seconds,
}
P99 = "p99 ms"


def main() -> int:
    """Measure, print, write; 1 when a good client was failed, a bad one got no answer, or the goal is missed."""
    options = parse_options()
    require_wrk()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # so that the server is ended too
    measured: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory(prefix="torchmodel-neighbours-") as folder:
        for name in options.workloads.split(","):
            measured[name] = Measured()
            for _ in range(options.rounds):
                measure_round(WORKLOADS[name], Path(folder), options, measured[name])
    text = render(measured, options)
    print(text)
    if options.write:
        options.write.write_text(replace_section(options.write.read_text(), SECTION, text))
    missed = complaints(measured)
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(WORKLOADS_HERE), help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=2, help="fresh servers for each workload; default: %(default)s")
    parser.add_argument("--pairs", type=int, default=6, help="times beside and alone in a round; default: %(default)s")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement; default: %(default)s")
    parser.add_argument("--connections", type=int, default=64, help="of good clients; default: %(default)s")
    parser.add_argument("--rate", type=float, default=100, help="attacks a second; default: %(default)s")
    parser.add_argument("--large-rate", type=float, default=0.5, help="large bodies a second; default: %(default)s")
    parser.add_argument("--slow", type=int, default=50, help="slow clients; default: %(default)s")
    parser.add_argument(
        "--serving", type=json.loads, default={}, metavar="JSON", help="our ServerConfig's serving fields"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    return parser.parse_args()


def measure_round(workload: Workload, folder: Path, options: argparse.Namespace, measured: Measured) -> None:
    """A fresh server; alone and beside the stream in turn."""
    target = TARGETS[OURS]
    form = target.formats[workload.name]
    bodies = write_bodies(workload, form, folder / f"{workload.name}-{form}")
    model = save_model(workload, folder / workload.name)
    with serving(target, workload, model, options.serving) as (server, url):
        wait_ready(server, url, form, workload)
        server.settle()  # its other processes have come
        with hostile_stream(url, options) as (stream, told):
            run_wrk(url, bodies, options.connections, WARM_UP_S)
            stream.send_signal(signal.SIGSTOP)
            before = measure(server, url, bodies, options)
            for _ in range(options.pairs):
                stream.send_signal(signal.SIGCONT)
                beside = measure(server, url, bodies, options)
                stream.send_signal(signal.SIGSTOP)
                time.sleep(PAUSE_S)
                after = measure(server, url, bodies, options)
                measured.trios.append(Trio(before, beside, after))
                print(line_of(workload.name, measured.trios[-1]), flush=True)
                before = after
            stream.send_signal(signal.SIGCONT)
            time.sleep(PAUSE_S)
    measured.statuses.update(told["statuses"])
    measured.left_out = told["left_out"]


def measure(server: ServerProcess, url: str, bodies: Path, options: argparse.Namespace) -> Load:
    """Good clients; RuntimeError when the server has ended."""
    load = run_wrk(url, bodies, options.connections, options.seconds)
    server.check_alive()
    return load


@contextlib.contextmanager
def hostile_stream(url: str, options: argparse.Namespace) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Bad clients while the block runs; what they were told stands in the result afterwards."""
    command = [sys.executable, HERE / "hostile_stream.py", url, "--rate", str(options.rate)]
    command += ["--large-rate", str(options.large_rate), "--slow", str(options.slow)]
    told: dict[str, Any] = {"statuses": {}, "left_out": 0}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None or process.stdout.readline() != "started\n":
            raise RuntimeError("the hostile stream did not start")
        try:
            yield process, told
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            told.update(json.loads(process.stdout.readline() or "{}"))


def complaints(measured: dict[str, Measured]) -> list[str]:
    """What must hold and does not."""
    found = []
    for name, each in measured.items():
        loads = [load for trio in each.trios for load in (trio.before, trio.beside, trio.after)]
        if failed := sum(load.bad_status + load.bad_socket for load in loads):
            found.append(f"{name}: {failed} good requests failed")
        if wrong := {status: count for status, count in each.statuses.items() if status[:1] != "4"}:
            found.append(f"{name}: bad clients got {wrong}, must be 4xx")
        ratio = statistics.median(trio.ratio(FIGURES[P99]) for trio in each.trios)
        if ratio > GOAL:
            found.append(f"{name}: p99 is {ratio:.2f} of quiet, at most {GOAL} is allowed")
    return found


def line_of(name: str, trio: Trio) -> str:
    """For the terminal, while the run goes on."""
    loads = ", ".join(
        f"{when} {load.requests / load.seconds:.0f}/s p50 {load.p50_ms:.2f} p99 {load.p99_ms:.2f} ms"
        for when, load in (("before", trio.before), ("beside", trio.beside), ("after", trio.after))
    )
    return f"{name:8} {loads}; p99 x {trio.ratio(FIGURES[P99]):.2f}"


def render(measured: dict[str, Measured], options: argparse.Namespace) -> str:
    """The section of the page."""
    rows, told = [], []
    for name, each in measured.items():
        for title, figure in FIGURES.items():
            cells = (
                (trio.quiet(figure) for trio in each.trios),
                (figure(trio.beside) for trio in each.trios),
                (trio.ratio(figure) for trio in each.trios),
            )
            rows.append([f"{name}, {title}", *map(spread, cells)])
        told.append(
            f"- {name}: bad clients were told {dict(sorted(each.statuses.items()))}; {each.left_out} attacks left out"
        )
    method = (
        f"{options.rounds} rounds of {options.pairs} times beside and alone, {options.connections} connections, "
        f"{options.seconds} s each; beside: {options.rate:g} attacks "
        f"a second, a body of 8 MiB {options.large_rate:g} times a second, {options.slow} clients that send a byte a second"
    )
    facts = {**machine.describe(), "method": method}
    return "\n".join(
        [
            *(f"- {name}: {value}" for name, value in facts.items()),
            f"\nGoal: p99 beside at most {GOAL:g} of p99 quiet.\n",
            *markdown_table(["", "quiet", "beside bad clients", "ratio"], rows),
            *told,
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
