"""What the CPU quota is spent on, by what was measured."""

from __future__ import annotations

import pytest
from torchmodel_runtime.config import Serving
from torchmodel_runtime.parallelism import (
    Plan,
    Timing,
    choose_plan,
    choose_size,
    limit_size,
    thread_counts,
    with_one_worker,
)

TINY = Timing(rows=32, batch_s={1: 0.00004, 2: 0.00005, 4: 0.00006})
CONVOLUTION = Timing(rows=8, batch_s={1: 0.400, 2: 0.220, 4: 0.125})
"""Threads keep 91 % and 80 %."""
MATRICES = Timing(rows=8, batch_s={1: 0.400, 2: 0.201, 4: 0.1005})
"""Threads keep 99.5 %."""


def choose(timing: Timing, cpus: int, max_processes: int = 64, is_gpu: bool = False, **serving: int) -> Plan:
    return choose_plan(Serving(**serving), cpus, timing, is_gpu=is_gpu, max_processes=max_processes)


@pytest.mark.parametrize(
    ("plan", "processes", "workers", "threads", "solo", "inline"),
    [
        (choose(TINY, 2), 2, 1, 1, 1, True),
        (choose(TINY, 1), 1, 1, 1, 1, True),
        (choose(TINY, 64), 8, 1, 1, 1, True),
        (choose(TINY, 4, max_processes=2), 2, 1, 1, 1, True),
        (choose(TINY, 4, processes=3), 3, 1, 1, 1, True),
        (choose(TINY, 4, workers=2), 1, 2, 2, 4, False),
        (choose(CONVOLUTION, 2), 1, 2, 1, 2, False),
        (choose(CONVOLUTION, 4), 1, 4, 1, 4, False),
        (choose(CONVOLUTION, 16), 1, 8, 1, 16, False),
        (choose(CONVOLUTION, 4, threads=2), 1, 2, 2, 2, False),
        (choose(CONVOLUTION, 4, workers=1), 1, 1, 4, 4, False),
        (choose(MATRICES, 4), 1, 1, 4, 4, False),
        (choose(CONVOLUTION, 2, processes=2), 2, 1, 1, 1, False),
        (choose(CONVOLUTION, 8, processes=2), 2, 4, 1, 4, False),
        (choose(MATRICES, 8, processes=2), 2, 1, 4, 4, False),
        (choose(CONVOLUTION, 2, processes=4), 4, 1, 1, 1, False),
        (choose(CONVOLUTION, 4, is_gpu=True), 1, 1, 4, 4, False),
    ],
    ids=[
        "a tiny model: HTTP is the cost, so processes",
        "one CPU: one of everything",
        "many CPUs: processes are bounded",
        "memory bounds the processes",
        "the manifest sets the processes",
        "the manifest wants workers: not on the event loop",
        "threads scale badly: workers",
        "four CPUs: four workers",
        "many CPUs: workers are bounded",
        "the manifest sets the threads",
        "the manifest sets one worker: it gets all threads",
        "threads scale well: one worker",
        "processes share the quota between them",
        "each of two processes fills its half with workers",
        "each of two processes fills its half with threads",
        "more processes than CPUs: one of everything in each",
        "a GPU has one engine",
    ],
)
def test_the_quota_is_spent_where_it_counts(
    plan: Plan, processes: int, workers: int, threads: int, solo: int, inline: bool
) -> None:
    got = (plan.processes, plan.workers, plan.threads, plan.solo_threads, plan.inline)
    assert got == (processes, workers, threads, solo, inline)
    assert plan.reason


def test_memory_that_bounds_the_processes_is_said() -> None:
    assert "memory has room for 2 of 4 processes" in choose(TINY, 4, max_processes=2).reason


@pytest.mark.parametrize(
    ("cpus", "counts"),
    [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])],
    ids=["one", "two", "six", "eight"],
)
def test_threads_are_measured_at_powers_of_two_and_at_all(cpus: int, counts: list[int]) -> None:
    assert thread_counts(cpus) == counts


def test_a_module_that_cannot_be_shared_gets_one_worker_with_all_threads() -> None:
    plan = with_one_worker(choose(CONVOLUTION, 4), "the module cannot be copied: TypeError")
    assert (plan.workers, plan.threads, plan.solo_threads) == (1, 4, 4)
    assert "cannot be copied" in plan.reason


@pytest.mark.parametrize(
    ("rows_s", "rows"),
    [
        ({1: 0.050}, 1),
        ({1: 0.050, 2: 0.100, 4: 0.200}, 1),
        ({1: 0.050, 2: 0.090, 4: 0.168, 8: 0.330, 16: 0.700}, 4),
        ({1: 0.00001, 2: 0.000011, 32: 0.00003}, 32),
    ],
    ids=["one size tried", "batches gain nothing", "batches gain up to four rows", "batches gain all along"],
)
def test_a_batch_is_as_large_as_pays(rows_s: dict[int, float], rows: int) -> None:
    assert choose_size(rows_s) == rows


@pytest.mark.parametrize(
    ("max_size", "rows_s", "is_gpu", "limit", "words"),
    [
        (32, {1: 0.050, 2: 0.090, 4: 0.168, 8: 0.330}, False, 4, "gain nothing"),
        (2, {1: 0.050, 2: 0.090}, False, 2, ""),
        (32, {1: 0.300, 2: 0.400, 4: 0.500}, False, 4, "a batch of 4 takes 0.5 s"),
        (32, {1: 0.300, 2: 0.400, 4: 0.500}, True, 32, ""),
        (24, {1: 0.001, 2: 0.0011, 4: 0.0012, 8: 0.0013, 16: 0.0014}, False, 24, ""),
        (32, {1: 2.0}, False, 32, ""),
    ],
    ids=[
        "larger batches gain nothing",
        "the manifest allows less",
        "the largest one tried still gained",
        "it did so on a GPU",
        "all sizes gained",
        "only one row was tried",
    ],
)
def test_batches_are_limited_only_where_that_was_measured(
    max_size: int, rows_s: dict[int, float], is_gpu: bool, limit: int, words: str
) -> None:
    size, reason = limit_size(max_size, Timing(choose_size(rows_s), {1: 1.0}, rows_s), is_gpu=is_gpu)
    assert size == limit
    assert bool(reason) == bool(words)
    assert words in reason
