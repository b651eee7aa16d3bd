"""Seconds since 1970 as the API server writes them, and back. Pure; called by whoever writes or reads a time in an object.

Source of both forms: Kubernetes API conventions, and `Time` and `MicroTime` of apimachinery's meta/v1 (RFC 3339).
"""

from __future__ import annotations

from datetime import datetime, timezone


def format_time(seconds: float) -> str:
    """A Time: whole seconds, as in a condition."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(seconds: float) -> str:
    """A MicroTime: microseconds, as in an Event and a Lease."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> float:
    """Seconds of either form; 0 when there is none."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() if text else 0.0
