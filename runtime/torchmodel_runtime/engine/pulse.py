"""Whether the module is still alive after it failed on a request: the row that it answered at warm-up is computed once more.

Some failures are for good. After a device-side assert or an illegal address every further call into CUDA fails, and only a new
process helps (CUDA C++ Programming Guide, "Error Checking"); a module may also spoil its own state. Then a live and ready
process would answer every request by an error. `forward.Engine` asks after each failure; `batcher` reads the outcome.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from torchmodel_runtime.engine.devices import is_out_of_memory
from torchmodel_runtime.tensors import Arrays

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
"""Between two checks, so that failing requests cost little more than they do anyway; a choice."""
SHARE = 20
"""A check that takes long is followed by a pause of so many times that."""


class Pulse:
    """Of one engine; used in its thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.row: Arrays = []
        """A row that the module has answered; none: nothing is known, nothing is checked."""
        self.is_gone = False
        self._clock = clock
        self._next_s = 0.0

    def feel(self, error: BaseException, compute: Callable[[Arrays], object]) -> None:
        """The module raised this error on a request; compute calls it. Memory that ran out says nothing about the module."""
        if self.is_gone or not self.row or is_out_of_memory(error) or self._clock() < self._next_s:
            return
        began_s = self._clock()
        try:
            compute(self.row)
        except Exception as again:
            if not is_out_of_memory(again):
                self.is_gone = True
                logger.error("the module fails on the row that it answered at warm-up", exc_info=again)
        ended_s = self._clock()
        self._next_s = ended_s + max(INTERVAL_S, SHARE * (ended_s - began_s))
