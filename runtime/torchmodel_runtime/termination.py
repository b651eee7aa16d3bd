"""A process's last word where the kubelet picks it up: the outcome of a fetch, or why a start failed.

Both `__main__` modules, the server's and the fetcher's, look for the file once and write it as they end; the operator shows
what it says, and so does `torchmodel run`. Knows neither torch nor HTTP.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from torchmodel_runtime.config import TERMINATION_LOG_VARIABLE, Failure, Receipt

logger = logging.getLogger(__name__)

DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
TERMINATION_LOG_BYTES = 4000
"""The kubelet keeps 4096 bytes of a container's termination message."""


def find_termination_log(environment: Mapping[str, str]) -> Path | None:
    """The file that the environment names, else the kubelet's own; None where there is none, outside a pod."""
    named = environment.get(TERMINATION_LOG_VARIABLE)
    if named:
        return Path(named)
    return DEFAULT_TERMINATION_LOG if DEFAULT_TERMINATION_LOG.is_file() else None


def write_termination_log(document: Receipt | Failure, path: Path | None) -> None:
    """Leave the document as JSON. Never raises: the process ends either way, and its log says the same."""
    if path is None:
        return
    content = encode_failure(document) if isinstance(document, Failure) else msgspec.json.encode(document)
    if len(content) > TERMINATION_LOG_BYTES:
        logger.warning("the termination log may be cut", extra={"fields": {"bytes": len(content)}})
    try:
        path.write_bytes(content)
    except OSError as error:
        logger.warning(
            "the termination log cannot be written", extra={"fields": {"path": str(path), "cause": error.strerror}}
        )


def encode_failure(failure: Failure) -> bytes:
    """The failure as JSON of at most TERMINATION_LOG_BYTES; of what is too long, the longer text loses its middle."""
    encoded = msgspec.json.encode(failure)
    while len(encoded) > TERMINATION_LOG_BYTES:
        name = "message" if len(failure.message) >= len(failure.next_step) else "next_step"
        text: str = getattr(failure, name)
        keep = (len(text) * 9 // 10) // 2
        failure = msgspec.structs.replace(failure, **{name: f"{text[:keep]} … {text[-keep:]}"})
        encoded = msgspec.json.encode(failure)
    return encoded
