"""Measures our runtime beside its rivals, in the same run on the same machine, and writes tables with ratios and spread.

  .venv/bin/python bench/run.py                                  everything, five rounds
  .venv/bin/python bench/run.py --rounds 2 --seconds 5           quicker
  .venv/bin/python bench/run.py --prepare mosec,aiohttp          only make the environments of these rivals
  .venv/bin/python bench/run.py --write docs/performance.md      and put the tables into the page
  .venv/bin/python bench/run.py --report FILE --write PAGE       only that, from the results of an earlier run

The rounds interleave (A B C, A B C, …) and are in `rounds.py`; the method in words is in docs/performance.md.
On a machine with more cores put `taskset -c 0,1` in front.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import machine
from environments import cache_folder, describe_versions, prepare
from load import require_wrk
from records import Run, read_run
from report import render, replace_section
from rounds import Method, measure_all
from targets import OURS, TARGETS
from workloads import WORKLOADS

SECTION = "performance"
"""Name of the page's markers."""


def main() -> int:
    """Prepare, measure, write; 1 when something could not be measured."""
    options = parse_options()
    if options.report:
        return publish(read_run(options.report), options.write)
    targets = [TARGETS[name] for name in options.prepare or options.targets]
    for target in targets:
        prepare(target)
    if options.prepare:
        return 0
    require_wrk()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))  # so that the server is ended too
    method = Method(
        options.rounds, options.seconds, options.warm_up, options.limit_seconds, options.connections, options.serving
    )
    run = Run(
        started=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        machine=machine.describe(),
        method=method.describe(),
        versions={target.name: describe_versions(target) for target in targets},
    )
    with tempfile.TemporaryDirectory(prefix="torchmodel-bench-") as folder:
        workloads = [WORKLOADS[name] for name in options.workloads]
        measure_all(run, targets, workloads, method, Path(folder), options.results)
    print(f"\nresults: {options.results}\n")
    return publish(run, options.write)


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--targets", type=names_among(TARGETS), default=list(TARGETS), help=f"comma list; default: {','.join(TARGETS)}"
    )
    parser.add_argument(
        "--workloads", type=names_among(WORKLOADS), default=list(WORKLOADS), help=f"default: {','.join(WORKLOADS)}"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=10, help="of each point; three times as long for resnet18")
    parser.add_argument("--warm-up", type=int, default=2, help="seconds before each point")
    parser.add_argument("--limit-seconds", type=float, default=4, help="of bare torch at each batch size")
    parser.add_argument("--connections", type=numbers, default=(), help="as 1,8,64; default: each workload's own")
    parser.add_argument(
        "--serving", type=json.loads, default={}, metavar="JSON", help=f"serving fields of {OURS}, over its defaults"
    )
    parser.add_argument("--results", type=Path, default=cache_folder() / "results.json", help="default: %(default)s")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables between the markers of this page")
    parser.add_argument("--prepare", type=names_among(TARGETS), help="make these environments and end")
    parser.add_argument("--report", type=Path, metavar="FILE", help="the tables of an earlier run, and end")
    return parser.parse_args()


def names_among(known: Mapping[str, object]) -> Callable[[str], list[str]]:
    """A parser of comma lists that knows what may be in them."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, must be among {', '.join(known)}")
        return names

    return parse


def numbers(text: str) -> tuple[int, ...]:
    """A comma list of whole numbers."""
    return tuple(map(int, text.split(",")))


def publish(run: Run, page: Path | None) -> int:
    """Print the tables, and put them into the page."""
    text = render(run)
    print(text)
    if page:
        page.write_text(replace_section(page.read_text(), SECTION, text))
    return 1 if run.failures else 0


if __name__ == "__main__":
    sys.exit(main())
