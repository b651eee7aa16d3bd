"""How many bytes requests may hold in a process between their first byte and their answer: bodies that are still being read,
what waits to be decoded, decoded media, tensors.

A count of requests bounds nothing: one may be a byte that a slow client has sent, another a small file that holds an hour of
silence. So each request has a `Hold`, and asks before it grows. One that could never fit is told so (413), one that does not
fit now should come back (429). `server` opens and releases holds, ports and tasks take bytes of them. Small calls, which
`passage` decodes at once and whose bodies are gone before they wait, are bounded by the queue alone.
"""

from __future__ import annotations

import threading

from torchmodel_runtime import errors

SHARE = 4
"""By default requests may hold one part in so many of the memory that is free once the model is loaded: batches have half of
it (`engine.memory.SHARE`), answers and the allocator's rest the last quarter. A guess."""


class Released(Exception):
    """Bytes were asked for by what nobody waits for any more; ends the work in its thread."""


class ByteBudget:
    """What all requests of the process hold. Threads that decode media ask too, hence the lock."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self.lock = threading.Lock()


class Hold:
    """What one request holds: asked by one thread at a time, but released by the event loop whenever the request ends."""

    __slots__ = ("_budget", "_held_bytes", "_is_released", "_kept_bytes", "_max_kept_bytes")

    def __init__(self, budget: ByteBudget, max_kept_bytes: int) -> None:
        """max_kept_bytes: most bytes of what goes to the module (serving.queue.maxBytes)."""
        self._budget = budget
        self._held_bytes = 0
        self._kept_bytes = 0
        self._max_kept_bytes = max_kept_bytes
        self._is_released = False

    def borrow(self, size_bytes: int) -> None:
        """So many bytes more, for a while. RequestError 413 or 429; `Released` when the request has ended meanwhile."""
        budget = self._budget
        with budget.lock:
            if self._is_released:
                raise Released
            if size_bytes > 0:
                if self._held_bytes + size_bytes > budget.max_bytes:
                    raise errors.too_large_to_hold(self._held_bytes + size_bytes, budget.max_bytes)
                if budget.held_bytes + size_bytes > budget.max_bytes:
                    raise errors.no_room(budget.held_bytes, budget.max_bytes)
            budget.held_bytes += size_bytes
            self._held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """What was borrowed is free again."""
        self.borrow(-size_bytes)

    def keep(self, size_bytes: int) -> None:
        """So many bytes more that the module gets: as `borrow`, and RequestError 413 when they would never fit its queue."""
        self._kept_bytes += size_bytes
        if self._kept_bytes > self._max_kept_bytes:
            raise errors.too_many_bytes(self._kept_bytes, self._max_kept_bytes)
        self.borrow(size_bytes)

    def settle(self, size_bytes: int) -> None:
        """So many bytes are left, or have become, of all that was held. Raises as `borrow` does."""
        self.borrow(size_bytes - self._held_bytes)

    def release(self) -> None:
        """The request has ended."""
        with self._budget.lock:
            self._budget.held_bytes -= self._held_bytes
            self._held_bytes = 0
            self._is_released = True


def choose_max_bytes(configured: int, free_bytes: int, processes: int, least_bytes: int) -> int:
    """serving.limits.maxBytesInFlight, or for 0 a share of the free memory; the largest body that is allowed fits always."""
    return configured or max(least_bytes, free_bytes // (SHARE * processes))
