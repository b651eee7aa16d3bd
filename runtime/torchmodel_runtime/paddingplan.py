"""Which of the waiting rows of different length should share a call with the oldest: the cheapest plan for all that wait.

Theory. A row costs what the longest of its batch costs, a batch costs a call besides. All that waits, in order of length, is cut
into batches of the least predicted time in sum (`costmodel`; dynamic programming), and of these the oldest's is run. So short
rows neither pay for long ones nor for a call of their own, and the more wait, the closer the lengths in a batch.
docs/explanation/batching.md has the figures, and those of the rivals that lost. Only proven numbers of rows are batches, but a
single entry always is one. `batching` asks. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Protocol, TypeVar

from torchmodel_runtime.batchrules import Room
from torchmodel_runtime.costmodel import CostModel

PLANNED_ENTRIES = 128
"""Waiting entries, nearest in length to the oldest, that are planned for: half a millisecond for all, a tenth for fifty."""


class Sized(Protocol):
    """What the plan knows of an entry."""

    rows: int
    row_bytes: int


S = TypeVar("S", bound=Sized)


def choose_similar(line: Sequence[S], room: Room, cost: CostModel) -> list[S]:
    """The batch of the oldest, which is first in the line, in the cheapest plan for all that wait."""
    entries = sorted(line, key=_row_bytes)  # stable: of equal length the older first
    oldest = entries.index(line[0])
    if len(entries) > PLANNED_ENTRIES:
        first = min(max(0, oldest - PLANNED_ENTRIES // 2), len(entries) - PLANNED_ENTRIES)
        entries, oldest = entries[first : first + PLANNED_ENTRIES], oldest - first
    begins = _plan(entries, room, cost)
    end = len(entries)
    while begins[end] > oldest:
        end = begins[end]
    begin = begins[end]
    rows = sum(map(_rows, entries[begin:end]))
    longest = entries[end - 1].row_bytes
    for more in range(end, len(entries)):
        rows += entries[more].rows
        if entries[more].row_bytes > longest or rows > room.rows_of(longest):
            break
        if room.takes(rows):
            end = more + 1  # company of the same length costs no padding, whatever it was planned for
    return entries[begin:end]


def _plan(entries: Sequence[S], room: Room, cost: CostModel) -> list[int]:
    """Cut entries, sorted by length, into batches of the least time in sum: where the batch begins that ends at each."""
    call_s, worth = _prices(entries, cost)
    proven = room.proven
    sums, begins = [0.0], [0]
    for end in range(1, len(entries) + 1):
        longest_s = worth[end - 1]
        allowed = room.rows_of(entries[end - 1].row_bytes)
        rows = entries[end - 1].rows
        best_s, begin = sums[end - 1] + longest_s * rows, end - 1
        for start in range(end - 2, -1, -1):
            more = entries[start].rows
            rows += more
            if rows > allowed or (longest_s - worth[start]) * more > call_s:
                break  # no room, or its padding alone would cost more than a call of its own
            total_s = sums[start] + longest_s * rows
            if total_s < best_s and (not proven or rows in proven):
                best_s, begin = total_s, start
        sums.append(best_s + call_s)
        begins.append(begin)
    return begins


def _prices(entries: Sequence[S], cost: CostModel) -> tuple[float, list[float]]:
    """What a call costs, and for each entry a row of its length; without data a call is worth half a row, a guess."""
    if cost.known and cost.byte_s:
        return cost.batch_s, [cost.row_s + cost.byte_s * entry.row_bytes for entry in entries]
    if cost.known:
        return 1.0, [0.0] * len(entries)  # length costs nothing, as far as anybody saw
    return sum(map(_row_bytes, entries)) / len(entries) / 2, [float(entry.row_bytes) for entry in entries]


_rows = attrgetter("rows")
_row_bytes = attrgetter("row_bytes")
