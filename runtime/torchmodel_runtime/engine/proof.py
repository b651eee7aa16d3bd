"""Warm-up, and the proof that a row's answer does not depend on the rows beside it.

A model that mixes rows (batch statistics, one quantisation scale for a whole batch) would make one client's answer depend on
another's request. So requests share batches only after each row was computed alone and in company and agreed.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from torchmodel_runtime.config import WARM_UP_FAILED, BatchingReport
from torchmodel_runtime.engine.forward import Engine, OutputError, is_out_of_memory, out_of_memory
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tensors import Arrays

COMPANY_ROWS = 4
"""Rows compared: enough for a mixing model to show, few enough for a slow one."""

TIME_FOR_LARGEST_S = 30.0
"""The largest batch is left out of the warm-up when a row's time says it would take longer; a guess at what is bearable."""

TOLERANCES: dict[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-7, 1e-8),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 1e-3),
    torch.bfloat16: (5e-2, 1e-2),
}
"""rtol and atol by the module's dtype; atol is multiplied by the answers' own scale. torch.testing's are for one operation
(fp32 1.3e-6 and 1e-5, fp16 1e-3, bf16 1.6e-2; torch/testing/_comparison.py); a whole network gets roughly ten rounds of them,
bf16 three. A row computed in a batch of 64 moved by 1e-6 in fp32 and 1e-3 in bf16, mixed rows by 4 (reference measurement)."""


def warm_up(engine: Engine, task: Task, max_size: int) -> BatchingReport:
    """Run the sizes that will come, check the outputs, prove the rows independent. Raises StartError WARM_UP_FAILED.

    Sizes 1, a few and the largest: one row takes other kernels than several, and the largest needs the most memory.
    """
    generator = np.random.default_rng(0)
    task.learn(_run(engine, task.synthetic(1, generator), "one row"))
    started_s = time.monotonic()
    _run(engine, task.synthetic(1, generator), "one row")
    row_s = time.monotonic() - started_s
    if max_size == 1:
        return BatchingReport(enabled=False, max_size=1, reason="serving.batching.maxSize is 1")
    doubt = _find_doubt(engine, task.synthetic(COMPANY_ROWS, generator))
    if doubt:
        engine.max_rows = 1
        return BatchingReport(enabled=False, max_size=1, reason=doubt)
    if row_s * max_size <= TIME_FOR_LARGEST_S:
        _run(engine, task.synthetic(max_size, generator), f"{max_size} rows")
    return BatchingReport(
        enabled=True, max_size=max_size, reason=f"{COMPANY_ROWS} rows alone and together agreed within tolerance"
    )


def _run(engine: Engine, inputs: Arrays, what: str) -> Arrays:
    """The module on synthetic inputs; an exception becomes a StartError that shows the inputs."""
    try:
        return engine.forward(inputs)
    except OutputError as error:
        raise StartError(
            WARM_UP_FAILED, str(error), "Correct spec.signature.outputs to what the module returns."
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory(f"warm-up with {what}", error) from error
        shapes = ", ".join(f"{array.dtype} {list(array.shape)}" for array in inputs)
        raise StartError(
            WARM_UP_FAILED,
            f"the module failed on synthetic inputs of {what} ({shapes}): {type(error).__name__}: {error}",
            "Compare the inputs with what the module's forward takes: their order, datatypes and shapes.",
        ) from error


def _find_doubt(engine: Engine, inputs: Arrays) -> str:
    """Why rows must not share a batch; empty when they may."""
    rows = len(inputs[0])
    alone = [engine.forward([array[row : row + 1] for array in inputs]) for row in range(rows)]
    again = engine.forward([array[:1] for array in inputs])
    tolerance = TOLERANCES.get(engine.float_dtype, TOLERANCES[torch.float32])
    for name, first, second in zip(engine.output_names, alone[0], again, strict=True):
        if worst := _worst_excess(first, second, tolerance):
            return f"the module is not deterministic: output {name!r} of one row computed twice {worst}"
    try:
        together = engine.forward(inputs)
    except Exception as error:  # noqa: BLE001 - whatever it is, single rows work and are served
        return f"the module takes one row at a time: {rows} rows gave {type(error).__name__}: {str(error)[:300]}"
    for index, name in enumerate(engine.output_names):
        for row in range(rows):
            reference, answer = alone[row][index], together[index][row : row + 1]
            if reference.shape != answer.shape:
                return f"output {name!r} of row {row} has shape {list(reference.shape)} alone, {list(answer.shape)} in company"
            if worst := _worst_excess(reference, answer, tolerance):
                return f"rows influence each other: output {name!r} of row {row}, alone and among {rows}, {worst}"
    return ""


def _worst_excess(reference: np.ndarray, answer: np.ndarray, tolerance: tuple[float, float]) -> str:
    """By how much two answers differ where it is too much, in words; empty when they agree."""
    if reference.dtype.kind not in "fV":  # V is bfloat16
        different = int((reference != answer).sum())
        return f"differs in {different} of {reference.size} values" if different else ""
    rtol, atol = tolerance
    wide, other = reference.astype(np.float64), answer.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(finite, np.isfinite(other)):
        return "differs in which values are finite"
    scale = max(1.0, float(np.abs(wide[finite]).max(initial=0.0)))
    difference = np.abs(wide - other)[finite]
    if (difference <= atol * scale + rtol * np.abs(wide[finite])).all():
        return ""
    return f"differs by up to {difference.max():.3g} (tolerance {rtol:g} relative, {atol * scale:g} absolute)"
