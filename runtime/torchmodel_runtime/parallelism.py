"""What the CPU quota is spent on: processes, workers in each, torch threads in each worker. Decided from measurements.

Theory. Three things can be more than one, and each pays for something else.
- Processes on one port pay where HTTP and Python cost more than the model: they share nothing but weights and port.
- Workers (threads with a copy of the module over the same weights) pay where the model is the cost: torch leaves the
  interpreter lock while it computes, and two batches on one thread each finish more rows than one batch on two threads,
  because no kernel scales perfectly. They take from one queue, so no core idles while another has a line.
- Threads inside a worker pay where splitting one batch costs next to nothing: then fewer workers hold fewer activations and
  each answer comes sooner.
A worker that is alone at work takes all the threads, since nobody else would use them.

`startup` measures and calls `choose_plan`. Does no I/O, reads no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torchmodel_runtime.config import Serving

INLINE_BATCH_S = 0.001
"""A model whose largest batch takes less is computed on the event loop: handing it to a thread costs a tenth of that, and one
millisecond delays nobody noticeably. A choice, not a law."""

HTTP_ROW_S = 0.00004
"""What a small request costs beside the model, about (docs/performance.md): where the model takes less, HTTP is the limit."""

SCALING = 0.99
"""Threads inside a worker must keep this share of what the same threads achieve as workers of their own. Nearly all of it: a
measurement is a few percent off, and where it is wrong, workers lose less than threads do."""

GAIN = 1.05
"""A larger batch must lower the time of a row by more than this to be worth the wait of those in it."""

MAX_WORKERS = 8
"""More batches in progress than that wait longer for the memory bus than they gain; a guess, and a bound on activations."""

MAX_PROCESSES = 8


@dataclass(frozen=True)
class Timing:
    """What warm-up measured, on a quiet process."""

    rows: int
    """In a batch as large as pays."""
    batch_s: Mapping[int, float]
    """Seconds of that batch by number of torch threads; 1 is always there."""
    rows_s: Mapping[int, float] = field(default_factory=dict)
    """Seconds on one thread by rows in the batch, for the sizes that were tried."""


@dataclass(frozen=True)
class Plan:
    """How many of each, and why."""

    processes: int
    workers: int
    threads: int
    """torch threads of a worker while others work too."""
    solo_threads: int
    """torch threads of a worker that is alone at work."""
    inline: bool
    """Computed on the event loop."""
    reason: str


def choose_size(rows_s: Mapping[int, float]) -> int:
    """The smallest batch that gets nearly as much done per second as any: larger ones only make their rows wait."""
    best_s = min(seconds / rows for rows, seconds in rows_s.items())
    return min(rows for rows, seconds in rows_s.items() if seconds / rows <= best_s * GAIN)


def limit_size(max_size: int, timing: Timing, *, is_gpu: bool) -> tuple[int, str]:
    """Most rows in a batch, and why: what the manifest allows, or less where that was measured to gain nothing.

    Where batches still gained at the largest size that there was time to try, a CPU stays at that one: a batch takes the better
    part of a second there, and larger ones no longer fit its caches. A GPU is left to the manifest, as is a single row.
    """
    tried = max(timing.rows_s)
    if timing.rows >= max_size or (timing.rows == tried and (is_gpu or tried == 1 or 2 * tried > max_size)):
        return max_size, "serving.batching.maxSize is 1" if max_size == 1 else ""
    if timing.rows == tried:
        return tried, f"a batch of {tried} takes {timing.rows_s[tried]:.2g} s, larger ones are too slow to be tried"
    single_s, batch_s = timing.rows_s[1], timing.rows_s[timing.rows]
    reason = (
        f"larger batches gain nothing: a row takes {1e3 * batch_s / timing.rows:.3g} ms in a batch of {timing.rows}, "
        f"{1e3 * single_s:.3g} ms alone, and no less in batches of up to {max(timing.rows_s)}"
    )
    return timing.rows, reason


def choose_plan(serving: Serving, cpus: int, timing: Timing, *, is_gpu: bool, max_processes: int) -> Plan:
    """The plan for a quota of that many whole CPUs; what the manifest sets (not 0) is followed.

    max_processes: as many as memory has room for.
    """
    if is_gpu:
        return Plan(1, 1, serving.threads or cpus, serving.threads or cpus, False, "one engine for the GPU")
    inline = timing.batch_s[1] <= INLINE_BATCH_S and serving.workers <= 1 and serving.threads <= 1
    row_s = timing.batch_s[1] / timing.rows
    if inline:
        wanted = min(cpus, MAX_PROCESSES) if row_s < HTTP_ROW_S else 1
        processes = serving.processes or max(1, min(wanted, max_processes))
        reason = f"a row takes {row_s * 1e6:.0f} µs in a batch of {timing.rows}, less than HTTP around it"
        if wanted > max_processes and not serving.processes:
            reason += f"; memory has room for {max_processes} of {wanted} processes"
        return Plan(processes, 1, 1, 1, True, reason)
    processes = serving.processes or 1
    own_cpus = max(1, cpus // processes)
    efficient = [
        threads for threads in timing.batch_s if threads <= own_cpus and _efficiency(timing, threads) >= SCALING
    ]
    workers, threads = _fill(serving, own_cpus, max(efficient, default=1))
    shares = ", ".join(
        f"{_efficiency(timing, count):.0%} with {count}" for count in sorted(timing.batch_s) if count > 1
    )
    reason = f"a batch of {timing.rows} takes {timing.batch_s[1] * 1e3:.1f} ms on one thread" + (
        f"; threads inside it keep {shares} of their worth" if shares else ""
    )
    return Plan(processes, workers, threads, max(threads, serving.threads or own_cpus), False, reason)


def with_one_worker(plan: Plan, doubt: str) -> Plan:
    """The plan for a module that cannot compute two batches at the same time: its one worker gets all threads."""
    return replace(plan, workers=1, threads=plan.solo_threads, reason=f"one worker, because {doubt}")


def thread_counts(cpus: int) -> list[int]:
    """The numbers of threads worth measuring: powers of two, and all."""
    return sorted({*(1 << power for power in range(7) if 1 << power <= cpus), cpus})


def _fill(serving: Serving, cpus: int, widest: int) -> tuple[int, int]:
    """Workers and threads of each that use so many CPUs, by what the manifest leaves open."""
    if serving.workers:
        return serving.workers, serving.threads or max(1, cpus // serving.workers)
    threads = min(serving.threads or widest, cpus)
    return max(1, min(cpus // threads, MAX_WORKERS)), serving.threads or threads


def _efficiency(timing: Timing, threads: int) -> float:
    """What a thread is worth inside one batch, as a share of what it is worth alone."""
    return timing.batch_s[1] / (timing.batch_s[threads] * threads)
