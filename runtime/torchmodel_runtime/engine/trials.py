"""Which batch sizes are tried, in which order, and when to stop: the frame around `proof`'s comparisons.

A size that was not tried is not used, so as many are as there is time for: first a coarse scale up to the largest, then what
lies between. `proof` gives the computation; what comes of it is a `Series`.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torchmodel_runtime.config import BatchProof
from torchmodel_runtime.engine.devices import is_out_of_memory
from torchmodel_runtime.engine.forward import Engine
from torchmodel_runtime.engine.memory import SHARE, PeakMeter, room_bytes

BUDGET_S = 12.0
"""Time for the sizes of one series; a size that would take longer is not tried and not used. A guess at what a start may cost."""

BETWEEN_S = 0.25
"""Time for the sizes between those, the small ones first: of a quick model all are proven. A slow one loses little without:
an encoder of variable lengths 0.4 % of its rate (bench/batching_simulation.py)."""

Compute = Callable[[int, "Series"], str]
"""Computes a batch of so many rows, notes the figures in the series, and returns what is wrong, or nothing."""


@dataclass
class Series:
    """What came of trying one size after the other."""

    proofs: list[BatchProof] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [1])
    """That may be used, ascending."""
    row_s: float = 0.0
    """What a row took in the batch that was tried last."""
    doubt: str = ""
    """Why rows must not share a batch in this way."""
    stopped: str = ""
    """Why larger sizes were not tried, or failed."""

    @property
    def largest(self) -> int:
        """Most rows that may be used."""
        return self.sizes[-1]


def batch_sizes(max_size: int) -> list[int]:
    """The sizes that are tried first: powers of two, where kernels change, half as much again, and the largest.

    Rounding down to them leaves at most a third of a batch waiting.
    """
    powers = [1 << power for power in range(1, max_size.bit_length())]
    return sorted({size for power in powers for size in (power, power * 3 // 2) if size <= max_size} | {max_size})


def try_sizes(engine: Engine, sizes: Sequence[int], compute: Compute, meter: PeakMeter) -> Series:
    """Those of `batch_sizes` one after the other, until one is in doubt or the next would take too much time or memory; then,
    as long as that is quick, those between them."""
    series, started_s = Series(), time.monotonic()
    first = [size for size in batch_sizes(sizes[-1]) if size in sizes]
    for size in first:
        spent_s, grown = time.monotonic() - started_s, meter.growth_bytes()
        taken_s = series.row_s * series.largest
        series.stopped = why_not(size, series.largest, taken_s, spent_s, grown, room_bytes(engine.device))
        if series.stopped or not _is_proven(engine, size, compute, series):
            break
    if not series.doubt:
        _try_between(engine, [size for size in sizes if size not in first and size < series.largest], compute, series)
    return series


def _try_between(engine: Engine, sizes: Sequence[int], compute: Compute, series: Series) -> None:
    """As many of these as there is time for, ascending; only a doubtful one gets into the report."""
    until_s = time.monotonic() + BETWEEN_S
    reported = len(series.proofs)
    for size in sizes:
        if time.monotonic() + series.row_s * size > until_s or not _is_proven(engine, size, compute, series):
            break
        del series.proofs[reported:]


def _is_proven(engine: Engine, size: int, compute: Compute, series: Series) -> bool:
    """Try one size and put into the series what came of it: doubt about all of them, or a bound below the one that failed."""
    began_s, failed = time.monotonic(), ""
    try:
        series.doubt = compute(size, series)
    except Exception as error:  # noqa: BLE001 - whatever it is, smaller batches or single rows work and are served
        failed = f"{size} rows gave {type(error).__name__}: {str(error)[:300]}"
        if series.largest == 1 and not is_out_of_memory(error):
            series.doubt = f"the module takes one row at a time: {failed}"
    else:
        if not series.doubt and (engine.max_rows < size or engine.bounds.max_bytes):  # the engine helped itself
            failed = f"a batch of {size} did not fit the memory"
            engine.max_rows, engine.bounds.max_bytes = series.largest, 0
    if series.doubt:
        return False
    if failed:
        series.stopped = failed
        series.sizes = [each for each in series.sizes if each < size]
        series.proofs = [proof for proof in series.proofs if proof.rows < size]
        return False
    series.row_s = (time.monotonic() - began_s) / size
    insort(series.sizes, size)
    return True


def why_not(size: int, largest: int, seconds: float, spent_s: float, grown_bytes: int, room_bytes: int) -> str:
    """Why a batch of that size is not tried; empty when it is.

    seconds, grown_bytes: what the largest one so far took; its size times as much is expected of the next. room_bytes: the
    memory left; spent_s: by the sizes so far.
    """
    factor = size / largest
    if spent_s + seconds * factor > BUDGET_S:
        return f"a batch of {largest} took {seconds:.1f} s"
    if grown_bytes * (factor - 1) > room_bytes * SHARE:
        return f"a batch of {largest} took {grown_bytes >> 20} MiB of memory"
    return ""


def say_sizes(sizes: Sequence[int]) -> str:
    """The sizes, three or more that follow each other as a range."""
    words: list[str] = []
    start = 0
    for end in range(1, len(sizes) + 1):
        if end == len(sizes) or sizes[end] != sizes[end - 1] + 1:
            run = sizes[start:end]
            words += [f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run)
            start = end
    return ", ".join(words)
