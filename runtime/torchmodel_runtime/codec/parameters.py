"""V2's request parameters: which are read, which would change the meaning of the answer and are refused, which pass.

The protocol leaves their names to the server. Triton's clients send some of its extensions' without being asked, so what
cannot change an answer passes; what would silently be ignored to the caller's harm is refused. Called by `v2` and by the
gRPC port.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchmodel_runtime.errors import invalid, quote

SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")
"""Triton's sequence extension: state between requests. 0 and false mean no sequence."""

SHARED_MEMORY = ("shared_memory_region", "shared_memory_offset", "shared_memory_byte_size")


def check_request(parameters: Mapping[str, Any]) -> None:
    """RequestError 400 for a request parameter that this server cannot honour."""
    for name in SEQUENCES:
        if parameters.get(name):
            raise invalid(f"parameters: {name} asks for state between requests, which this server does not keep")
    _check_flag("parameters", "binary_data_output", parameters)


def check_tensor(where: str, parameters: Mapping[str, Any]) -> None:
    """RequestError 400 for an input's parameter that this server cannot honour."""
    for name in SHARED_MEMORY:
        if name in parameters:
            raise invalid(f"{where}: {name} is for shared memory, which this server does not read; send the data")


def check_output(where: str, parameters: Mapping[str, Any]) -> None:
    """RequestError 400 for a requested output's parameter that this server cannot honour."""
    check_tensor(where, parameters)
    if parameters.get("classification"):
        raise invalid(f"{where}: classification is not offered (GET /v2 names the extensions)")
    _check_flag(where, "binary_data", parameters)


def _check_flag(where: str, name: str, parameters: Mapping[str, Any]) -> None:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise invalid(f"{where}: {name} {quote(value)}, must be true or false")
