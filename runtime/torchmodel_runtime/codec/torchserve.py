"""TorchServe's predictions: forms in, the task's own words out, and its error bodies. Called by `codec`.

The JSON it takes is read by `v1`: TorchServe leaves the document to the handler, and its own examples post `{"instances": ...}`,
a bare list, or a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.codec import arrayfiles, v1
from torchmodel_runtime.codec.bodies import JSON_TYPES
from torchmodel_runtime.codec.decoded import Decoded, check_names, check_rows
from torchmodel_runtime.codec.forms import DATA, Part, read_form
from torchmodel_runtime.codec.negotiation import FORM_TYPES
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.codec.shapes import check_elements
from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.errors import RequestError, invalid, quote
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.tensors import Arrays, bytes_tensor

_encode = msgspec.json.Encoder().encode

_TYPES = {
    400: "BadRequestException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    406: "NotAcceptableException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedMediaTypeException",
    429: "ServiceUnavailableException",
    501: "NotImplementedException",
    503: "ServiceUnavailableException",
    504: "InferenceTimeoutException",
}
"""TorchServe's own exception names where it has one for the status; the others are ours in its style."""


def decode_form(call: Call, plan: Plan, decode: Callable[[Call, Plan], Decoded]) -> Decoded:
    """A form: its field `data` is decoded as a body of its own, by `decode`; or the inputs are fields by their names."""
    parts = read_form(call.headers.get("Content-Type", call.content_type), call.body, plan.limits)
    if DATA in parts and DATA not in plan.inputs:
        others = [name for name in parts if name != DATA]
        if others:
            raise invalid(
                f"form: fields {quote(others)} beside {DATA!r}; give {DATA!r} alone, or the inputs {list(plan.inputs)}"
            )
        return _decode_data(parts[DATA], plan, decode)
    try:
        check_names("form", parts, plan.signature.inputs)
    except RequestError as error:
        raise invalid(f"{error.message}, or give all in a field {DATA!r}") from None
    if len(parts.get(DATA, ())) > 1:
        raise _only_once()
    inputs = [_read_part(parts[name][0], spec, plan) for name, spec in plan.inputs.items()]
    check_elements([array.shape for array in inputs], plan.limits)
    check_rows(inputs, plan.signature)
    return Decoded(inputs)


def _decode_data(parts: list[Part], plan: Plan, decode: Callable[[Call, Plan], Decoded]) -> Decoded:
    """One body, or several media: a row and an answer for each."""
    if len(parts) == 1:
        return decode(_as_call(parts[0], plan), plan)
    elements: Arrays = []
    for part in parts:
        decoded = decode(_as_call(part, plan), plan)
        if not decoded.is_medium:
            raise _only_once()
        elements += decoded.inputs
    return Decoded([np.concatenate(elements)])


def _only_once() -> RequestError:
    return invalid(f"field {DATA!r}: may appear once; several are for media, which are an answer each")


def _as_call(part: Part, plan: Plan) -> Call:
    """The part as the request it would be alone; one without a type of its own is JSON, or the medium."""
    content_type = part.content_type
    if content_type in ("", "text/plain") and not content_type.startswith(plan.media):
        content_type = JSON_TYPES[1]
    if content_type.startswith("multipart/"):
        raise invalid(f"field {part.name!r}: is a form in a form")
    return Call("torchserve", plan.model, part.content, {}, content_type)


def _read_part(part: Part, spec: TensorSpec, plan: Plan) -> np.ndarray:
    """One input: the medium itself, an npy file, or JSON."""
    where = f"field {part.name!r}"
    if spec.datatype == "BYTES":
        if not part.content:
            raise invalid(f"{where}: is empty")
        return bytes_tensor([part.content])
    if part.content_type in FORM_TYPES["npy"]:
        return arrayfiles.read_npy(where, part.content, spec, plan)
    return v1.decode_tensor(where, part.content, spec, plan)


def encode(reply: Any) -> Answer:
    """The task's own words, as a handler would return them."""
    return Answer(200, _encode(reply))


def encode_error(error: RequestError) -> Answer:
    """`{"code", "type", "message"}` (TorchServe, ErrorResponse)."""
    kind = _TYPES.get(error.status, "InternalServerException" if error.status >= 500 else "BadRequestException")
    return Answer(error.status, _encode({"code": error.status, "type": kind, "message": error.message}))
