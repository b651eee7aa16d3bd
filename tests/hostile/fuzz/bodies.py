"""Checks of what decodes bodies and header fields: the dialects, files of arrays, compression, messages of gRPC."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import Any

from hostile.fuzz.promises import check_inputs, check_refusal, promise, read_message
from multidict import CIMultiDict
from torchmodel_runtime import codec, deadlines, tracecontext
from torchmodel_runtime.codec import inflate, protowire, v2messages
from torchmodel_runtime.config import Limits, Serving, Signature, TensorSpec
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import OCTETS, Call, Dialect, media_type
from torchmodel_runtime.tasks.tensor import TensorTask

SMALL = Serving(
    max_request_bytes=1 << 20, limits=Limits(max_json_elements=10_000, max_elements=100_000, max_tensors=8, max_rank=6)
)
"""Limits that a fuzzer can reach."""


def _make_signature(*specs: tuple[str, str, list[int]]) -> Signature:
    tensors = [TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in specs]  # type: ignore[arg-type]
    return Signature(inputs=tensors, outputs=tensors)


ROW = _make_signature(("x", "FP32", [-1, 10]))
MANY = _make_signature(
    ("ids", "INT64", [-1, -1]), ("flags", "BOOL", [-1, 3]), ("half", "FP16", [-1, 2]), ("byte", "UINT8", [-1, 2])
)
BRAIN = _make_signature(("b", "BF16", [-1, -1, -1]))
MEDIUM = _make_signature(("image", "BYTES", [-1]))

TASKS = [TensorTask(signature) for signature in (ROW, MANY, BRAIN)]
PLANS = [codec.make_plan("m", "1", task.signature, (), SMALL) for task in TASKS]
MEDIA_PLANS = [codec.make_plan("m", "1", MEDIUM, media, SMALL) for media in (("image/",), ("audio/",), ("text/plain",))]


def read_call(data: bytes, dialect: Dialect) -> Call:
    """An inference request."""
    headers, body = read_message(data)
    return Call(dialect, "m", body, headers, media_type(headers.get("Content-Type", OCTETS)))


def decode(call: Call, plan: codec.Plan) -> codec.Decoded | RequestError:
    """What comes of a call; anything else that is raised goes up."""
    codec.is_heavy(call, plan)
    try:
        decoded = codec.decode_request(call, plan)
    except RequestError as error:
        check_refusal(error, call.dialect)
        return error
    check_inputs(decoded.inputs, plan.signature, plan.limits)
    return decoded


def check_call(call: Call, plan: codec.Plan, task: TensorTask | None) -> None:
    """Decoded or refused, without header fields the same by the way that looks at none; and the answer can be written."""
    decoded = decode(call, plan)
    if isinstance(decoded, codec.Decoded) and task is not None:
        answer = codec.encode_response(call, decoded, plan, task, decoded.inputs)
        promise(answer.status == 200 and isinstance(answer.body, bytes), answer.status)
    if call.dialect in ("v2", "v1") or call.dialect == "torchserve":
        plain = Call(call.dialect, "m", call.body, CIMultiDict(), "application/json")
        again = decode(plain, plan)
        quick = decode(replace(plain, is_plain=True), plan)
        promise(_summary(again) == _summary(quick), _summary(again), _summary(quick))


def _summary(decoded: codec.Decoded | RequestError) -> tuple[Any, ...]:
    """To compare two ways."""
    if isinstance(decoded, RequestError):
        return decoded.status, decoded.code, decoded.message
    arrays = [
        (array.shape, array.dtype.str, array.tolist() if array.dtype == object else array.tobytes())
        for array in decoded.inputs
    ]
    return arrays, decoded.id, decoded.outputs, decoded.form, decoded.parameters


def _check_dialect(data: bytes, dialect: Dialect) -> None:
    for plan, task in zip(PLANS, TASKS, strict=True):
        check_call(read_call(data, dialect), plan, task)
    for plan in MEDIA_PLANS:
        check_call(read_call(data, dialect), plan, None)


def check_v2(data: bytes) -> None:
    """V2: JSON, binary tensors, raw mode."""
    _check_dialect(data, "v2")


def check_v1(data: bytes) -> None:
    """V1's rows and columns."""
    _check_dialect(data, "v1")


def check_torchserve(data: bytes) -> None:
    """Forms, and what else TorchServe's route takes."""
    _check_dialect(data, "torchserve")


def check_npy(data: bytes) -> None:
    """An npy file, without message around it."""
    for plan, task in zip(PLANS, TASKS, strict=True):
        check_call(Call("v2", "m", data, CIMultiDict(), "application/x-npy"), plan, task)


def check_safetensors(data: bytes) -> None:
    """A safetensors file, without message around it."""
    for plan, task in zip(PLANS, TASKS, strict=True):
        check_call(Call("v2", "m", data, CIMultiDict(), "application/vnd.safetensors"), plan, task)


def check_inflate(data: bytes) -> None:
    """A compressed body: never more than the cap comes out."""
    for encoding in ("gzip", "deflate", "x-gzip", "identity"):
        call = Call("v2", "m", data, {"Content-Encoding": encoding})
        try:
            plain = inflate.inflate_body(call, 4096)
        except RequestError as error:
            check_refusal(error, "v2")
        else:
            promise(len(plain) <= 4096 or encoding == "identity", len(plain))


def check_accept(data: bytes) -> None:
    """The header Accept, and the encoding's name."""
    headers, _ = read_message(data)
    body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [0,0,0,0,0,0,0,0,0,0]}]}'
    check_call(Call("v2", "m", body, headers, "application/json"), PLANS[0], TASKS[0])


def check_deadlines(data: bytes) -> None:
    """Headers and the parameter that say how long a client waits: never more than the limit, never nothing."""
    headers, body = read_message(data)
    parameters: dict[str, Any] = {}
    with contextlib.suppress(ValueError, RecursionError):
        parameters = {deadlines.TIMEOUT_PARAMETER: json.loads(body)}
    try:
        timeout_s = deadlines.choose_timeout_s(headers, parameters, 30.0)
    except RequestError as error:
        check_refusal(error, "v2")
    else:
        promise(0 < timeout_s <= 30, timeout_s)


def check_tracecontext(data: bytes) -> None:
    """traceparent and tracestate: read as the recommendation has them, or not at all; an id that is taken can be logged."""
    headers, _ = read_message(data)
    parents, states = headers.getall("traceparent", []), headers.getall("tracestate", [])
    found = tracecontext.parse_trace_context(parents, states)
    if found is not None:
        promise(len(found.trace_id) == 32 and int(found.trace_id, 16) > 0, found)
        promise(len(found.parent_id) == 16 and int(found.parent_id, 16) > 0, found)
        promise(len(found.state) <= tracecontext.MAX_MEMBERS, found)
        for key, value in found.state:
            promise(key.isascii() and 0 < len(key) <= 256 and value.isascii() and "," not in value + key, key, value)


def check_grpc(data: bytes) -> None:
    """A ModelInferRequest."""
    try:
        name, version = v2messages.read_model(data)
        promise(isinstance(name, str) and (version is None or isinstance(version, str)), name)
    except RequestError as error:
        check_refusal(error, "grpc")
    for plan, task in zip(PLANS, TASKS, strict=True):
        call = Call("grpc", "m", data, {}, "application/grpc")
        decoded = decode(call, plan)
        if isinstance(decoded, codec.Decoded):
            codec.encode_response(call, decoded, plan, task, decoded.inputs)
    decode(Call("grpc", "m", data, {}, "application/grpc"), MEDIA_PLANS[0])


def check_protowire(data: bytes) -> None:
    """Packed numbers, and the walk over a message: every byte belongs to one field."""
    try:
        fields = list(protowire.walk(memoryview(data), 1000))
    except protowire.WireError:
        fields = []
    position = 0
    for _, _, start, content_from, end in fields:
        promise(start == position and content_from <= end <= len(data), (start, content_from, end))
        position = end
    promise(not fields or position == len(data), position)
    try:
        numbers = protowire.decode_numbers(data, protowire.count_numbers(data))
    except protowire.WireError:
        return
    promise(len(numbers) == sum(byte < 0x80 for byte in data), len(numbers))
    promise(numbers.tolist() == list(_varints(data)), numbers)


def _varints(data: bytes) -> list[int]:
    """As the encoding is written down, without care for speed."""
    numbers, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append(value % 2**64)
            value = shift = 0
    return numbers
