"""How long batches take: by their size, and by the number of torch's threads. What `parallelism` decides by.

Called once by `startup`, in the engine's thread, on synthetic rows. The shortest of a few tries counts: what is longer was held
up by somebody else on the machine.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from torchmodel_runtime.engine.devices import configure_thread
from torchmodel_runtime.engine.forward import Engine
from torchmodel_runtime.parallelism import Timing, choose_size
from torchmodel_runtime.tasks import Task

SIZES_BUDGET_S = 2.0
"""For all sizes together, about: two seconds of a start that takes several (importing torch takes two). A choice."""
THREADS_BUDGET_S = 0.5
"""For all numbers of threads together."""
MIN_TRIES, TRIES = 2, 5
"""The first call of a size makes kernels for it: it would speak against every larger batch that there is no time to try often."""


def measure(engine: Engine, task: Task, thread_counts: Sequence[int]) -> Timing:
    """Seconds by size on one thread, then of the size to be used by number of threads; what takes too long is left out.

    Leaves this thread with all threads.
    """
    generator = np.random.default_rng(1)
    is_cuda = engine.device.type == "cuda"
    configure_thread(1 if not is_cuda else max(thread_counts))
    seconds: dict[int, float] = {}
    end_s = time.monotonic() + SIZES_BUDGET_S
    for rows in (1 << power for power in range(engine.max_rows.bit_length())):
        inputs = task.synthetic(rows, generator)
        left_s = end_s - time.monotonic()
        if seconds and 2 * MIN_TRIES * seconds[rows // 2] > left_s:
            break
        try:
            seconds[rows] = _shortest(functools.partial(engine.forward, inputs), left_s / 4, is_cuda)
        except Exception:
            if rows == 1:
                raise
            break  # the proof of batches meets it again, and says what it is
    rows = choose_size(seconds)
    by_threads = {1: seconds[rows]}
    if not is_cuda:
        inputs = task.synthetic(rows, generator)
        # one thread again: what is compared is to have been measured in the same moments
        for count in sorted({1, *thread_counts}) if max(thread_counts) > 1 and seconds[rows] < THREADS_BUDGET_S else ():
            configure_thread(count)
            taken_s = _shortest(
                functools.partial(engine.forward, inputs), THREADS_BUDGET_S / len(thread_counts), is_cuda
            )
            by_threads[count] = min(taken_s, by_threads.get(count, taken_s))
    configure_thread(max(thread_counts))
    return Timing(rows=rows, batch_s=by_threads, rows_s=seconds)


def _shortest(job: Callable[[], object], budget_s: float, is_cuda: bool) -> float:
    """The shortest of a few runs, of two at least unless one takes all of the time."""
    end_s = time.monotonic() + budget_s
    tries = [_seconds(job, is_cuda)]
    while len(tries) < TRIES and (
        time.monotonic() + tries[-1] < end_s or (len(tries) < MIN_TRIES and tries[0] < budget_s)
    ):
        tries.append(_seconds(job, is_cuda))
    return min(tries)


def _seconds(job: Callable[[], object], is_cuda: bool) -> float:
    started_s = time.perf_counter()
    job()
    if is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started_s
