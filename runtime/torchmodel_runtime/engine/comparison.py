"""Whether two answers of the module to the same row are the same, and by how much they differ.

Used by the proofs. How much is too much: torch may take another kernel for another batch size, which adds the same numbers in
another order; so two right answers differ by some roundings of the values that take part. These are not seen, and an answer that
is nearly zero may come from large ones that cancel. So the scale is the greatest value of that output over all probes, however
small: one figure for each precision, times that. A module that makes much of little (the exponential of a large logit) makes
much of roundings too: `allow` sees that by rows that were moved by one rounding, and widens the figure, tenfold at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Of the output's greatest value. fp32: 84 roundings (2^-23). Measured for sizes of 2 to 32: encoders, recurrent and plain nets
moved by 0.13 of it at most, softmax and sigmoid heads of logits up to 60 by 0.4; in bf16 by 1e-3; rows that mix by 1e-1 to 1."""

USUAL_GAIN = 8
"""Roundings of the answer for one of the inputs that are nothing special: plain nets, encoders and heads of small logits have 2
to 7 (measured)."""
WIDEST = 10

SMALLEST = float(np.finfo(np.float32).tiny)
"""Numbers below are flushed to zero here and there."""


@dataclass(frozen=True)
class Verdict:
    """Two answers compared."""

    max_difference: float
    tolerance: float
    """What was allowed; 0 for answers that are not floats, which must be equal."""
    words: str
    """By how much they differ, where that is too much; empty when they agree."""


def allow(answers: Sequence[np.ndarray], precision: torch.dtype, moved: Sequence[np.ndarray] = ()) -> float:
    """How much two answers of an output may differ, by what the module gave for all probes alone.

    moved: its answers to the same rows, inputs moved by one rounding of the precision.
    """
    top = max((_greatest(answer) for answer in answers), default=0.0)
    step = max(
        (_greatest(_wide(answer) - _wide(other)) for answer, other in zip(answers, moved, strict=False)), default=0.0
    )
    gain = step / (top * torch.finfo(precision).eps) if top > 0 else 0.0
    share = TOLERANCES.get(precision, TOLERANCES[torch.float32])
    return max(SMALLEST, share * top * min(WIDEST, max(1.0, gain / USUAL_GAIN)))


def compare(reference: np.ndarray, answer: np.ndarray, tolerance: float) -> Verdict:
    """A row's answer against its reference; tolerance: of `allow`."""
    if reference.shape != answer.shape:
        return Verdict(np.inf, 0.0, f"has shape {list(answer.shape)}, alone {list(reference.shape)}")
    if not _is_float(reference):
        different = int((reference != answer).sum())
        words = f"differs in {different} of {reference.size} values" if different else ""
        return Verdict(float(different > 0), 0.0, words)
    wide, other = _wide(reference), _wide(answer)
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], other[~finite], equal_nan=True) or not np.isfinite(other[finite]).all():
        return Verdict(np.inf, 0.0, "differs in which values are finite")
    difference = float(np.abs(wide[finite] - other[finite]).max(initial=0.0))
    words = f"differs by up to {difference:.3g} (tolerance {tolerance:.3g})" if difference > tolerance else ""
    return Verdict(difference, tolerance, words)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind in "fV"  # V is bfloat16


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _greatest(array: np.ndarray) -> float:
    """The greatest absolute value that is a number."""
    values = np.abs(_wide(array))
    return float(values[np.isfinite(values)].max(initial=0.0))
