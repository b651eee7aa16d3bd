"""Which waiting entries make the next batch, and when: a pure queue that is told the time.

Theory. One worker computes one batch at a time. The moment it is free it takes what waits (greedy): serving all that wait
when idle is never worse on average than a timer (Inoue 2019, arXiv 1912.06322), and batches grow by themselves with load.
With a delay configured, a batch that is not full waits until its *oldest* entry is that old, no longer.

- Only entries of equal key (tail shapes and datatypes) share a batch; the oldest entry's key is served first, so no key starves.
- Entries of one key leave in the order they came. One that does not fit closes the batch: it is not overtaken.
- An entry with more rows than a batch holds runs alone.
- Entries past their deadline are handed back, never computed. Cancelled ones are discarded by the caller at once.
- The queue is bounded in rows.

Called by `batcher.py` on the event loop. Does no I/O, reads no clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


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


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One waiting piece of work. Times are seconds of one monotonic clock."""

    payload: T
    rows: int
    key: Hashable
    arrived_s: float
    deadline_s: float


@dataclass(slots=True)
class Take(Generic[T]):
    """What the worker gets: a batch, or how long to wait before asking again (None: until something arrives)."""

    batch: list[Entry[T]] = field(default_factory=list)
    expired: list[Entry[T]] = field(default_factory=list)
    wait_s: float | None = None


class BatchWindow(Generic[T]):
    """The waiting entries, oldest first."""

    def __init__(self, max_batch_rows: int, max_delay_s: float, max_queue_rows: int) -> None:
        self._max_batch_rows = max_batch_rows
        self._max_delay_s = max_delay_s
        self._max_queue_rows = max_queue_rows
        self._entries: dict[int, Entry[T]] = {}
        self.queued_rows = 0

    def __len__(self) -> int:
        return len(self._entries)

    def has_room(self, rows: int) -> bool:
        """True when that many more rows may wait."""
        return self.queued_rows + rows <= self._max_queue_rows

    def add(self, entry: Entry[T]) -> None:
        """Put an entry last; the caller asked `has_room` for all entries of its request before."""
        self._entries[id(entry)] = entry
        self.queued_rows += entry.rows

    def discard(self, entry: Entry[T]) -> bool:
        """Forget an entry whose caller left; False when it is not waiting any more."""
        if self._entries.pop(id(entry), None) is None:
            return False
        self.queued_rows -= entry.rows
        return True

    def take(self, now_s: float, hurry: bool = False) -> Take[T]:
        """The next batch, oldest key first; hurry skips the delay (the server drains)."""
        take: Take[T] = Take()
        rows = 0
        full = False
        for entry in self._entries.values():
            if entry.deadline_s <= now_s:
                take.expired.append(entry)
            elif not take.batch:
                take.batch.append(entry)
                rows = entry.rows
                full = rows >= self._max_batch_rows
            elif full:
                break
            elif entry.key == take.batch[0].key:
                if rows + entry.rows > self._max_batch_rows:
                    full = True
                else:
                    take.batch.append(entry)
                    rows += entry.rows
                    full = rows >= self._max_batch_rows
        for entry in take.expired:
            self.discard(entry)
        if take.batch and not full and not hurry:
            age_s = now_s - take.batch[0].arrived_s
            if age_s < self._max_delay_s:
                return Take(expired=take.expired, wait_s=self._max_delay_s - age_s)
        for entry in take.batch:
            self.discard(entry)
        return take
