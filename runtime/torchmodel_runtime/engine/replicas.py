"""Engines for several threads over the same weights, and the proof that they do not disturb each other.

`startup` asks for them when more than one batch is to be computed at the same time. A module may set attributes on itself in
forward, so each thread gets a copy of the module's Python side; parameters and buffers are the same tensors.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from torchmodel_runtime.engine.comparison import allow, compare
from torchmodel_runtime.engine.devices import configure_thread
from torchmodel_runtime.engine.forward import Engine
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tensors import Arrays

ROWS = (1, 3)
"""Rows of the batches computed at the same time: alone, and in company where that is allowed."""

TRIAL_S = 0.3
MAX_ROUNDS = 200
"""The trial ends after this time or this many rounds: some interference shows only now and then."""

SWITCH_S = 1e-5
"""How often Python changes threads during the trial (it is 5 ms otherwise), so that two forwards are inside each other."""


def make_replicas(engine: Engine, count: int, task: Task, threads: int) -> tuple[list[Engine], str]:
    """That many engines over the same weights, the given one first, or it alone and why.

    threads: torch's for each of them. Call it after the warm-up, in the engine's thread.
    """
    if count == 1:
        return [engine], ""
    inputs = task.synthetic(1, np.random.default_rng(1))
    before = engine.state_versions()
    engine.forward(inputs)
    after = engine.state_versions()
    written = [name for name, version in before.items() if after.get(name) != version]
    if written:
        return [engine], f"the module's forward writes to its own {', '.join(written[:3])}"
    try:
        engines = [engine, *(engine.replicate() for _ in range(count - 1))]
    except Exception as error:  # noqa: BLE001 - deepcopy calls the module's own code
        return [engine], f"the module cannot be copied: {type(error).__name__}: {str(error)[:300]}"
    doubt = find_interference(engines, task, threads)
    return ([engine], doubt) if doubt else (engines, "")


def find_interference(engines: Sequence[Engine], task: Task, threads: int) -> str:
    """Why these engines must not compute at the same time; empty when they may.

    Every engine computes rows of its own, again and again, in a thread of its own, all at once; each answer must be the one
    that the first engine gives for these rows alone.
    """
    generator = np.random.default_rng(2)
    sizes = [rows for rows in ROWS if rows <= engines[0].max_rows]
    work = [[task.synthetic(rows, generator) for rows in sizes] for _ in engines]
    expected = [[_copies(engines[0].forward(inputs)) for inputs in batches] for batches in work]
    alone = [answers for batches in expected for answers in batches]
    tolerances = [allow(column, engines[0].precision()) for column in zip(*alone, strict=True)]
    barrier = threading.Barrier(len(engines))
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    try:
        with ThreadPoolExecutor(len(engines)) as pool:
            trials = [
                pool.submit(_try_engine, engine, list(zip(batches, answers, strict=True)), tolerances, threads, barrier)
                for engine, batches, answers in zip(engines, work, expected, strict=True)
            ]
            return next((words for trial in trials if (words := trial.result())), "")
    finally:
        sys.setswitchinterval(interval_s)


def _try_engine(
    engine: Engine,
    batches: Sequence[tuple[Arrays, Arrays]],
    tolerances: Sequence[float],
    threads: int,
    barrier: threading.Barrier,
) -> str:
    """What is wrong with one engine's answers while the others work, or nothing. batches: inputs, and their answers alone."""
    configure_thread(threads)
    barrier.wait()
    until_s = time.monotonic() + TRIAL_S
    for rounds in range(MAX_ROUNDS):
        if rounds and time.monotonic() > until_s:
            break
        for inputs, answers in batches:
            try:
                outputs = engine.forward(inputs)
            except Exception as error:  # noqa: BLE001 - it did not raise alone
                return (
                    f"computed at the same time as others, the module raised {type(error).__name__}: {str(error)[:300]}"
                )
            for spec, answer, output, tolerance in zip(engine.call.outputs, answers, outputs, tolerances, strict=True):
                verdict = compare(answer, output, tolerance)
                if verdict.words:
                    return f"computed at the same time as others, output {spec.name!r} {verdict.words}"
    return ""


def _copies(outputs: Arrays) -> Arrays:
    return [output.copy() for output in outputs]
