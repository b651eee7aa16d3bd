"""What can go wrong in the operator; only `handlers.py` translates these for kopf.

`SpecError`: the resource can't work as written; trying again is useless until it changes.
`KubeError`: the API server refused or could not be reached; `is_retryable` says which.
"""

from __future__ import annotations

from torchmodel_operator import names


class SpecError(Exception):
    """A field of the TorchModel is wrong. The message names the field path, what was given and what is allowed.

    reason is the word that status shows (`names.REASON_*`).
    """

    def __init__(self, message: str, next_step: str, reason: str = names.REASON_INVALID_SPEC) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.reason = reason


class KubeError(Exception):
    """A call to the API server failed.

    status is the HTTP status, 0 when there was no answer. A retryable error goes back to the queue with back-off; the
    others are shown in the model's status.
    """

    def __init__(self, message: str, status: int = 0, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.retry_after_s = retry_after_s

    @property
    def is_retryable(self) -> bool:
        """True when the same call may succeed later without anybody changing the object."""
        return self.status in (0, 409, 429) or self.status >= 500
