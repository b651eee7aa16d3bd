"""torch's threads, shared out between the workers of one process; and how much they are worth, measured.

`startup` measures, then wraps each engine in a `SharingRunner`. Called in the workers' threads.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Sequence

import numpy as np
import torch

from torchmodel_runtime.engine.forward import Engine, configure_thread
from torchmodel_runtime.parallelism import Timing
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tensors import Arrays

BUDGET_S = 2.0
"""Spent on measuring at most, about; a model whose largest batch takes an eighth of it is not measured."""
REPEATS = 7


class ThreadShare:
    """Counts the workers at work: one that is alone takes all threads, nobody else would use them."""

    def __init__(self, threads: int, solo_threads: int) -> None:
        self._threads = threads
        self._solo_threads = solo_threads
        self._lock = threading.Lock()
        self._working = 0
        self._own = threading.local()

    def begin(self) -> None:
        """A batch starts in this thread."""
        with self._lock:
            self._working += 1
            alone = self._working == 1
        wanted = self._solo_threads if alone else self._threads
        if getattr(self._own, "threads", 0) != wanted:
            configure_thread(wanted)
            self._own.threads = wanted

    def end(self) -> None:
        """It is done."""
        with self._lock:
            self._working -= 1


class SharingRunner:
    """An engine that asks for its threads before each batch."""

    def __init__(self, engine: Engine, share: ThreadShare) -> None:
        self._engine = engine
        self._share = share

    @property
    def max_rows(self) -> int:
        """The engine's own."""
        return self._engine.max_rows

    def run(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        """The engine's answers."""
        self._share.begin()
        try:
            return self._engine.run(requests)
        finally:
            self._share.end()


def share_threads(engines: Sequence[Engine], threads: int, solo_threads: int) -> list[SharingRunner]:
    """One runner for each engine."""
    share = ThreadShare(threads, solo_threads)
    return [SharingRunner(engine, share) for engine in engines]


def measure(engine: Engine, task: Task, thread_counts: Sequence[int]) -> Timing | None:
    """How long the largest batch takes with each number of threads; None when it takes too long to find out.

    Leaves this thread with the last of the counts.
    """
    inputs = task.synthetic(engine.max_rows, np.random.default_rng(1))
    configure_thread(max(thread_counts))
    if _seconds(engine, inputs) > BUDGET_S / 8:
        return None
    batch_s = {}
    for count in thread_counts:
        configure_thread(count)
        allowed_s = BUDGET_S / len(thread_counts)
        taken: list[float] = []
        began_s = time.monotonic()
        _seconds(engine, inputs)
        while len(taken) < REPEATS and time.monotonic() - began_s < allowed_s:
            taken.append(_seconds(engine, inputs))
        batch_s[count] = statistics.median(taken or [_seconds(engine, inputs)])
    return Timing(rows=engine.max_rows, batch_s=batch_s)


def _seconds(engine: Engine, inputs: Arrays) -> float:
    started_s = time.monotonic()
    engine.forward(inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic() - started_s
