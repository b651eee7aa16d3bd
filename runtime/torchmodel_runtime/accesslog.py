"""Which requests get a line in the log, and no more lines than a disk can bear.

`telemetry.end` asks for every request; `AccessLog` draws the sample (serving.telemetry.accessLogRatio), takes every answer of
500 and more besides, and leaves out what is over LINES_PER_S, which the next line and a metric say. A line names no client:
what identifies a request is its id and its trace. Told the time; writes by `logging` alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

LINES_PER_S = 100
"""Of one process. A line has some 400 bytes: 3.5 GB a day at worst, of which the kubelet keeps 50 MB (containerLogMaxSize,
containerLogMaxFiles)."""


class AccessLog:
    """The sample and the limit of one process."""

    def __init__(self, ratio: float, on_dropped: Callable[[], None], lines_per_s: int = LINES_PER_S) -> None:
        self._ratio = ratio
        self._credit = 0.0
        self._on_dropped = on_dropped
        self._lines_per_s = lines_per_s
        self._second = -1
        self._lines = 0
        self._dropped = 0

    def wants(self, status: int) -> bool:
        """True for a request that is to be logged: evenly spread over all, so that 0.01 is one in a hundred."""
        self._credit += self._ratio
        if self._credit >= 1.0 - 1e-9:  # ten times 0.1 is less than 1
            self._credit -= 1.0
            return True
        return status >= 500

    def write(self, now_s: float, fields: Mapping[str, object]) -> None:
        """One line, unless this second has had its share."""
        second = int(now_s)
        if second != self._second:
            self._second, self._lines = second, 0
            self.tell_dropped()
        if self._lines >= self._lines_per_s:
            self._dropped += 1
            self._on_dropped()
            return
        self._lines += 1
        logger.info("request", extra={"fields": fields})

    def tell_dropped(self) -> None:
        """Say how many lines were left out since it was last said; nothing when there were none."""
        if self._dropped:
            logger.warning("lines of the access log were left out", extra={"fields": {"lines": self._dropped}})
            self._dropped = 0
