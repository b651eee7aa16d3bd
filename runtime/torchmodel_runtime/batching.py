"""Which waiting entries make the next batch, and when: a pure queue that is told the time.

Theory. A worker computes one batch at a time. The moment one is free it takes what waits (greedy): serving all that wait when
idle is never worse on average than a timer (Inoue 2019, arXiv 1912.06322), and batches grow by themselves with load. Workers
that are free together share what waits, or one would compute and the others look on.

- **The oldest goes first.** Every batch holds the entry that has waited longest, so whoever has n entries before it is in one of
  the next n + 1 batches. Within that bound others may overtake it. A request in pieces has a batch's worth of them in the line
  at a time, the next one steps to its end: whoever comes later waits for one batch of a huge request, not for all of it.
- **Who may join.** Entries of an equal key (tail shapes and datatypes). Without padding they leave in the order they came, and
  one that does not fit closes the batch.
- **Who should join, with padding.** Those whose lengths are near: `paddingplan` says which.
- **How large.** A number of rows that was proven, what is over waits; at most the padded bytes that `BatchRules` allow, and no
  more than can be ready by the earliest deadline in the batch, as far as the cost model knows. An entry that is larger by itself
  runs alone.
- **With a delay** a batch that is not full waits until its oldest entry is that old, but only where company is likely: another
  waits already, or the last batch had company. An idle server never waits. Meanwhile full batches of other keys run: these
  alone go before the oldest, and for no longer than the delay.
- Entries past their deadline are handed back, never computed. Cancelled ones are discarded at once.

Called by `batcher.py` on the event loop. Does no I/O, reads no clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Generic, TypeVar

from torchmodel_runtime.batchrules import BatchRules, Room
from torchmodel_runtime.costmodel import CostModel
from torchmodel_runtime.paddingplan import choose_similar


class Entry:
    """One waiting piece of work; what it stands for is the business of the class derived from it.

    Times are seconds of one monotonic clock.
    """

    __slots__ = ("arrived_s", "deadline_s", "key", "later", "row_bytes", "rows", "turn", "waiting")

    def __init__(self, rows: int, row_bytes: int, key: Hashable, arrived_s: float, deadline_s: float) -> None:
        self.rows = rows
        self.row_bytes = row_bytes
        """Input bytes of one row at its own length; the longer of two entries of a key has more."""
        self.key = key
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.waiting = False
        self.turn = 0
        """Place in the order in which all entries stepped in line."""
        self.later: deque[Any] | None = None
        """The pieces of the same request that are not in the line yet, shared by all of them."""


E = TypeVar("E", bound=Entry)


@dataclass(slots=True)
class Take(Generic[E]):
    """What the worker gets: a batch, or how long to wait before asking again (None: until something arrives)."""

    batch: list[E] = field(default_factory=list)
    expired: list[E] = field(default_factory=list)
    wait_s: float | None = None
    loaded: bool = False
    """More of the key waited than the batch took."""


class BatchWindow(Generic[E]):
    """The waiting entries, by key, oldest first."""

    def __init__(self, rules: BatchRules, max_delay_s: float, cost: CostModel) -> None:
        self._rules = rules
        self._max_delay_s = max_delay_s
        self._cost = cost
        self._proven = frozenset(rules.sizes)
        self._lines: dict[Hashable, list[E]] = {}
        self._turns = 0
        self._waiting = 0
        self._last_size = 1
        self.earliest_deadline_s = math.inf
        """No entry has an earlier deadline; some may have left since."""
        self.queued_rows = 0
        self.queued_bytes = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, entry: E) -> None:
        """Put an entry last."""
        self._admit(entry)
        self._line_up(entry)

    def add_pieces(self, entries: Sequence[E]) -> None:
        """Put the pieces of one request last: a batch's worth now, each further one when one of them leaves."""
        later: deque[E] = deque()
        lined_rows = 0
        for entry in entries:
            self._admit(entry)
            entry.later = later
            if not later and lined_rows + entry.rows <= max(self._rules.max_rows, entry.rows):
                lined_rows += entry.rows
                self._line_up(entry)
            else:
                later.append(entry)

    def discard(self, entries: Sequence[E]) -> None:
        """Forget the pieces of a request whose caller left, as far as they wait still."""
        self._drop_later(entries[0])
        for entry in entries:
            if entry.waiting:
                self._leave_line(entry)

    def expire(self, now_s: float) -> list[E]:
        """Take out the entries past their deadline."""
        if now_s < self.earliest_deadline_s:
            return []
        expired = [entry for line in self._lines.values() for entry in line if entry.deadline_s <= now_s]
        for entry in list(expired):
            expired += self._drop_later(entry)
            self._leave_line(entry)
        self.earliest_deadline_s = min(
            (entry.deadline_s for line in self._lines.values() for entry in line), default=math.inf
        )
        return expired

    def take(
        self,
        now_s: float,
        max_rows: int,
        workers: int = 1,
        hurry: bool = False,
        only_full: bool = False,
        max_bytes: int = 0,
    ) -> Take[E]:
        """The next batch, the oldest entry in it, unless that may wait for company and others need not.

        max_rows, max_bytes: what the worker takes now; 0 bytes: as the rules say. workers: how many are free, this one
        included. hurry: skip the delay (the server drains). only_full: nothing rather than a batch that more could join.
        """
        take: Take[E] = Take(expired=self.expire(now_s))
        if not self._lines:
            return take
        line = self._oldest_line()
        most_bytes = max_bytes or self._rules.max_batch_bytes
        limit = self._limit(line, max_rows, most_bytes)
        waiting_rows = _count_rows(line)
        if waiting_rows < limit:
            if only_full:
                return take
            wait_s = 0.0 if hurry or not self._max_delay_s else self._wait_s(line, waiting_rows, now_s)
            if wait_s > 0:
                full = self._oldest_full_line(max_rows, most_bytes)
                if full is None:
                    take.wait_s = wait_s
                    return take
                line, limit, waiting_rows = full, self._limit(full, max_rows, most_bytes), _count_rows(full)
        if workers > 1 and not only_full:
            limit = min(limit, self._rules.fit(-(-waiting_rows // workers)))
        batch = line[:]
        if len(line) > 1:
            batch = self._choose(line, Room(limit, most_bytes, self._proven))
        if self.earliest_deadline_s < math.inf and len(batch) > 1:
            self._shorten(batch, line[0], now_s)
        self._remove(line, batch)
        take.batch = batch
        self._last_size = len(batch)
        take.loaded = waiting_rows > _count_rows(batch)
        return take

    # --- who shares ---

    def _oldest_line(self) -> list[E]:
        lines = self._lines.values()
        return next(iter(lines)) if len(lines) == 1 else min(lines, key=_first_turn)

    def _limit(self, line: list[E], max_rows: int, max_bytes: int) -> int:
        """Most rows in a batch with the oldest of the line, as long as that one or longer."""
        row_bytes = line[0].row_bytes
        if max_bytes and row_bytes:
            max_rows = min(max_rows, max_bytes // row_bytes)
        return self._rules.fit(max_rows)

    def _wait_s(self, line: list[E], waiting_rows: int, now_s: float) -> float:
        """How long the oldest of the line may still wait for company; none where none is likely."""
        if waiting_rows == line[0].rows and self._last_size <= 1:
            return 0.0
        return self._max_delay_s - (now_s - line[0].arrived_s)

    def _oldest_full_line(self, max_rows: int, max_bytes: int) -> list[E] | None:
        """Which nobody could join any more."""
        full = [line for line in self._lines.values() if _count_rows(line) >= self._limit(line, max_rows, max_bytes)]
        return min(full, key=_first_turn, default=None)

    def _choose(self, line: list[E], room: Room) -> list[E]:
        """The oldest of the line and its companions: a leading part of it, or with padding those of similar length."""
        if self._rules.padded_inputs:
            return choose_similar(line, room, self._cost)
        max_rows = room.rows_of(line[0].row_bytes)
        rows, end = 0, 1
        for count, entry in enumerate(line, start=1):
            rows += entry.rows
            if rows > max_rows:
                break
            if room.takes(rows):
                end = count
        return line[:end]

    def _shorten(self, batch: list[E], oldest: E, now_s: float) -> None:
        """Leave companions out until the batch is ready by the earliest deadline that it can meet at all."""
        if not self._cost.known or now_s + self._batch_seconds(batch) <= self.earliest_deadline_s:
            return
        while len(batch) > 1:
            reachable = [
                entry.deadline_s for entry in batch if now_s + self._batch_seconds([entry]) <= entry.deadline_s
            ]
            in_time = now_s + self._batch_seconds(batch) <= min(reachable, default=math.inf)
            if in_time and (not self._proven or sum(map(_rows, batch)) in self._proven):
                return
            batch.pop(-1 if batch[-1] is not oldest else 0)  # with padding the longest, which the others pay for

    def _batch_seconds(self, batch: list[E]) -> float:
        rows = sum(map(_rows, batch))
        return self._cost.seconds(rows, rows * max(map(_row_bytes, batch)))

    # --- book-keeping ---

    def _leave_line(self, entry: E) -> None:
        line = self._lines[entry.key]
        line.remove(entry)
        if not line:
            del self._lines[entry.key]
        self._left(entry)

    def _drop_later(self, entry: E) -> list[E]:
        """Forget the pieces of its request that are not in the line yet."""
        if not entry.later:
            return []
        dropped = list(entry.later)
        entry.later.clear()
        for piece in dropped:
            self._forget(piece)
        return dropped

    def _admit(self, entry: E) -> None:
        entry.waiting = True
        self._waiting += 1
        self.queued_rows += entry.rows
        self.queued_bytes += entry.rows * entry.row_bytes

    def _line_up(self, entry: E) -> None:
        self._turns = entry.turn = self._turns + 1
        line = self._lines.get(entry.key)
        if line is None:
            self._lines[entry.key] = [entry]
        else:
            line.append(entry)
        if entry.deadline_s < self.earliest_deadline_s:
            self.earliest_deadline_s = entry.deadline_s

    def _remove(self, line: list[E], batch: list[E]) -> None:
        """Take a batch out of its line."""
        if len(batch) == len(line):
            del self._lines[batch[0].key]
        elif batch[-1] is line[len(batch) - 1] and not self._rules.padded_inputs:
            del line[: len(batch)]
        else:
            chosen = set(map(id, batch))
            line[:] = [entry for entry in line if id(entry) not in chosen]
        for entry in batch:
            self._left(entry)

    def _left(self, entry: E) -> None:
        """An entry of the line is gone: the next piece of its request takes its turn."""
        self._forget(entry)
        if entry.later:
            self._line_up(entry.later.popleft())

    def _forget(self, entry: E) -> None:
        entry.waiting = False
        self._waiting -= 1
        self.queued_rows -= entry.rows
        self.queued_bytes -= entry.rows * entry.row_bytes
        if not self._waiting:
            self.earliest_deadline_s = math.inf


_rows = attrgetter("rows")
_row_bytes = attrgetter("row_bytes")


def _count_rows(entries: list[E]) -> int:
    return sum(map(_rows, entries)) if len(entries) > 1 else entries[0].rows


def _first_turn(line: list[E]) -> int:
    return line[0].turn
