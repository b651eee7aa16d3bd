"""Whether and when to try again: worked out from (policy, failures in a row, the server's wish, a draw), no clock.

The caller counts failures *without progress*: a download that gains ground at every cut goes on, one that starts over
and over does not, however many bytes it moves.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a transfer is; delays are full jitter, as AWS describes in "Exponential Backoff And Jitter"."""

    max_tries: int = 5
    """Tries in a row that gain nothing, the first included, before the fetch ends."""
    first_delay_s: float = 0.5
    """Upper end of the first delay; each further one doubles it. A guess that suits both a blip and a restart."""
    max_delay_s: float = 20.0
    """No delay of our own is longer."""
    max_retry_after_s: float = 60.0
    """A server that asks for more gets this: the start-up deadline of the pod runs meanwhile."""


def is_retryable_status(status: int) -> bool:
    """True for answers that say 'not now' (RFC 9110: 408, 5xx; RFC 6585: 429), false for those that say 'no'."""
    return status in (408, 429) or 500 <= status <= 599


def decide_delay_s(policy: RetryPolicy, fruitless_tries: int, retry_after_s: float | None, draw: float) -> float | None:
    """Seconds to wait before the next try, None to give up; `draw` is uniform in 0..1."""
    if fruitless_tries >= policy.max_tries:
        return None
    if retry_after_s is not None:
        return min(max(retry_after_s, 0.0), policy.max_retry_after_s)
    ceiling = min(policy.max_delay_s, policy.first_delay_s * 2.0 ** min(max(fruitless_tries - 1, 0), 32))
    return ceiling * draw


def parse_retry_after_s(value: str | None) -> float | None:
    """Seconds from a Retry-After header; None when absent or a date, which only a clock could turn into seconds."""
    if value is None or not value.strip().isascii() or not value.strip().isdigit() or len(value.strip()) > 9:
        return None
    return float(value.strip())
