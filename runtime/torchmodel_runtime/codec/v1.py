"""KServe V1 documents to tensors and back; TorchServe's JSON bodies have the same form. Called by `codec`."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.codec.decoded import Decoded, check_names, check_rows
from torchmodel_runtime.codec.jsontensors import check_json_elements, decode_data, decode_json
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.codec.shapes import check_elements, check_shape
from torchmodel_runtime.config import Signature, TensorSpec
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


_predict_decoder = msgspec.json.Decoder(_PredictRequest)
_rows_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_object_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_media_decoder = msgspec.json.Decoder(list[str | _Base64])


def decode(call: Call, plan: Plan) -> Decoded:
    """`instances` (rows) or `inputs` (columns); in the TorchServe dialect also a bare JSON array of rows."""
    body, signature = call.body, plan.signature
    check_json_elements(body, plan.limits)
    if call.dialect == "torchserve" and body.lstrip()[:1] == b"[":
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
    check_elements([array.shape for array in inputs], plan.limits)
    check_rows(inputs, signature)
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
        return [_decode_tensor("instances", instances, specs[0])]
    named: list[dict[str, msgspec.Raw]] = [
        decode_json(_object_decoder, row, f"instances[{index}]") for index, row in enumerate(rows)
    ]
    for index, row in enumerate(named):
        check_names(f"instances[{index}]", row, specs)
    return [
        _decode_tensor(
            f"instances, input {spec.name!r}", b"[" + b",".join(bytes(row[spec.name]) for row in named) + b"]", spec
        )
        for spec in specs
    ]


def _decode_columns(columns: msgspec.Raw, signature: Signature) -> Arrays:
    specs = signature.inputs
    if bytes(columns).lstrip()[:1] == b"{":
        named: dict[str, msgspec.Raw] = decode_json(_object_decoder, columns, "inputs")
        check_names("inputs", named, specs)
        return [_decode_tensor(f"input {spec.name!r}", named[spec.name], spec) for spec in specs]
    if len(specs) > 1:
        raise invalid(f"inputs: this model has several, give an object with {[spec.name for spec in specs]}")
    return [_decode_tensor("inputs", columns, specs[0])]


def _decode_tensor(where: str, data: msgspec.Raw | bytes, spec: TensorSpec) -> np.ndarray:
    if spec.datatype == "BYTES":
        elements: list[str | _Base64] = decode_json(_media_decoder, data, where)
        array = bytes_tensor([element if isinstance(element, str) else element.b64 for element in elements])
    else:
        array = decode_data(where, data, spec)
    check_shape(where, list(array.shape), spec)
    return array


def _is_b64(row: msgspec.Raw) -> bool:
    return re.match(rb'\s*\{\s*"b64"\s*:', bytes(row)) is not None


_encode = msgspec.json.Encoder().encode


def encode(rows: list[Any]) -> Answer:
    """`predictions`: one JSON value a row."""
    return Answer(200, _encode({"predictions": rows}))
