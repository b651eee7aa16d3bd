"""What a batch may be: what the proofs of warm-up allow, and what the worker that takes it has room for.

`startup` makes the rules of what the engine has proven; `batcher`, `batching` and `paddingplan` keep to them. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple


def fit_rows(rows: int, sizes: Sequence[int]) -> int:
    """The greatest proven number of rows that is no more than that; sizes: ascending, from 1, or empty where every one is."""
    return sizes[max(0, bisect_right(sizes, rows) - 1)] if sizes else max(1, rows)


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What the proofs of warm-up allow batches to be."""

    max_rows: int
    """Most rows in one call of the module; 1: batching is off."""
    sizes: tuple[int, ...] = ()
    """The numbers of rows that were proven, ascending, from 1 to max_rows; no other is computed. Empty: every one was."""
    padded_inputs: tuple[int, ...] = ()
    """Indices of the module inputs whose axis 1 may differ within a batch, as the engine pads them; all of one request have
    the same length there. Empty: only equal shapes share a batch."""
    max_batch_bytes: int = 0
    """Most bytes of (padded) inputs in a batch, from the memory that is free; 0: no bound."""
    depth: int = 1
    """Batches a worker may hold: 2 where the next can be brought to the device while one runs, else 1. Only a full batch goes
    to a worker that is busy, since one that is not may still grow."""

    def fit(self, rows: int) -> int:
        """The greatest number of rows that one call may have and that is no more than this; one at least."""
        return fit_rows(min(rows, self.max_rows), self.sizes)


class Room(NamedTuple):
    """What one batch has room for."""

    rows: int
    bytes: int
    """Of inputs, every row as long as the longest; 0: no bound."""
    proven: Collection[int] = ()
    """Numbers of rows of which it must have one; empty: every one will do."""

    def rows_of(self, row_bytes: int) -> int:
        """Most rows, were all of that size."""
        return min(self.rows, self.bytes // row_bytes) if self.bytes and row_bytes else self.rows

    def takes(self, rows: int) -> bool:
        """True when a batch may have exactly so many."""
        return not self.proven or rows in self.proven
