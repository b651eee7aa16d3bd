"""Bytes to tensors and back, for each dialect: Open Inference V2, KServe V1, TorchServe predictions.

`server.infer` calls `decode_request` before the queue, so that whatever is wrong with a body fails that client alone, and
`encode_response` after it. What a dialect's JSON looks like is known here and nowhere else; `jsontensors` makes arrays of the
data in it.

JSON has no form for NaN and infinities (RFC 8259, 6). In requests they are refused. In answers they become null, as msgspec
and JavaScript's JSON.stringify write them: one masked logit must not cost the caller the rest of the answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np

from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import RequestError, invalid
from torchmodel_runtime.jsontensors import check_shape, decode_data, decode_json
from torchmodel_runtime.tensors import Arrays, bytes_tensor

Dialect = Literal["v2", "v1", "torchserve"]

_ABSENT = msgspec.Raw()
"""A field that was not given: msgspec allows no union of Raw and None."""


@dataclass(slots=True)
class Decoded:
    """A request of any dialect: the inputs in the signature's order, and what the answer must repeat."""

    inputs: Arrays
    id: str | None = None
    outputs: list[str] | None = None
    """Names of the outputs asked for; None: all."""


def decode_request(dialect: Dialect, body: bytes, signature: Signature) -> Decoded:
    """Parse and check a JSON body; RequestError 400 says what does not fit the signature."""
    if dialect == "v2":
        return _decode_v2(body, signature)
    return _decode_v1(body, signature, bare=dialect == "torchserve")


def decode_medium(body: bytes) -> Decoded:
    """The body itself is the one element of the one input: an image, a recording, a text."""
    if not body:
        raise invalid("the body is empty")
    return Decoded(inputs=[bytes_tensor([body])])


# --- Open Inference Protocol V2 ---


class _InputTensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: list[int]
    data: msgspec.Raw = _ABSENT
    parameters: dict[str, Any] | None = None


class _RequestedOutput(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: dict[str, Any] | None = None


class _InferRequest(msgspec.Struct, forbid_unknown_fields=True):
    inputs: list[_InputTensor]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[_RequestedOutput] | None = None


_infer_decoder = msgspec.json.Decoder(_InferRequest)


def _decode_v2(body: bytes, signature: Signature) -> Decoded:
    request: _InferRequest = decode_json(_infer_decoder, body)
    given = {tensor.name: tensor for tensor in request.inputs}
    if len(given) != len(request.inputs):
        raise invalid(f"inputs: each name may appear once, got {[tensor.name for tensor in request.inputs]}")
    _check_names("inputs", given, signature.inputs)
    inputs = [_decode_v2_tensor(given[spec.name], spec) for spec in signature.inputs]
    _check_rows(inputs, signature)
    outputs = None
    if request.outputs is not None:
        outputs = [output.name for output in request.outputs]
        known = [spec.name for spec in signature.outputs]
        for name in outputs:
            if name not in known:
                raise invalid(f"outputs: {name!r} is not an output of this model, which has {known}")
    return Decoded(inputs=inputs, id=request.id, outputs=outputs or None)


def _decode_v2_tensor(tensor: _InputTensor, spec: TensorSpec) -> np.ndarray:
    where = f"input {spec.name!r}"
    if tensor.datatype != spec.datatype:
        raise invalid(f"{where}: datatype {tensor.datatype!r}, must be {spec.datatype}")
    if tensor.data == _ABSENT:
        what = "has no data"
        if tensor.parameters and "binary_data_size" in tensor.parameters:
            what = "uses the binary tensor data extension, which this server does not offer (GET /v2)"
        raise invalid(f"{where}: {what}; send a JSON array as data")
    check_shape(where, tensor.shape, spec)
    array = decode_data(where, tensor.data, spec)
    if array.size != math.prod(tensor.shape):
        raise invalid(f"{where}: shape {tensor.shape} means {math.prod(tensor.shape)} elements, data has {array.size}")
    if array.ndim > 1 and list(array.shape) != tensor.shape:
        raise invalid(f"{where}: data is nested as {list(array.shape)}, shape says {tensor.shape}")
    return array.reshape(tensor.shape)


# --- KServe V1 and TorchServe ---


class _PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    instances: msgspec.Raw = _ABSENT
    inputs: msgspec.Raw = _ABSENT
    signature_name: str | None = None
    parameters: dict[str, Any] | None = None


class _Base64(msgspec.Struct, forbid_unknown_fields=True):
    """How V1 marks binary values (TensorFlow Serving REST API, "Encoding binary values")."""

    b64: str


_predict_decoder = msgspec.json.Decoder(_PredictRequest)
_rows_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_media_decoder = msgspec.json.Decoder(list[str | _Base64])


def _decode_v1(body: bytes, signature: Signature, bare: bool) -> Decoded:
    """V1 `instances` (rows) or `inputs` (columns); a bare JSON array is taken as instances where the dialect allows it."""
    if bare and body.lstrip()[:1] == b"[":
        instances, columns = msgspec.Raw(body), _ABSENT
    else:
        request: _PredictRequest = decode_json(_predict_decoder, body)
        instances, columns = request.instances, request.inputs
    if instances != _ABSENT and columns == _ABSENT:
        inputs = _decode_instances(instances, signature)
    elif columns != _ABSENT and instances == _ABSENT:
        inputs = _decode_columns(columns, signature)
    else:
        raise invalid(
            "give exactly one of instances (a list of rows) and inputs (a tensor, or an object of tensors by name)"
        )
    _check_rows(inputs, signature)
    return Decoded(inputs=inputs)


def _decode_instances(instances: msgspec.Raw, signature: Signature) -> Arrays:
    """Rows: plain values for a model of one input, objects by input name for any model, `{"b64": ...}` for BYTES."""
    rows: list[msgspec.Raw] = decode_json(_rows_decoder, instances, "instances")
    if not rows:
        raise invalid("instances: must hold at least one row")
    objects = bytes(rows[0]).lstrip()[:1] == b"{"
    specs = signature.inputs
    if not objects or (_is_b64(rows[0]) and specs[0].datatype == "BYTES"):
        if len(specs) > 1:
            names = [spec.name for spec in specs]
            raise invalid(f"instances: this model has several inputs, each row must be an object with {names}")
        return [_decode_v1_tensor("instances", instances, specs[0])]
    named: list[dict[str, msgspec.Raw]] = [
        decode_json(_object_decoder, row, f"instances[{index}]") for index, row in enumerate(rows)
    ]
    for index, row in enumerate(named):
        _check_names(f"instances[{index}]", row, specs)
    return [
        _decode_v1_tensor(
            f"instances, input {spec.name!r}", b"[" + b",".join(bytes(row[spec.name]) for row in named) + b"]", spec
        )
        for spec in specs
    ]


def _decode_columns(columns: msgspec.Raw, signature: Signature) -> Arrays:
    specs = signature.inputs
    if bytes(columns).lstrip()[:1] == b"{":
        named: dict[str, msgspec.Raw] = decode_json(_object_decoder, columns, "inputs")
        _check_names("inputs", named, specs)
        return [_decode_v1_tensor(f"input {spec.name!r}", named[spec.name], spec) for spec in specs]
    if len(specs) > 1:
        raise invalid(f"inputs: this model has several, give an object with {[spec.name for spec in specs]}")
    return [_decode_v1_tensor("inputs", columns, specs[0])]


def _decode_v1_tensor(where: str, data: msgspec.Raw | bytes, spec: TensorSpec) -> np.ndarray:
    if spec.datatype == "BYTES":
        elements: list[str | _Base64] = decode_json(_media_decoder, data, where)
        array = bytes_tensor([element if isinstance(element, str) else element.b64 for element in elements])
    else:
        array = decode_data(where, data, spec)
    check_shape(where, list(array.shape), spec)
    return array


def _is_b64(row: msgspec.Raw) -> bool:
    return re.match(rb'\s*\{\s*"b64"\s*:', bytes(row)) is not None


# --- the signature, in either dialect ---


def _check_names(where: str, given: dict[str, Any], specs: Sequence[TensorSpec]) -> None:
    expected = [spec.name for spec in specs]
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    if missing or unknown:
        raise invalid(f"{where}: missing {missing}, unknown {unknown}; this model has {expected}")


def _check_rows(inputs: Arrays, signature: Signature) -> None:
    rows = [len(array) for array in inputs]
    if rows[0] == 0 or any(count != rows[0] for count in rows):
        named = {spec.name: count for spec, count in zip(signature.inputs, rows, strict=True)}
        raise invalid(f"inputs: all must have the same number of rows, at least 1; got {named}")
    for spec, array in zip(signature.inputs, inputs, strict=True):
        if array.size == 0:
            raise invalid(f"input {spec.name!r}: shape {list(array.shape)} holds no elements")


# --- answers ---


class _OutputTensor(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    data: list[Any]


class _InferResponse(msgspec.Struct, omit_defaults=True):
    model_name: str
    outputs: list[_OutputTensor]
    id: str | None = None


_encode = msgspec.json.Encoder().encode


def encode_response(
    dialect: Dialect, model: str, decoded: Decoded, signature: Signature, outputs: Arrays, reply: Any
) -> bytes:
    """The answer as JSON: V2 tensors, V1 `predictions` by row, or the task's own reply in the TorchServe dialect.

    reply is what the task makes of the outputs: for v1 a list with one value a row, for torchserve any JSON value,
    for v2 it is not used.
    """
    if dialect == "torchserve":
        return _encode(reply)
    if dialect == "v1":
        return _encode({"predictions": reply})
    tensors = [
        _OutputTensor(spec.name, spec.datatype, list(array.shape), array.ravel().tolist())
        for spec, array in zip(signature.outputs, outputs, strict=True)
        if decoded.outputs is None or spec.name in decoded.outputs
    ]
    return _encode(_InferResponse(model, tensors, decoded.id))


def encode_error(dialect: Dialect, error: RequestError) -> bytes:
    """An error body as the dialect's clients expect it."""
    if dialect == "torchserve":
        kind = _TORCHSERVE_TYPES.get(error.status, "InternalServerException")
        return _encode({"code": error.status, "type": kind, "message": error.message})
    return _encode({"error": error.message})


_TORCHSERVE_TYPES = {
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
