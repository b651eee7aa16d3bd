"""What follows when a batch fails: which of its requests are to blame, and how often the log says so.

`forward.Engine` calls it. Knows nothing of torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

from torchmodel_runtime.tensors import Arrays

logger = logging.getLogger(__name__)

MAX_POISONED = 2
"""Failing requests that halving looks for; with more in a batch, single calls are cheaper soon."""

LOG_INTERVAL_S = 10.0
"""One traceback in this time: enough to see what is wrong, and ten thousand bad requests fill no disk."""


def halving_budget(requests: int) -> int:
    """Calls of the module spent on halving, before what is open is computed one by one."""
    return 2 * MAX_POISONED * math.ceil(math.log2(max(2, requests)))


def isolate(
    requests: Sequence[Arrays],
    compute: Callable[[Sequence[Arrays]], list[Arrays] | None],
    compute_one: Callable[[Arrays], Arrays | Exception],
) -> list[Arrays | Exception]:
    """The answers to requests that failed together: halves are computed until the failing ones stand alone.

    compute answers several together, None when they failed again; compute_one answers one, or gives its error. Of two halves
    the second is not tried whole when the first went well: what fails must be in it.

    Calls: at most 2·log2(n), rounded up, for one failing request among n; never more than `halving_budget(n)` and n.
    """
    answers: dict[int, Arrays | Exception] = {}

    def is_answered(start: int, end: int) -> bool:
        """True when these went well, in one call; a single one is settled either way."""
        if end - start == 1:
            answers[start] = compute_one(requests[start])
            return not isinstance(answers[start], Exception)
        outcomes = compute(requests[start:end])
        if outcomes is None:
            failed.append((start, end))
            return False
        answers.update(zip(range(start, end), outcomes, strict=True))
        return True

    budget = halving_budget(len(requests))
    failed = [(0, len(requests))]
    while failed:
        start, end = failed.pop()
        if end - start == 1 or budget < 2:
            for index in range(start, end):
                is_answered(index, index + 1)
            continue
        middle = (start + end) // 2
        budget -= 1
        if is_answered(start, middle):
            failed.append((middle, end))
        else:
            budget -= 1
            is_answered(middle, end)
    return [answers[index] for index in range(len(requests))]


class FailureLog:
    """Logs what models raise, one traceback in LOG_INTERVAL_S; the next one says how many were left out."""

    def __init__(self) -> None:
        self._next_s = -math.inf
        self._left_out = 0

    def record(self, error: BaseException, now_s: float) -> None:
        """The model failed on a request; now_s is monotonic."""
        if now_s < self._next_s:
            self._left_out += 1
            return
        fields = {"not_logged_before": self._left_out}
        logger.error("the model failed on a request", exc_info=error, extra={"fields": fields})
        self._next_s, self._left_out = now_s + LOG_INTERVAL_S, 0
