"""TorchServe's answers and error bodies. Called by `codec`; the JSON it takes is read by `v1`."""

from __future__ import annotations

from typing import Any

import msgspec

from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer

_encode = msgspec.json.Encoder().encode

_TYPES = {
    400: "BadRequestException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedMediaTypeException",
    429: "ServiceUnavailableException",
    503: "ServiceUnavailableException",
    504: "InferenceTimeoutException",
}
"""TorchServe's own exception names where it has one for the status; 413, 415 and 504 are ours in its style."""


def encode(reply: Any) -> Answer:
    """The task's own words, as a handler would return them."""
    return Answer(200, _encode(reply))


def encode_error(error: RequestError) -> Answer:
    """`{"code", "type", "message"}` (TorchServe, ErrorResponse)."""
    kind = _TYPES.get(error.status, "InternalServerException")
    return Answer(error.status, _encode({"code": error.status, "type": kind, "message": error.message}))
