"""What a batch costs, learned from the batches that ran: seconds = batch_s + row_s · rows + byte_s · padded bytes.

Theory. A call of the module has a part that is paid once (Python, launches, weights read from memory), a part for each row and
a part for each input element, padding included. The three are fitted by least squares with none below zero, to the last batches
and to a few older ones of every size: a long spell of equal batches tells only what that size costs, and must not make the rest
forgotten. Residuals are relative, so that a batch of 50 µs counts as much as one of 50 ms and a stall of the machine, which is
an error of one at most, cannot bend the line; what still lies far off weighs less in a second pass. Where the sizes seen cannot
tell the parts apart, all is taken for the part paid once: batches then grow, which is harmless and soon tells more.

A queue takes longer than full batches without padding would: `backlog_s` is corrected by the ratio of the two in the last
batches under load. `batching` plans and `admission` predicts by these. Nobody is refused before `known` is true.
Reads no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain

import numpy as np

RECENT_BATCHES = 64
"""As many as BentoML's dispatcher about (50); minutes of a slow model, a second of a quick one."""
KEPT_OF_EACH_SIZE = 4
ENOUGH_BATCHES = 8
"""Before that many, `known` is false; a guess, above the number of warm-up oddities."""
REFIT_AFTER = 32
"""Batches between two fits once there are that many: a fit takes some 150 µs, a small model's batch no more."""
DECAY = 0.95
"""Weight of the past in the ratio for each batch: it remembers about twenty."""

_SHAPES = ((0,), (0, 2), (0, 1), (2,), (1,), (0, 1, 2), (1, 2))
"""Which parts a fit may consist of, simplest story first; a later one must be better by a hundredth to be believed."""


class CostModel:
    """Learns from each batch and predicts the next ones."""

    def __init__(self, full_rows: int) -> None:
        """full_rows: most rows in one batch."""
        self._full_rows = full_rows
        self._recent: deque[tuple[int, int, float]] = deque(maxlen=RECENT_BATCHES)
        self._by_size: dict[int, deque[tuple[int, int, float]]] = {}
        self._seen = 0
        self._unfitted = 0
        self._loaded_s = 0.0
        self._full_s = 0.0
        """Fading sums of what batches under load took, and of what their rows would take in full ones without padding."""
        self.batch_s = 0.0
        self.row_s = 0.0
        self.byte_s = 0.0
        self._full_row_s = 0.0
        """Of a row with its share of a full batch."""

    @property
    def known(self) -> bool:
        """True once enough batches ran to decide by."""
        return self._seen >= ENOUGH_BATCHES

    def observe(self, rows: int, padded_bytes: int, useful_bytes: int, seconds: float, loaded: bool) -> None:
        """A batch ran and every request in it was answered; loaded: more waited than it could take."""
        if seconds <= 0 or rows <= 0:
            return
        sample = (rows, padded_bytes, seconds)
        self._recent.append(sample)
        self._seen += 1
        self._unfitted += 1
        if self._unfitted >= min(REFIT_AFTER, self._seen // 2 + 1):
            self._remember()
            self._fit()
        if loaded and self.known:
            self._loaded_s = self._loaded_s * DECAY + seconds
            self._full_s = self._full_s * DECAY + self._in_full_batches_s(rows, useful_bytes)

    def seconds(self, rows: int, padded_bytes: int) -> float:
        """What one batch would take; 0 while unknown."""
        return self.batch_s + self.row_s * rows + self.byte_s * padded_bytes if self._seen >= ENOUGH_BATCHES else 0.0

    def backlog_s(self, rows: int, useful_bytes: int) -> float:
        """What that much waiting work would take one worker, in the batches it makes; 0 while unknown."""
        if self._seen < ENOUGH_BATCHES:
            return 0.0
        slowdown = self._loaded_s / self._full_s if self._full_s > 0 else 1.0
        return (self._full_row_s * rows + self.byte_s * useful_bytes) * slowdown

    def _in_full_batches_s(self, rows: int, useful_bytes: int) -> float:
        return self._full_row_s * rows + self.byte_s * useful_bytes

    def _remember(self) -> None:
        """Keep some of each size; sizes are told apart by powers of two of rows and of bytes."""
        for sample in list(self._recent)[-self._unfitted :]:
            size = (sample[0].bit_length() << 8) + sample[1].bit_length()
            self._by_size.setdefault(size, deque(maxlen=KEPT_OF_EACH_SIZE)).append(sample)
        self._unfitted = 0

    def _fit(self) -> None:
        samples = np.array([*self._recent, *chain.from_iterable(self._by_size.values())], dtype=np.float64)
        parts, seconds = samples.copy(), samples[:, 2:]
        parts[:, 1:] = samples[:, :2]
        parts[:, 0] = 1.0
        scale = np.maximum(parts.max(axis=0), 1.0)
        relative = parts / scale / seconds
        fitted = _solve(relative, np.ones(len(relative)), _SHAPES)
        error = np.abs(relative @ fitted - 1.0)
        usual = 3 * float(np.median(error)) + 1e-6
        again = _solve(relative, usual / np.maximum(error, usual), [tuple(np.flatnonzero(fitted))])
        fitted = again if again.any() else fitted
        self.batch_s, self.row_s, self.byte_s = (float(part) for part in fitted / scale)
        self._full_row_s = self.batch_s / self._full_rows + self.row_s


def _solve(relative: np.ndarray, weights: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Least squares for relative @ x = 1 with no part below zero: (3,) float64, by trying each choice of parts.

    relative: (batches, 3) float64, each row divided by its seconds. weights: (batches,) float64. Zeros where no choice will do.
    """
    gram = (relative * weights[:, None]).T @ relative
    target = weights @ relative
    best, best_error = np.zeros(3), float("inf")
    for shape in shapes:
        index = np.array(shape)
        try:
            found = np.linalg.solve(gram[np.ix_(index, index)], target[index])
        except np.linalg.LinAlgError:  # the sizes seen cannot tell these parts apart
            continue
        error = float(weights.sum() - target[index] @ found)
        if (found >= 0).all() and error < 0.99 * best_error - 1e-9 * len(relative):
            best, best_error = np.zeros(3), max(error, 0.0)
            best[index] = found
    return best
