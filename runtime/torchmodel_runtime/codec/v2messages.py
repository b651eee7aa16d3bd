"""Open Inference Protocol V2 as gRPC's messages: a ModelInferRequest to tensors, tensors to a ModelInferResponse.

The tensors are taken out of the message first, as views of its bytes (`protowire`), so that they are not copied; what is left
is names, shapes and parameters, which the parser reads. The answer has the request's form: raw contents where it had those, else
typed ones; where an output's datatype has no typed form all are raw. KServe does so, and Triton's clients send raw contents
alone. Called by `codec` and by the gRPC port; knows no gRPC.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from torchmodel_runtime.codec import parameters
from torchmodel_runtime.codec.decoded import Decoded, check_names, check_requested, check_rows, select_outputs
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.codec.protowire import WireError, take_fields, write_field
from torchmodel_runtime.codec.rawtensors import decode_raw, encode_raw
from torchmodel_runtime.codec.shapes import check_elements, check_elements_of_bytes, check_rank, check_tensors
from torchmodel_runtime.codec.v2contents import add_contents, decode_contents, has_contents, is_light
from torchmodel_runtime.config import Limits, TensorSpec
from torchmodel_runtime.errors import RequestError, invalid, quote, too_large
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.protos.open_inference_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
)
from torchmodel_runtime.tensors import Arrays

_INPUTS = ModelInferRequest.INPUTS_FIELD_NUMBER
_RAW_INPUTS = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_CONTENTS = ModelInferRequest.InferInputTensor.CONTENTS_FIELD_NUMBER
_RAW_OUTPUTS = ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER

MAX_FIELDS = 4096
"""Of a message, or of one input: twice serving.limits.maxTensors at its greatest, and room for as many outputs and parameters."""
MAX_HEAD_BYTES = 65536
"""Names, shapes, parameters, id. The parser makes up to some fifty bytes of each."""

HEAVY_BYTES = 8192
"""Typed contents from here on may take more than two milliseconds: BYTES half a microsecond an element, of two bytes or more."""

_Parsed = TypeVar("_Parsed", bound=Message)


class _Tensor(NamedTuple):
    """An input as it came: its head is a message without the contents."""

    head: bytes
    contents: list[memoryview]


def read_model(body: bytes) -> tuple[str, str | None]:
    """Name and version of the model that is asked; RequestError 400 for what is no ModelInferRequest."""
    rest, _ = _take(memoryview(body), (_INPUTS, _RAW_INPUTS))
    head = parse(ModelInferRequest, rest)
    return head.model_name, head.model_version or None


def is_heavy(body: bytes) -> bool:
    """True when decoding takes so long that it must leave the event loop."""
    if len(body) <= HEAVY_BYTES:
        return False
    try:
        _, fields = _take(memoryview(body), (_INPUTS,))
        contents = [piece for _, content in fields for piece in _split_input(content).contents]
    except RequestError:
        return False  # decoding raises it again
    return sum(len(piece) for piece in contents if not is_light(piece)) > HEAVY_BYTES


def decode(call: Call, plan: Plan) -> Decoded:
    """A ModelInferRequest; RequestError 400 or 413 says what does not fit the signature or the limits."""
    rest, tensors, raw = _open(memoryview(call.body), plan.limits)
    request = parse(ModelInferRequest, rest)
    heads = [parse(ModelInferRequest.InferInputTensor, tensor.head) for tensor in tensors]
    check_elements([head.shape for head in heads], plan.limits)
    for head in heads:
        if head.parameters:
            parameters.check_tensor(f"input {quote(head.name)}", _read_parameters(head.parameters))
    _check_raw(heads, tensors, raw)
    given = {head.name: index for index, head in enumerate(heads)}
    if len(given) != len(heads):
        raise invalid(f"inputs: each name may appear once, got {quote([head.name for head in heads])}")
    check_names("inputs", given, plan.signature.inputs)
    inputs = [
        _decode_tensor(heads[given[name]], spec, tensors[given[name]], raw[given[name]] if raw else None, plan)
        for name, spec in plan.inputs.items()
    ]
    check_rows(inputs, plan.signature)
    decoded = Decoded(inputs, request.id or None, form="binary" if raw else "json")
    if request.parameters:
        decoded.parameters = _read_parameters(request.parameters)
        parameters.check_request(decoded.parameters)
    if request.outputs:
        check_requested(len(request.outputs), plan.outputs)
        decoded.outputs = [_read_output(output, plan) for output in request.outputs]
    return decoded


def encode(decoded: Decoded, plan: Plan, outputs: Arrays) -> Answer:
    """The outputs that were asked for, all of them raw or all of them typed, as a ModelInferResponse."""
    chosen = select_outputs(decoded, plan.signature, outputs)
    is_raw = decoded.form == "binary" or not all(has_contents(spec.datatype) for spec, _ in chosen)
    response = ModelInferResponse(model_name=plan.model, model_version=plan.version, id=decoded.id or "")
    pieces: list[bytes] = []
    for spec, array in chosen:
        tensor = response.outputs.add(name=spec.name, datatype=spec.datatype, shape=array.shape)
        if is_raw:  # behind the rest of the message, so that they are copied once
            pieces += write_field(_RAW_OUTPUTS, encode_raw(array, spec.datatype))
        else:
            add_contents(tensor.contents, array, spec.datatype)
    return Answer(200, b"".join((response.SerializeToString(), *pieces)), "application/grpc")


def encode_error(error: RequestError) -> Answer:
    """The sentence alone: gRPC carries it in its status."""
    return Answer(error.status, error.message.encode(), "application/grpc")


def parse(kind: type[_Parsed], body: bytes) -> _Parsed:
    """A message of that kind; RequestError 400 when the bytes are none."""
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise invalid(f"message: is no {kind.DESCRIPTOR.full_name}: {error}") from None
    return message


def _open(body: memoryview, limits: Limits) -> tuple[bytes, list[_Tensor], list[memoryview]]:
    """The request without its tensors, the tensors, the raw contents; RequestError 400 or 413 for more than is taken."""
    rest, fields = _take(body, (_INPUTS, _RAW_INPUTS))
    inputs = [content for number, content in fields if number == _INPUTS]
    check_tensors(len(inputs), limits)
    tensors = [_split_input(content) for content in inputs]
    size = len(rest) + sum(len(tensor.head) for tensor in tensors)
    if size > MAX_HEAD_BYTES:
        raise too_large(f"message: {size} bytes beside the tensors' contents, at most {MAX_HEAD_BYTES} are taken")
    return rest, tensors, [content for number, content in fields if number == _RAW_INPUTS]


def _split_input(content: memoryview) -> _Tensor:
    head, fields = _take(content, (_CONTENTS,))
    return _Tensor(head, [contents for _, contents in fields if contents])


def _take(message: memoryview, wanted: tuple[int, ...]) -> tuple[bytes, list[tuple[int, memoryview]]]:
    try:
        return take_fields(message, wanted, MAX_FIELDS)
    except WireError as error:
        raise invalid(f"message: is no {ModelInferRequest.DESCRIPTOR.full_name}: {error}") from None


def _check_raw(heads: list[ModelInferRequest.InferInputTensor], tensors: list[_Tensor], raw: list[memoryview]) -> None:
    """Raw contents are for all inputs or for none."""
    if not raw:
        return
    for head, tensor in zip(heads, tensors, strict=True):
        if tensor.contents:
            raise invalid(f"input {quote(head.name)}: has contents beside raw_input_contents, must have one of them")
    if len(raw) != len(heads):
        raise invalid(f"raw_input_contents: {len(raw)} of them for {len(heads)} inputs, must be one for each")


def _decode_tensor(
    head: ModelInferRequest.InferInputTensor,
    spec: TensorSpec,
    tensor: _Tensor,
    raw: memoryview | None,
    plan: Plan,
) -> np.ndarray:
    where = f"input {spec.name!r}"
    if head.datatype != spec.datatype:
        raise invalid(f"{where}: datatype {quote(head.datatype)}, must be {spec.datatype}")
    shape = list(head.shape)
    check_rank(where, len(shape), plan.limits)
    if raw is not None:
        if spec.datatype == "BYTES":
            check_elements_of_bytes(where, shape, spec, plan.max_rows)
        return decode_raw(where, raw, spec, shape)
    if not tensor.contents:
        raise invalid(f"{where}: has no data; send raw_input_contents, or contents")
    return decode_contents(where, tensor.contents, spec, shape, plan.limits)


def _read_parameters(given: Mapping[str, InferParameter]) -> dict[str, Any]:
    """Plain values; one without a value is None."""
    read: dict[str, Any] = {}
    for name, parameter in given.items():
        choice = parameter.WhichOneof("parameter_choice")
        read[name] = getattr(parameter, choice) if choice else None
    return read


def _read_output(output: ModelInferRequest.InferRequestedOutputTensor, plan: Plan) -> str:
    if output.name not in plan.outputs:
        raise invalid(f"outputs: {quote(output.name)} is not an output of this model, which has {list(plan.outputs)}")
    if output.parameters:
        parameters.check_output(f"output {quote(output.name)}", _read_parameters(output.parameters))
    return output.name
