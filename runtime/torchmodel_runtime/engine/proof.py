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

from torchmodel_runtime.config import WARM_UP_FAILED, BatchingReport, BatchProof
from torchmodel_runtime.engine.comparison import Verdict, compare
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

LENGTHS = 5
"""Different lengths among the rows of the proof of padding, from the task's shortest to its longest."""


@dataclass(frozen=True)
class Probe:
    """One row and its answer alone."""

    inputs: Arrays
    answer: Arrays
    length: int = 0


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
    probes = [
        Probe(inputs, engine.forward(inputs)) for inputs in _rows_of(task.synthetic(PROBES, generator), range(PROBES))
    ]
    engine.bounds.learn(probes[0].inputs, growth_bytes=0)
    doubt = _find_chance(engine, probes[0])
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


def _find_chance(engine: Engine, probe: Probe) -> str:
    """Why the module's answers cannot be compared: it is not deterministic; empty when it is."""
    again = engine.forward(probe.inputs)
    name, verdict = _worst(engine, probe.answer, again)
    return (
        f"the module is not deterministic: output {name!r} of one row computed twice {verdict.words}"
        if verdict.words
        else ""
    )


def _prove_company(engine: Engine, task: Task, max_size: int, probes: Sequence[Probe], meter: PeakMeter) -> Series:
    """Rows of equal shape alone and together."""
    generator = np.random.default_rng(3)

    def compute(size: int, series: Series) -> str:
        inputs = task.synthetic(size, generator)
        places = _places(size)
        for place, probe in zip(places, probes, strict=False):
            for array, row in zip(inputs, probe.inputs, strict=True):
                array[place] = row[0]
        outputs = engine.forward(inputs)
        answers = [[output[place : place + 1] for output in outputs] for place in places]
        return _compare_all(engine, probes, answers, size, series, padded=False)

    return try_sizes(engine, range(2, max_size + 1), compute, meter)


def _prove_padding(engine: Engine, task: Task, generator: np.random.Generator, sizes: Sequence[int]) -> Series | None:
    """Rows of different length alone and padded together; None where no padding is declared. sizes: proven without, from 1."""
    if engine.call.padding is None:
        return None
    probes = _probe_lengths(engine, task, generator)
    if len({probe.length for probe in probes}) < 2:
        tried = "{} to {}".format(*task.lengths)
        return Series(doubt=f"of rows of length {tried} the module takes fewer than two, so nothing can be compared")
    engine.pads = True
    engine.cut_outputs = tuple(
        index
        for index, spec in enumerate(engine.call.outputs)
        if spec.shape[1:2] == [-1] and all(probe.answer[index].shape[1] == probe.length for probe in probes)
    )

    def compute(size: int, series: Series) -> str:
        company = [probes[index % len(probes)].inputs for index in range(size)]
        for index in range(len(probes), size):  # the others differ from the probes
            length = int(generator.choice([probe.length for probe in probes]))
            company[index] = task.synthetic(1, generator, length)
        return _compare_all(engine, probes, engine.run_together(company), size, series, padded=True)

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


def _compare_all(
    engine: Engine, probes: Sequence[Probe], answers: Sequence[Arrays], size: int, series: Series, *, padded: bool
) -> str:
    """Each probe's answer alone and in company: the figures into the series; returned is what is wrong, or nothing."""
    worst, doubt = Verdict(0.0, 0.0, ""), ""
    for probe, answer in zip(probes, answers, strict=False):
        name, verdict = _worst(engine, probe.answer, answer)
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


def _worst(engine: Engine, reference: Arrays, answer: Arrays) -> tuple[str, Verdict]:
    """The output that differs most, by its tolerance."""
    precision = engine.precision()
    verdicts = [
        (spec.name, compare(first, second, precision))
        for spec, first, second in zip(engine.call.outputs, reference, answer, strict=True)
    ]
    return max(verdicts, key=lambda each: (bool(each[1].words), each[1].max_difference))


def _rows_of(inputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    return [[array[row : row + 1].copy() for array in inputs] for row in rows]


def _places(size: int) -> list[int]:
    """Where the probes stand in a batch: first, last, and two between."""
    return sorted({0, size - 1, size // 3, 2 * size // 3})
