"""A request on its way through batches: its ticket, the pieces that are computed by themselves, and the way back.

`batcher` makes a ticket of each request and pieces of its parts; when all are computed, the ticket calls back. It travels with
its pieces, so there is no table to look anything up in. Knows no worker and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from torchmodel_runtime.batching import Entry
from torchmodel_runtime.batchrules import BatchRules
from torchmodel_runtime.telemetry import Observation
from torchmodel_runtime.tensors import Arrays

_ONE = [1]
"""One part that became one piece."""

OnDone = Callable[[list[Arrays], "Exception | None"], None]
"""Told once, on the event loop: the module's outputs for each part, or why there are none (then the list is empty)."""


class Ticket:
    """One request on its way: who is told when all of its pieces are computed, or one failed."""

    __slots__ = ("counts", "is_open", "missing", "on_done", "pieces", "results", "seen")

    def __init__(self, pieces: list[Piece], counts: list[int], seen: Observation | None) -> None:
        self.pieces = pieces
        self.counts = counts
        """How many pieces each part became."""
        self.missing = len(pieces)
        self.results: list[Any] = [None] * self.missing
        self.seen = seen
        """Where it is written down when its first batch began, and what that was."""
        self.is_open = True
        """Somebody waits for it still."""
        self.on_done: OnDone

    def close(self) -> None:
        """Nobody waits any more. What it refers to refers to it, which would be the garbage collector's work."""
        self.is_open = False
        self.pieces = []
        del self.on_done


class Piece(Entry):
    """Rows of one request that go through the module together."""

    __slots__ = ("index", "inputs", "ticket")

    def __init__(self, inputs: Arrays, rows: int, size_bytes: int, key: Hashable) -> None:
        super().__init__(rows, size_bytes // (rows or 1), key, 0.0, math.inf)
        self.inputs = inputs
        self.index = 0
        self.ticket: Ticket


def cut(parts: Sequence[Arrays], rules: BatchRules, most_rows: Callable[[int], int]) -> tuple[list[int], list[Piece]]:
    """Pieces of at most a batch's bytes and of a proven number of rows; with it, how many of them each part became.

    most_rows: in a batch now, of rows of so many bytes.
    """
    if len(parts) == 1 and len(parts[0]) == 1 and len(parts[0][0]) == 1:  # one row of one tensor: most requests
        array = parts[0][0]
        return _ONE, [Piece(parts[0], 1, array.nbytes, batch_key(parts[0], rules.padded_inputs))]
    pieces: list[Piece] = []
    counts = []
    for part in parts:
        rows = len(part[0])
        size_bytes = part[0].nbytes if len(part) == 1 else sum([array.nbytes for array in part])
        key = batch_key(part, rules.padded_inputs)
        if rows <= 1 or rows == rules.fit(min(rows, most := most_rows(size_bytes // rows))):
            pieces.append(Piece(part, rows, size_bytes, key))
            counts.append(1)
            continue
        before, start = len(pieces), 0
        while start < rows:
            end = start + rules.fit(min(rows - start, most))
            inputs = [array[start:end] for array in part]
            pieces.append(Piece(inputs, len(inputs[0]), sum([array.nbytes for array in inputs]), key))
            start = end
        counts.append(len(pieces) - before)
    return counts, pieces


def batch_key(inputs: Arrays, padded_inputs: tuple[int, ...] = ()) -> Hashable:
    """What must be equal for two requests to share a batch: each input's dtype and tail shape, its length left out where it is
    padded."""
    if len(inputs) == 1 and not padded_inputs:
        return inputs[0].shape[1:], inputs[0].dtype
    return tuple(
        [(array.shape[2 if index in padded_inputs else 1 :], array.dtype) for index, array in enumerate(inputs)]
    )


def answer_piece(piece: Piece, outputs: Arrays) -> None:
    """A piece is done; the request with its last."""
    ticket = piece.ticket
    ticket.results[piece.index] = outputs
    ticket.missing -= 1
    if not ticket.missing and ticket.is_open:
        results, on_done = ticket.results, ticket.on_done
        ticket.close()
        on_done(results if len(results) == len(ticket.counts) else join(results, ticket.counts), None)


def join(results: list[Arrays], counts: list[int]) -> list[Arrays]:
    """One list of outputs for each part again; counts: how many pieces each part became."""
    remaining = iter(results)
    parts = [[next(remaining) for _ in range(count)] for count in counts]
    return [
        part[0] if len(part) == 1 else [np.concatenate(column) for column in zip(*part, strict=True)] for part in parts
    ]


def measure(pieces: list[Piece]) -> tuple[int, int]:
    """Rows, and input bytes with every row as long as the longest."""
    if len(pieces) == 1:
        return pieces[0].rows, pieces[0].rows * pieces[0].row_bytes
    rows = longest = 0
    for piece in pieces:
        rows += piece.rows
        if piece.row_bytes > longest:
            longest = piece.row_bytes
    return rows, rows * longest
