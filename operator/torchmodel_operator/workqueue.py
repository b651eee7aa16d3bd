"""The queue of TorchModels to reconcile: each key at most once at a time, failures with back-off. Called by `handlers`.

Theory (client-go's workqueue). A key is in one of four places:

- *waiting*: due later, by `add_after` or after a failure; the earlier of two times wins
- *dirty*: due; the set and the order of `_due` together
- *processing*: handed to a worker by `take` and not `done` yet
- *processing and dirty*: changed while a worker had it; `done` makes it due again

So a key is never with two workers, a change during work is never lost, and any number of changes cost one more round.
The methods take the time (monotonic seconds) and never sleep; only `next_key` waits.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 300.0
"""Back-off doubles from the first to the largest; both as the reference proposes (client-go: 5 ms to 1000 s)."""


class WorkQueue(Generic[K]):
    """Keys of work with delays and back-off; see the module's theory."""

    def __init__(self, jitter: Callable[[], float] = lambda: 1.0) -> None:
        """`jitter` gives the factor for each back-off, so that keys that failed together do not come back together."""
        self._jitter = jitter
        self._due: deque[K] = deque()
        self._dirty: set[K] = set()
        self._processing: set[K] = set()
        self._heap: list[tuple[float, int, K]] = []
        self._waiting: dict[K, float] = {}
        self._failures: dict[K, int] = {}
        self._pushed = 0
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._due)

    @property
    def is_processing(self) -> bool:
        """True while a worker has a key."""
        return bool(self._processing)

    def add(self, key: K) -> None:
        """The key is due now."""
        self._waiting.pop(key, None)
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._processing:
            self._due.append(key)
            self._changed.set()

    def add_after(self, key: K, delay_s: float, now: float) -> None:
        """The key is due in `delay_s`, or earlier if it already was."""
        due = now + delay_s
        if key in self._waiting and self._waiting[key] <= due:
            return
        self._waiting[key] = due
        self._pushed += 1
        heapq.heappush(self._heap, (due, self._pushed, key))
        self._changed.set()

    def take(self, now: float) -> K | None:
        """The next key that is due, now processing; None when there is none."""
        while self._heap and (self._heap[0][0] <= now or self._is_stale(self._heap[0])):
            entry = heapq.heappop(self._heap)
            if not self._is_stale(entry):
                self.add(entry[2])
        if not self._due:
            return None
        key = self._due.popleft()
        self._dirty.discard(key)
        self._processing.add(key)
        return key

    def done(self, key: K) -> None:
        """The worker is finished with the key."""
        self._processing.discard(key)
        if key in self._dirty:
            self._due.append(key)
            self._changed.set()

    def succeed(self, key: K) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)

    def fail(self, key: K, now: float, at_least_s: float = 0.0) -> float:
        """The key is due again after its back-off; returns the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay_s = max(at_least_s, min(MAX_BACKOFF_S, FIRST_BACKOFF_S * float(1 << min(failures, 20))) * self._jitter())
        self.add_after(key, delay_s, now)
        return delay_s

    def forget(self, key: K) -> None:
        """The object is gone: no failures and no waiting are remembered."""
        self._failures.pop(key, None)
        self._waiting.pop(key, None)

    def seconds_to_next(self, now: float) -> float | None:
        """How long until the earliest waiting key is due; None when none waits."""
        while self._heap and self._is_stale(self._heap[0]):
            heapq.heappop(self._heap)
        return max(0.0, self._heap[0][0] - now) if self._heap else None

    async def next_key(self, clock: Callable[[], float]) -> K:
        """Wait for the next key that is due."""
        while (key := self.take(clock())) is None:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self.seconds_to_next(clock()))
            except (TimeoutError, asyncio.TimeoutError):  # two types until Python 3.11
                continue
        if self._due:
            self._changed.set()  # another worker may be asleep
        return key

    def _is_stale(self, entry: tuple[float, int, K]) -> bool:
        return self._waiting.get(entry[2]) != entry[0]
