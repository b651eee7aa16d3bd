"""Whether a request may wait, and when to come back if it may not: pure, told what waits and what runs.

Theory. A request that waits only to be refused at its deadline costs its client the wait and others the room. So it is refused
at once where the queue is full, by rows or by bytes, or where the work before it is predicted (`costmodel`) to take longer than
it has. `Retry-After` is then the time after which it would have been admitted, if nobody else came. Without data nobody is
refused by prediction. `batcher.submit` asks.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torchmodel_runtime import errors
from torchmodel_runtime.config import Queue
from torchmodel_runtime.costmodel import CostModel

MARGIN = 0.1
"""Of a predicted wait, by which it may be wrong: about twice what tests/unit/test_runtime_admission.py's simulation shows."""


class Load(NamedTuple):
    """What is before a request."""

    rows: int
    """That wait."""
    bytes: int
    running_s: float
    """Predicted to be left of the batches that run, added up over the workers."""


class Admission:
    """The queue's bounds, and the prediction."""

    def __init__(self, queue: Queue, cost: CostModel, workers: int) -> None:
        self._max_rows = queue.max_rows
        self._max_bytes = queue.max_bytes
        self._cost = cost
        self._workers = workers

    def check(self, rows: int, size_bytes: int, load: Load, timeout_s: float) -> None:
        """Let the request in, or raise RequestError: 413 when it never fits, 429 when it does not now.

        timeout_s: what is left until its deadline.
        """
        rows_then, bytes_then = load.rows + rows, load.bytes + size_bytes
        if rows_then > self._max_rows or bytes_then > self._max_bytes:
            self._refuse_for_room(rows, size_bytes, load)
        # asked first is what one worker would take for all of it: it is never less than what they take together
        if load.running_s + self._cost.backlog_s(rows_then, bytes_then) > timeout_s:
            self._check_time(rows, size_bytes, load, timeout_s)

    def wait_s(self, load: Load) -> float:
        """Predicted until a worker would be free for a request that comes now; 0 while unknown."""
        return (load.running_s + self._cost.backlog_s(load.rows, load.bytes)) / self._workers

    def retry_after_s(self, load: Load) -> int:
        """`wait_s` as the header says it."""
        return self._retry_s(self.wait_s(load), 0.0)

    @staticmethod
    def _retry_s(seconds: float, predicted_s: float) -> int:
        """Whole seconds, as Retry-After counts (RFC 9110, 10.2.3), with a margin for the prediction they come from."""
        return max(1, math.ceil(seconds + MARGIN * predicted_s))

    def _check_time(self, rows: int, size_bytes: int, load: Load, timeout_s: float) -> None:
        wait_s = self.wait_s(load)
        finish_s = wait_s + self._cost.backlog_s(rows, size_bytes)
        # alone it is always worth a try: the prediction may be wrong, and nobody waits before it
        if self._cost.known and finish_s > timeout_s and wait_s > 0:
            raise errors.too_late(finish_s, timeout_s, self._retry_s(min(finish_s - timeout_s, wait_s), wait_s))

    def _refuse_for_room(self, rows: int, size_bytes: int, load: Load) -> None:
        if rows > self._max_rows:
            raise errors.too_many_rows(rows, self._max_rows)
        if size_bytes > self._max_bytes:
            raise errors.too_many_bytes(size_bytes, self._max_bytes)
        over_rows = max(0, load.rows + rows - self._max_rows)
        over_bytes = max(0, load.bytes + size_bytes - self._max_bytes)
        # what has to leave the queue before this fits is a share of it, and leaves when the batches before it have run
        share = max(over_rows / max(load.rows, 1), over_bytes / max(load.bytes, 1))
        leaving = Load(math.ceil(load.rows * share), math.ceil(load.bytes * share), load.running_s)
        retry_after_s = self._retry_s(self.wait_s(leaving), self.wait_s(leaving))
        if over_rows:
            raise errors.queue_full(load.rows, self._max_rows, retry_after_s)
        raise errors.queue_full(load.bytes, self._max_bytes, retry_after_s, unit="bytes")
