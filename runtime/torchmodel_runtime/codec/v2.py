"""Open Inference Protocol V2: its documents to tensors and back, with the binary tensor data extension. Called by `codec`.

A body is JSON, then the bytes of those tensors that have `binary_data_size`, in the order of `inputs`; the header
`Inference-Header-Content-Length` says where the JSON ends (Triton, "Binary Tensor Data Extension"). Length 0 is raw mode: the
body is the one input of the model and nothing else.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.codec import parameters
from torchmodel_runtime.codec.decoded import Decoded, check_names, check_requested, check_rows, select_outputs
from torchmodel_runtime.codec.jsontensors import check_json_elements, decode_data, decode_json
from torchmodel_runtime.codec.plan import Flat, Plan
from torchmodel_runtime.codec.rawtensors import decode_raw, encode_raw
from torchmodel_runtime.codec.shapes import (
    check_elements,
    check_elements_of_bytes,
    check_rank,
    check_shape,
    check_tensors,
)
from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.errors import RequestError, invalid, quote
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.tensors import NUMPY_DTYPES, Arrays, bytes_tensor

JSON_LENGTH = "Inference-Header-Content-Length"

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
    model_name: str | None = None
    """Not the protocol's, but kserve's client always sends it. The route names the model: one that passes bodies on to
    another, as KServe's inference graphs do, changes the route alone."""


_infer_decoder = msgspec.json.Decoder(_InferRequest)


class _FlatTensor(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: list[int]
    data: list[float]


class _FlatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The request of most clients of a small model: one tensor of numbers in a flat list, and nothing asked for besides."""

    inputs: list[_FlatTensor]
    id: str | None = None


_decode_flat = msgspec.json.Decoder(_FlatRequest).decode


def decode(call: Call, plan: Plan) -> Decoded:
    """An infer request; RequestError 400 or 413 says what does not fit the signature or the limits."""
    if call.is_plain and plan.flat is not None and (decoded := _decode_flat_request(call.body, plan.flat)) is not None:
        return decoded
    length = call.headers.get(JSON_LENGTH)
    document: bytes | memoryview = call.body
    binary: bytes | memoryview = b""
    if length is not None:
        document, binary = split_body(call.body, length)
        if not document:
            return _decode_raw_mode(binary, plan)
    check_json_elements(document, plan.limits)
    request: _InferRequest = decode_json(_infer_decoder, document)
    tensors = request.inputs
    check_tensors(len(tensors), plan.limits)
    check_elements([tensor.shape for tensor in tensors], plan.limits)
    pieces = _binary_pieces(tensors, binary)
    only = plan.only
    if only is not None and len(tensors) == 1 and tensors[0].name == only.name:  # spares most requests the tables
        inputs = [_decode_tensor(tensors[0], only, pieces[0], plan)]
    else:
        inputs = _decode_by_name(tensors, pieces, plan)
    check_rows(inputs, plan.signature)
    decoded = Decoded(inputs, request.id)
    if request.parameters:
        decoded.parameters = request.parameters
        parameters.check_request(request.parameters)
        if "binary_data_output" in request.parameters:
            decoded.has_own_form = True
            decoded.form = "binary" if request.parameters["binary_data_output"] else "json"
    if request.outputs:
        _read_outputs(request.outputs, decoded, plan)
    return decoded


def _decode_flat_request(body: bytes, flat: Flat) -> Decoded | None:
    """A `_FlatRequest` of one row, in one pass; None for every other, which is read with care and told what is wrong."""
    if len(body) > flat.max_bytes:
        return None
    try:
        request = _decode_flat(body)
        (tensor,) = request.inputs
        if tensor.name != flat.name or tensor.datatype != flat.datatype or tensor.shape != flat.shape:
            return None
        return Decoded(
            [np.frombuffer(struct.pack(flat.layout, *tensor.data), flat.dtype).reshape(flat.shape)], request.id
        )
    except (ValueError, OverflowError, struct.error):  # msgspec's errors and wrong counts of tensors are ValueErrors
        return None


def split_body(body: bytes, length: str) -> tuple[memoryview, memoryview]:
    """The JSON and the binary part."""
    if not (length.isascii() and length.isdigit()) or len(length) > 19:
        raise invalid(f"{JSON_LENGTH}: got {length[:40]!r}, must be a number of bytes")
    size = int(length)
    if size > len(body):
        raise invalid(f"{JSON_LENGTH}: {size} bytes of JSON are announced, the body has {len(body)}")
    view = memoryview(body)
    return view[:size], view[size:]


def _binary_pieces(tensors: list[_InputTensor], binary: bytes | memoryview) -> list[bytes | memoryview | None]:
    """The bytes of each tensor that has its data in binary form; together they must use up the binary part."""
    pieces: list[bytes | memoryview | None] = []
    position = 0
    for tensor in tensors:
        size = tensor.parameters.get("binary_data_size") if tensor.parameters else None
        if size is None:
            pieces.append(None)
            continue
        where = f"input {quote(tensor.name)}"
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise invalid(f"{where}: binary_data_size {quote(size)}, must be a number of bytes")
        if tensor.data != _ABSENT:
            raise invalid(f"{where}: has both data and binary_data_size, must have one of them")
        if size > len(binary) - position:
            raise invalid(
                f"{where}: binary_data_size {quote(size)}, but {len(binary) - position} bytes are left of the body's binary part"
                f" ({JSON_LENGTH} says where it begins)"
            )
        pieces.append(binary[position : position + size])
        position += size
    if position != len(binary):
        raise invalid(
            f"body: {len(binary)} bytes follow the JSON, binary_data_size of the inputs says {position} in all"
        )
    return pieces


def _decode_by_name(tensors: list[_InputTensor], pieces: list[bytes | memoryview | None], plan: Plan) -> Arrays:
    given = {tensor.name: (tensor, piece) for tensor, piece in zip(tensors, pieces, strict=True)}
    if len(given) != len(tensors):
        raise invalid(f"inputs: each name may appear once, got {quote([tensor.name for tensor in tensors])}")
    check_names("inputs", given, plan.signature.inputs)
    return [_decode_tensor(given[name][0], spec, given[name][1], plan) for name, spec in plan.inputs.items()]


def _decode_tensor(tensor: _InputTensor, spec: TensorSpec, piece: bytes | memoryview | None, plan: Plan) -> np.ndarray:
    where = f"input {spec.name!r}"
    shape = tensor.shape
    if tensor.datatype != spec.datatype:
        raise invalid(f"{where}: datatype {quote(tensor.datatype)}, must be {spec.datatype}")
    if tensor.parameters:
        parameters.check_tensor(where, tensor.parameters)
    check_rank(where, len(shape), plan.limits)
    if piece is not None:
        if spec.datatype == "BYTES":
            check_elements_of_bytes(where, shape, spec, plan.max_rows)
        return decode_raw(where, piece, spec, shape)
    if tensor.data == _ABSENT:
        raise invalid(f"{where}: has no data; send a JSON array as data, or bytes and binary_data_size")
    check_shape(where, shape, spec)
    array = decode_data(where, tensor.data, spec, plan.limits)
    if array.shape == tuple(shape):
        return array
    if array.size != math.prod(shape):
        raise invalid(f"{where}: shape {shape} means {math.prod(shape)} elements, data has {array.size}")
    if array.ndim > 1:
        raise invalid(f"{where}: data is nested as {list(array.shape)}, shape says {shape}")
    return array.reshape(shape)


def _decode_raw_mode(body: bytes | memoryview, plan: Plan) -> Decoded:
    """The body is the one input; its size says the one dimension that is not known.

    BYTES: one element, without a length. Otherwise whole rows; where a row has a variable dimension it is one row.
    """
    spec = plan.only
    if spec is None:
        raise invalid(f"{JSON_LENGTH}: 0 is for models of one input, this one has {list(plan.inputs)}")
    if not body:
        raise invalid("the body is empty")
    if spec.datatype == "BYTES":
        return Decoded([bytes_tensor([bytes(body)])], form="binary")
    variable = spec.shape.count(-1) - 1
    if variable > 1:
        raise invalid(
            f"{JSON_LENGTH}: 0 is for inputs with one variable dimension at most, {spec.name!r} has {spec.shape}"
        )
    known = [size for size in spec.shape if size != -1]
    unit_bytes = math.prod(known) * NUMPY_DTYPES[spec.datatype].itemsize
    count, rest = divmod(len(body), unit_bytes or 1)
    if rest or not unit_bytes:
        raise invalid(
            f"body: {len(body)} bytes, must be a multiple of {unit_bytes}: {spec.datatype} of shape {spec.shape}"
        )
    shape = [count if variable == 0 else 1]
    shape += [count if size == -1 else size for size in spec.shape[1:]]
    check_elements([shape], plan.limits)
    inputs = [decode_raw(f"input {spec.name!r}", body, spec, shape)]
    check_rows(inputs, plan.signature)
    return Decoded(inputs, form="binary")


def _read_outputs(requested: list[_RequestedOutput], decoded: Decoded, plan: Plan) -> None:
    """Which outputs, and which of them in binary form."""
    check_requested(len(requested), plan.outputs)
    for output in requested:
        if output.name not in plan.outputs:
            raise invalid(
                f"outputs: {quote(output.name)} is not an output of this model, which has {list(plan.outputs)}"
            )
        if output.parameters:
            parameters.check_output(f"output {output.name!r}", output.parameters)
            if "binary_data" in output.parameters:
                decoded.binary_by_output[output.name] = output.parameters["binary_data"]
                decoded.has_own_form = True
    decoded.outputs = [output.name for output in requested]


class _OutputTensor(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class _InferResponse(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_OutputTensor]
    id: str | None = None


_encode = msgspec.json.Encoder().encode


def encode(decoded: Decoded, plan: Plan, outputs: Arrays) -> Answer:
    """The outputs that were asked for, each as JSON or as bytes behind the JSON."""
    is_binary = decoded.form == "binary"
    if len(outputs) == 1 and not is_binary and decoded.outputs is None:  # most answers
        array, spec = outputs[0], plan.signature.outputs[0]
        tensor = _OutputTensor(spec.name, spec.datatype, array.shape, None, array.ravel().tolist())
        return Answer(200, _encode(_InferResponse(plan.model, plan.version, [tensor], decoded.id)))
    tensors: list[_OutputTensor] = []
    pieces: list[bytes] = []
    for spec, array in select_outputs(decoded, plan.signature, outputs):
        name = spec.name
        tensor = _OutputTensor(name, spec.datatype, array.shape)
        if decoded.binary_by_output.get(name, is_binary):
            pieces.append(encode_raw(array, spec.datatype))
            tensor.parameters = {"binary_data_size": len(pieces[-1])}
        else:
            tensor.data = array.ravel().tolist()
        tensors.append(tensor)
    document = _encode(_InferResponse(plan.model, plan.version, tensors, decoded.id))
    if not pieces:
        return Answer(200, document)
    body = b"".join((document, *pieces))
    return Answer(200, body, "application/octet-stream", {JSON_LENGTH: str(len(document))})


def encode_error(error: RequestError) -> Answer:
    """`{"error": "text"}`, as V2 and V1 have it."""
    return Answer(error.status, _encode({"error": error.message}))
