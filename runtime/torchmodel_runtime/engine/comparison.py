"""Whether two answers of the module to the same row are the same, and by how much they differ.

Used by the proofs. How much is too much: torch may take another kernel for another batch size, which adds the same numbers in
another order; so two right answers differ by some roundings of the largest value that takes part. Hence one figure for each
precision, times the answer's own scale: what a row is allowed to differ by is never more than TOLERANCES of its largest value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

TOLERANCES: dict[torch.dtype, float] = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}
"""Of the larger of 1 and the row's greatest value. fp32: 84 roundings (2^-23); in a batch of 64 a row moved by 1e-6 in fp32
and 1e-3 in bf16, mixed rows by 4 (measured), so all lie ten times above the honest and far below the wrong."""


@dataclass(frozen=True)
class Verdict:
    """Two answers compared."""

    max_difference: float
    tolerance: float
    """What was allowed; 0 for answers that are not floats, which must be equal."""
    words: str
    """By how much they differ, where that is too much; empty when they agree."""


def compare(reference: np.ndarray, answer: np.ndarray, precision: torch.dtype) -> Verdict:
    """A row's answer against its reference, by what the precision of the module allows."""
    if reference.shape != answer.shape:
        return Verdict(np.inf, 0.0, f"has shape {list(answer.shape)}, alone {list(reference.shape)}")
    if reference.dtype.kind not in "fV":  # V is bfloat16
        different = int((reference != answer).sum())
        words = f"differs in {different} of {reference.size} values" if different else ""
        return Verdict(float(different > 0), 0.0, words)
    wide, other = reference.astype(np.float64), answer.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], other[~finite], equal_nan=True) or not np.isfinite(other[finite]).all():
        return Verdict(np.inf, 0.0, "differs in which values are finite")
    scale = max(1.0, float(np.abs(wide[finite]).max(initial=0.0)))
    tolerance = TOLERANCES.get(precision, TOLERANCES[torch.float32]) * scale
    difference = float(np.abs(wide[finite] - other[finite]).max(initial=0.0))
    words = f"differs by up to {difference:.3g} (tolerance {tolerance:.3g})" if difference > tolerance else ""
    return Verdict(difference, tolerance, words)
