"""Warm-up, and the proof that a row's answer does not depend on the rows beside it, nor on the padding behind it.

A model that mixes rows (batch statistics, one quantisation scale for a whole batch) would make one client's answer depend on
another's request; one that does not heed its mask would make it depend on another's length. So requests share batches of a size
only after rows were computed alone and in such a batch and agreed (docs/explanation/batching-proof.md). No batch has another
size: what waits is rounded down to one of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from torchmodel_runtime.config import WARM_UP_FAILED, BatchingReport, BatchProof
from torchmodel_runtime.engine.comparison import Verdict, allow, compare
from torchmodel_runtime.engine.conversion import OutputError
from torchmodel_runtime.engine.devices import is_out_of_memory, out_of_memory
from torchmodel_runtime.engine.forward import Engine
from torchmodel_runtime.engine.memory import PeakMeter
from torchmodel_runtime.engine.trials import Series, say_sizes, try_sizes
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tensors import Arrays

PROBES = 4
"""Rows compared in each batch: enough for a mixing model to show, few enough for a slow one."""

MOVED = 2
"""Of them are computed again with inputs that differ by a rounding."""

LENGTHS = 5
"""Different lengths among the rows of the proof of padding, from the task's shortest to its longest."""


@dataclass(frozen=True)
class Probe:
    """One row and its answer alone."""

    inputs: Arrays
    answer: Arrays
    length: int = 0


@dataclass(frozen=True)
class Probes:
    """Rows that are compared, and how much their answers may differ."""

    rows: Sequence[Probe]
    outputs: tuple[str, ...]
    """The outputs' names."""
    tolerances: tuple[float, ...]
    """Of each output."""

    def compare(self, probe: Probe, answer: Arrays) -> tuple[str, Verdict]:
        """The output that differs most, by its tolerance."""
        pairs = zip(self.outputs, probe.answer, answer, self.tolerances, strict=True)
        verdicts = [(name, compare(reference, other, tolerance)) for name, reference, other, tolerance in pairs]
        return max(verdicts, key=lambda each: (bool(each[1].words), each[1].max_difference))


def check_answers(engine: Engine, task: Task) -> None:
    """One synthetic row: the module answers as declared, and the task learns sizes from it. Raises StartError WARM_UP_FAILED."""
    inputs = task.synthetic(1, np.random.default_rng(0))
    task.learn(_run(engine, inputs))
    engine.bounds.learn(inputs, growth_bytes=0)


def prove_batches(engine: Engine, task: Task, max_size: int, why: str) -> BatchingReport:
    """Run the sizes up to max_size, prove the rows independent; sets the engine's bounds by it. why: max_size is not larger."""
    generator = np.random.default_rng(0)
    if max_size == 1:
        engine.max_rows = 1
        return BatchingReport(enabled=False, max_size=1, reason=why)
    rows = _rows_of(task.synthetic(PROBES, generator), range(PROBES))
    probes = _make_probes(engine, [Probe(inputs, engine.forward(inputs)) for inputs in rows])
    engine.bounds.learn(rows[0], growth_bytes=0)
    doubt = _find_chance(engine, probes)
    meter = PeakMeter(engine.device)
    series = Series(doubt=doubt) if doubt else _prove_company(engine, task, max_size, probes, meter)
    if series.doubt or series.largest == 1:
        engine.max_rows = 1
        reason = series.doubt or series.stopped
        return BatchingReport(enabled=False, max_size=1, reason=reason, proofs=series.proofs)
    _allow(engine, series)
    engine.bounds.learn(task.synthetic(series.largest, generator), meter.growth_bytes())
    padded = _prove_padding(engine, task, generator, series.sizes)
    if padded is not None and not padded.doubt:
        _allow(engine, padded)
    return BatchingReport(
        enabled=True,
        max_size=engine.max_rows,
        reason=_say(series, padded, why),
        padding=engine.pads,
        proofs=series.proofs + (padded.proofs if padded else []),
    )


def _allow(engine: Engine, series: Series) -> None:
    """Batches of these sizes from now on."""
    engine.max_rows = series.largest
    engine.bounds.sizes = () if len(series.sizes) == series.largest else tuple(series.sizes)


def _say(series: Series, padded: Series | None, why: str) -> str:
    """The outcome in words."""
    words = f"rows alone and in batches of {say_sizes(series.sizes[1:])} agreed within tolerance"
    if series.stopped:
        words += f"; larger ones are not used: {series.stopped}"
    elif why:
        words += f"; {why}"
    if padded is None:
        return words
    if padded.doubt:
        return f"{words}; padding is off: {padded.doubt}"
    words += "; so did rows padded to the longest"
    if padded.sizes != series.sizes:
        words += f", in batches of {say_sizes(padded.sizes[1:])}, and only these are used"
    return f"{words}: {padded.stopped}" if padded.stopped else words


def _run(engine: Engine, inputs: Arrays) -> Arrays:
    """The module on one synthetic row, its habits watched; an exception becomes a StartError that shows the inputs."""
    try:
        return engine.watch(inputs)
    except OutputError as error:
        raise StartError(
            WARM_UP_FAILED, str(error), "Correct spec.signature.outputs to what the module returns."
        ) from error
    except Exception as error:
        if is_out_of_memory(error):
            raise out_of_memory("warm-up with one row", error) from error
        shapes = ", ".join(f"{array.dtype} {list(array.shape)}" for array in inputs)
        raise StartError(
            WARM_UP_FAILED,
            f"the module failed on synthetic inputs of one row ({shapes}): {type(error).__name__}: {error}",
            "Compare the inputs with what the module's forward takes: their order, datatypes and shapes.",
        ) from error


def _make_probes(engine: Engine, rows: list[Probe]) -> Probes:
    """With the tolerances that follow from what the module makes of them, and of the first ones moved by one rounding."""
    generator, precision = np.random.default_rng(5), engine.precision()
    step = torch.finfo(precision).eps
    moved = []
    if any(array.dtype.kind == "f" for array in rows[0].inputs):
        moved = [engine.forward([_move(array, step, generator) for array in row.inputs]) for row in rows[:MOVED]]
    outputs = range(len(engine.call.outputs))
    return Probes(
        rows,
        tuple(spec.name for spec in engine.call.outputs),
        tuple(
            allow([row.answer[each] for row in rows], precision, [answer[each] for answer in moved]) for each in outputs
        ),
    )


def _move(array: np.ndarray, step: float, generator: np.random.Generator) -> np.ndarray:
    """Each number a rounding up or down."""
    if array.dtype.kind != "f":
        return array
    signs = generator.integers(0, 2, array.shape) * 2 - 1
    moved: np.ndarray = (array * (1 + step * signs)).astype(array.dtype)
    return moved


def _find_chance(engine: Engine, probes: Probes) -> str:
    """Why the module's answers cannot be compared: it is not deterministic; empty when it is."""
    first = probes.rows[0]
    name, verdict = probes.compare(first, engine.forward(first.inputs))
    return (
        f"the module is not deterministic: output {name!r} of one row computed twice {verdict.words}"
        if verdict.words
        else ""
    )


def _prove_company(engine: Engine, task: Task, max_size: int, probes: Probes, meter: PeakMeter) -> Series:
    """Rows of equal shape alone and together."""
    generator = np.random.default_rng(3)

    def compute(size: int, series: Series) -> str:
        inputs = task.synthetic(size, generator)
        places = _places(size)
        for place, probe in zip(places, probes.rows, strict=False):
            for array, row in zip(inputs, probe.inputs, strict=True):
                array[place] = row[0]
        outputs = engine.forward(inputs)
        answers = [[output[place : place + 1] for output in outputs] for place in places]
        return _compare_all(probes, answers, size, series, padded=False)

    return try_sizes(engine, range(2, max_size + 1), compute, meter)


def _prove_padding(engine: Engine, task: Task, generator: np.random.Generator, sizes: Sequence[int]) -> Series | None:
    """Rows of different length alone and padded together; None where no padding is declared. sizes: proven without, from 1."""
    if engine.call.padding is None:
        return None
    rows = _probe_lengths(engine, task, generator)
    if len({row.length for row in rows}) < 2:
        tried = "{} to {}".format(*task.lengths)
        return Series(doubt=f"of rows of length {tried} the module takes fewer than two, so nothing can be compared")
    probes = _make_probes(engine, rows)
    engine.pads = True
    engine.cut_outputs = tuple(
        index
        for index, spec in enumerate(engine.call.outputs)
        if spec.shape[1:2] == [-1] and all(row.answer[index].shape[1] == row.length for row in rows)
    )

    def compute(size: int, series: Series) -> str:
        company = [rows[index % len(rows)].inputs for index in range(size)]
        for index in range(len(rows), size):  # the others differ from the probes
            length = int(generator.choice([row.length for row in rows]))
            company[index] = task.synthetic(1, generator, length)
        return _compare_all(probes, engine.run_together(company), size, series, padded=True)

    series = try_sizes(engine, sizes[1:], compute, PeakMeter(engine.device))
    if not series.doubt and series.largest == 1:
        series.doubt = series.stopped
    if series.doubt:
        engine.pads, engine.cut_outputs = False, ()
    return series


def _probe_lengths(engine: Engine, task: Task, generator: np.random.Generator) -> list[Probe]:
    """One row for each length that the module takes, the shortest and the longest first: in a pair they differ most."""
    shortest, longest = task.lengths
    lengths = sorted({int(length) for length in np.geomspace(max(1, shortest), longest, LENGTHS).round()})
    probes = []
    for length in [lengths[0], *reversed(lengths[1:])]:
        inputs = task.synthetic(1, generator, length)
        try:
            probes.append(Probe(inputs, engine.forward(inputs), length))
        except Exception:  # noqa: BLE001, S112 - too short for its kernel, or too long for its positions: served so, with an error
            continue
    return probes


def _compare_all(probes: Probes, answers: Sequence[Arrays], size: int, series: Series, *, padded: bool) -> str:
    """Each probe's answer alone and in company: the figures into the series; returned is what is wrong, or nothing."""
    worst, doubt = Verdict(0.0, 0.0, ""), ""
    for probe, answer in zip(probes.rows, answers, strict=False):
        name, verdict = probes.compare(probe, answer)
        if verdict.max_difference >= worst.max_difference:
            worst = verdict
        if verdict.words and not doubt:
            how = f"padded from {probe.length} among {size} rows" if padded else f"among {size}"
            blame = "a row's answer depends on its padding or its company" if padded else "rows influence each other"
            doubt = f"{blame}: output {name!r} of a row, alone and {how}, {verdict.words}"
    # JSON has no infinity; a difference that is none, as between shapes, is shown as the largest float
    difference = float(min(worst.max_difference, np.finfo(np.float64).max))
    series.proofs.append(BatchProof(rows=size, padded=padded, max_difference=difference, tolerance=worst.tolerance))
    return doubt


def _rows_of(inputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    return [[array[row : row + 1].copy() for array in inputs] for row in rows]


def _places(size: int) -> list[int]:
    """Where the probes stand in a batch: first, last, and two between."""
    return sorted({0, size - 1, size // 3, 2 * size // 3})
