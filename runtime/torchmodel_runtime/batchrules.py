"""What a batch may be: what the proofs of warm-up allow, and what the worker that takes it has room for.

`startup` makes the rules of what the engine has proven; `batcher`, `batching` and `paddingplan` keep to them. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class BatchRules:
    """What the proofs of warm-up allow batches to be."""

    max_rows: int
    """Most rows in one call of the module; 1: batching is off."""
    padded_inputs: tuple[int, ...] = ()
    """Indices of the module inputs whose axis 1 may differ within a batch, as the engine pads them; all of one request have
    the same length there. Empty: only equal shapes share a batch."""
    max_batch_bytes: int = 0
    """Most bytes of (padded) inputs in a batch, from the memory that is free; 0: no bound."""
    depth: int = 1
    """Batches a worker may hold: 2 where the next can be brought to the device while one runs, else 1. Only a full batch goes
    to a worker that is busy, since one that is not may still grow."""


class Room(NamedTuple):
    """What one batch has room for."""

    rows: int
    bytes: int
    """Of inputs, every row as long as the longest; 0: no bound."""

    def rows_of(self, row_bytes: int) -> int:
        """Most rows, were all of that size."""
        return min(self.rows, self.bytes // row_bytes) if self.bytes and row_bytes else self.rows
