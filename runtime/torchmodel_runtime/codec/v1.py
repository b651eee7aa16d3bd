"""KServe V1 documents to tensors and back; TorchServe's JSON bodies have the same form. Called by `codec`."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.codec.decoded import Decoded, check_names, check_rows
from torchmodel_runtime.codec.forms import DATA
from torchmodel_runtime.codec.jsontensors import check_json_elements, decode_data, decode_json
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.codec.shapes import check_elements, check_rank, check_shape
from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.errors import invalid
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.tensors import Arrays, bytes_tensor

_ABSENT = msgspec.Raw()
"""A field that was not given: msgspec allows no union of Raw and None."""


class _PredictRequest(msgspec.Struct, forbid_unknown_fields=True):
    instances: msgspec.Raw = _ABSENT
    inputs: msgspec.Raw = _ABSENT
    signature_name: str | None = None
    parameters: dict[str, Any] | None = None


class _Base64(msgspec.Struct, forbid_unknown_fields=True):
    """How V1 marks binary values (TensorFlow Serving REST API, "Encoding binary values")."""

    b64: str


_LIST = re.compile(rb"\s*\[")
_OBJECT = re.compile(rb"\s*\{")
_OBJECTS = re.compile(rb"\s*\[\s*\{")
_EMPTY_LIST = re.compile(rb"\s*\[\s*\]")
_FIRST_IS_B64 = re.compile(rb'\s*\[\s*\{\s*"b64"\s*:')

_predict_decoder = msgspec.json.Decoder(_PredictRequest)
_rows_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_media_decoder = msgspec.json.Decoder(list[str | _Base64])


def decode(call: Call, plan: Plan) -> Decoded:
    """`instances` (rows) or `inputs` (columns); in the TorchServe dialect also a bare JSON array of rows."""
    body = call.body
    check_json_elements(body, plan.limits)
    parameters = None
    if call.dialect == "torchserve" and _LIST.match(body):
        instances, columns = msgspec.Raw(body), _ABSENT
    else:
        request: _PredictRequest = decode_json(_predict_decoder, body)
        instances, columns, parameters = request.instances, request.inputs, request.parameters
    if instances != _ABSENT and columns == _ABSENT:
        inputs = _decode_instances(instances, plan)
    elif columns != _ABSENT and instances == _ABSENT:
        inputs = _decode_columns(columns, plan)
    else:
        raise invalid(
            "give exactly one of instances (a list of rows) and inputs (a tensor, or an object of tensors by name)"
        )
    check_elements([array.shape for array in inputs], plan.limits)
    check_rows(inputs, plan.signature)
    return Decoded(inputs, parameters=parameters or {})


def _decode_instances(instances: msgspec.Raw, plan: Plan) -> Arrays:
    """Rows: plain values for a model of one input, objects by input name for any model, `{"b64": ...}` for BYTES.

    The one input may be called `data`.
    """
    if not _LIST.match(instances):
        raise invalid("instances: must be a list of rows")
    if _EMPTY_LIST.match(instances):
        raise invalid("instances: must hold at least one row")
    only = plan.only
    if not _OBJECTS.match(instances) or (only and only.datatype == "BYTES" and _FIRST_IS_B64.match(instances)):
        if only is None:
            names = list(plan.inputs)
            raise invalid(f"instances: this model has several inputs, each row must be an object with {names}")
        return [decode_tensor("instances", instances, only, plan)]
    rows: list[msgspec.Raw] = decode_json(_rows_decoder, instances, "instances")
    named: list[dict[str, msgspec.Raw]] = [
        decode_json(_object_decoder, row, f"instances[{index}]") for index, row in enumerate(rows)
    ]
    specs = plan.signature.inputs
    if only is not None:
        named = [_unwrap(row, only) for row in named]
    for index, row in enumerate(named):
        check_names(f"instances[{index}]", row, specs)
    return [
        decode_tensor(
            f"instances, input {spec.name!r}",
            b"[" + b",".join(bytes(row[spec.name]) for row in named) + b"]",
            spec,
            plan,
        )
        for spec in specs
    ]


def _unwrap(row: dict[str, msgspec.Raw], only: TensorSpec) -> dict[str, msgspec.Raw]:
    """`{"data": ...}` as the one input, which is how TorchServe's clients on KServe write a row."""
    return {only.name: row[DATA]} if list(row) == [DATA] else row


def _decode_columns(columns: msgspec.Raw, plan: Plan) -> Arrays:
    """Tensors by name, or the one tensor of a model of one input."""
    if _OBJECT.match(columns):
        named: dict[str, msgspec.Raw] = decode_json(_object_decoder, columns, "inputs")
        check_names("inputs", named, plan.signature.inputs)
        return [decode_tensor(f"input {name!r}", named[name], spec, plan) for name, spec in plan.inputs.items()]
    if plan.only is None:
        raise invalid(f"inputs: this model has several, give an object with {list(plan.inputs)}")
    return [decode_tensor("inputs", columns, plan.only, plan)]


def decode_tensor(where: str, data: msgspec.Raw | bytes, spec: TensorSpec, plan: Plan) -> np.ndarray:
    """A JSON array as the input that spec declares; RequestError 400 begins with `where`."""
    if spec.datatype == "BYTES":
        elements: list[str | _Base64] = decode_json(_media_decoder, data, where)
        array = bytes_tensor([element if isinstance(element, str) else element.b64 for element in elements])
    else:
        array = decode_data(where, data, spec, plan.limits)
    check_rank(where, array.ndim, plan.limits)
    check_shape(where, array.shape, spec)
    return array


_encode = msgspec.json.Encoder().encode


def encode(rows: list[Any]) -> Answer:
    """`predictions`: one JSON value a row."""
    return Answer(200, _encode({"predictions": rows}))
