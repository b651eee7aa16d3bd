"""The two ways a fetch can go wrong: an end with a reason for the reader, and trouble that another try may cure.

Every module of the fetcher raises these; only `transfer` catches `Interruption`, only `__main__` (or the caller of
`fetch`) catches `FetchError`. Their texts are shown to users and kept in status, so they must never hold a credential:
URIs go through `locations.redact_uri`, and texts of foreign exceptions are not passed on whole.
"""

from __future__ import annotations

from torchmodel_runtime.config import Failure


class FetchError(Exception):
    """The fetch ended without a checkpoint; `retryable` says whether the same input may work later."""

    def __init__(self, reason: str, message: str, next_step: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.next_step = next_step
        self.retryable = retryable

    def to_failure(self) -> Failure:
        """The same as the document that goes to the termination log."""
        return Failure(reason=self.reason, message=self.message, next_step=self.next_step)


class Interruption(Exception):
    """One try failed in a way that another try may cure: a cut, a timeout, a busy server."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s
