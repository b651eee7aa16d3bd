"""Open Inference Protocol V2 over HTTP: its documents to tensors and back. Called by `codec`."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.codec.decoded import Decoded, check_names, check_rows
from torchmodel_runtime.codec.jsontensors import check_shape, decode_data, decode_json
from torchmodel_runtime.config import Limits, Signature, TensorSpec
from torchmodel_runtime.errors import RequestError, invalid
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.tensors import Arrays

_ABSENT = msgspec.Raw()
"""A field that was not given: msgspec allows no union of Raw and None."""


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


def decode(call: Call, signature: Signature, limits: Limits) -> Decoded:  # noqa: ARG001
    """An infer request; RequestError 400 says what does not fit the signature."""
    request: _InferRequest = decode_json(_infer_decoder, call.body)
    given = {tensor.name: tensor for tensor in request.inputs}
    if len(given) != len(request.inputs):
        raise invalid(f"inputs: each name may appear once, got {[tensor.name for tensor in request.inputs]}")
    check_names("inputs", given, signature.inputs)
    inputs = [_decode_tensor(given[spec.name], spec) for spec in signature.inputs]
    check_rows(inputs, signature)
    outputs = None
    if request.outputs is not None:
        outputs = [output.name for output in request.outputs]
        known = [spec.name for spec in signature.outputs]
        for name in outputs:
            if name not in known:
                raise invalid(f"outputs: {name!r} is not an output of this model, which has {known}")
    return Decoded(inputs=inputs, id=request.id, outputs=outputs or None, parameters=request.parameters or {})


def _decode_tensor(tensor: _InputTensor, spec: TensorSpec) -> np.ndarray:
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


def encode(decoded: Decoded, model: str, signature: Signature, outputs: Arrays) -> Answer:
    """The outputs that were asked for, as JSON tensors."""
    tensors = [
        _OutputTensor(spec.name, spec.datatype, list(array.shape), array.ravel().tolist())
        for spec, array in zip(signature.outputs, outputs, strict=True)
        if decoded.outputs is None or spec.name in decoded.outputs
    ]
    return Answer(200, _encode(_InferResponse(model, tensors, decoded.id)))


def encode_error(error: RequestError) -> Answer:
    """`{"error": "text"}`, as V2 and V1 have it."""
    return Answer(error.status, _encode({"error": error.message}))
