"""How long a request may take: the client's own wish, never more than the server's limit.

`server.infer` asks, once for the headers before it decodes and once for the parameters after. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping

from torchmodel_runtime import errors

TIMEOUT_HEADER = "X-Request-Timeout-Milliseconds"
ENVOY_HEADER = "x-envoy-expected-rq-timeout-ms"
"""Set by Envoy, and so by Istio and many gateways, to the route's timeout (Envoy, router filter, HTTP headers)."""
TIMEOUT_PARAMETER = "timeout"
"""Of a V2 request, microseconds; 0 is none (Triton, schedule policy extension)."""

MAX_MICROSECONDS = 1 << 63
"""An int64 in Triton's extension."""

MAX_DIGITS = 12
"""Thirty years of milliseconds; int() of more is work that a client should not be able to order."""


def choose_timeout_s(headers: Mapping[str, str], parameters: Mapping[str, object], limit_s: float) -> float:
    """The shortest of the wishes and the limit. headers: by name without regard to case.

    Raises RequestError 400 for a wish that cannot be read, naming it.
    """
    timeout_s = limit_s
    for name in (TIMEOUT_HEADER, ENVOY_HEADER):
        text = headers.get(name)
        if text is not None:
            timeout_s = min(timeout_s, _milliseconds(name, text) / 1e3)
    wish = parameters.get(TIMEOUT_PARAMETER)
    if wish is not None:
        timeout_s = min(timeout_s, _microseconds(wish) / 1e6 or limit_s)
    return timeout_s


def _milliseconds(name: str, text: str) -> int:
    digits = text.strip()
    if not (digits.isascii() and digits.isdigit()) or len(digits) > MAX_DIGITS or int(digits) == 0:
        raise errors.invalid(f"header {name}: got {text[:40]!r}, must be whole milliseconds, 1 or more")
    return int(digits)


def _microseconds(wish: object) -> int:
    """Some clients send all parameters as strings."""
    number = int(wish) if isinstance(wish, str) and wish.isascii() and wish.isdigit() and len(wish) <= 18 else wish
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < MAX_MICROSECONDS:
        given = repr(wish)[:40] if isinstance(wish, (str, float, bool)) else f"a value of type {type(wish).__name__}"
        raise errors.invalid(
            f"parameters.{TIMEOUT_PARAMETER}: got {given}, must be whole microseconds from 0 (none) to 2^63 - 1"
        )
    return number
