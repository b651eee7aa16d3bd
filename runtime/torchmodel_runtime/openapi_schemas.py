"""JSON Schemas of one model's tensors, for `openapi`: what a request must hold to be answered, and what is answered. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from torchmodel_runtime.codec import Plan
from torchmodel_runtime.codec.decoded import Form
from torchmodel_runtime.codec.negotiation import FORM_TYPES
from torchmodel_runtime.codec.parameters import SEQUENCES, SHARED_MEMORY
from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.deadlines import MAX_MICROSECONDS
from torchmodel_runtime.tensors import FLOATS, NUMPY_DTYPES

SIZES = ((1, 2), (2, 1), (3, 3))
"""Rows, and the length of all variable dimensions, that the schemas list; the server takes any number up to its limits."""

LISTED_ELEMENTS = 4096
"""Of a larger tensor only the nesting is described: nobody generates an image number by number."""

_GREATEST = {
    "FP16": float(np.finfo(np.float16).max),
    "BF16": float.fromhex("0x1.fep127"),  # eight bits of mantissa, the exponents of FP32
    "FP32": float(np.finfo(np.float32).max),
    "FP64": float(np.finfo(np.float64).max),
}

_TIMEOUT = {
    "anyOf": [
        {"type": "integer", "minimum": 0, "maximum": MAX_MICROSECONDS - 1},
        {"type": "string", "pattern": "^[0-9]{1,18}$"},
        {"type": "null"},
    ],
    "description": "Microseconds that the client waits; 0: no wish.",
}
_NOTHING = {"enum": [0, False, "", None], "description": "Asks for what is not offered, and may only ask for nothing."}

Json = dict[str, Any]


def infer_request(plan: Plan) -> Json:
    """V2: the inputs at each of SIZES, data flat."""
    return {
        "type": "object",
        "description": "Any number of rows is taken; 1 to 3 are described. Inputs may be in any order, data flat or nested. "
        "Whole numbers, such as those of a shape, are written as such: 1 and not 1.0, which to JSON Schema is the same.",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": ["string", "null"], "description": "Comes back in the answer."},
            "model_name": {
                "type": ["string", "null"],
                "description": "As kserve's client sends it; the route names the model.",
            },
            "parameters": {
                "type": ["object", "null"],
                "properties": {
                    "binary_data_output": {"type": "boolean", "description": "All outputs as bytes behind the JSON."},
                    "timeout": _TIMEOUT,
                    **dict.fromkeys(SEQUENCES, _NOTHING),
                },
                "description": "Others are taken and not used, priority among them.",
            },
            "inputs": {"anyOf": [_input_list(plan, rows, length) for rows, length in SIZES]},
            "outputs": {
                "type": ["array", "null"],
                "description": "Those wanted; absent or empty: all.",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "name": {"enum": list(plan.outputs)},
                        "parameters": {
                            "type": ["object", "null"],
                            "properties": {
                                "binary_data": {"type": "boolean"},
                                "classification": _NOTHING,
                                **dict.fromkeys(SHARED_MEMORY, False),
                            },
                        },
                    },
                },
            },
        },
    }


def infer_response(plan: Plan) -> Json:
    """V2: the outputs, null where a number is not finite."""
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": plan.model},
            "model_version": {"const": plan.version},
            "id": {"type": "string"},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": {"enum": list(plan.outputs)},
                        "datatype": {"enum": sorted({spec.datatype for spec in plan.outputs.values()})},
                        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                        "data": {"type": "array", "items": {"type": ["number", "boolean", "string", "null"]}},
                        "parameters": {"type": "object", "properties": {"binary_data_size": {"type": "integer"}}},
                    },
                },
            },
        },
    }


def predict_request(plan: Plan) -> Json:
    """V1: `instances` by row or `inputs` by column."""
    columns = [_object(plan, partial(_nested, rows=rows, length=length)) for rows, length in SIZES]
    return {
        "description": "Any number of rows is taken; 1 to 3 are described.",
        "anyOf": [
            _document("instances", rows_schema(plan)),
            _document("inputs", {"anyOf": columns}),
        ],
    }


def rows_schema(plan: Plan) -> Json:
    """A list of rows: plain for a model of one input, objects by input name for any."""
    lists: list[Json] = []
    for _, length in SIZES:
        if plan.only is not None:
            lists.append(_nested(plan.only, None, length))
            # as TorchServe's clients on KServe write a row, whatever the input is called
            lists.append({"type": "array", "minItems": 1, "items": _document("data", _row(plan.only, length))})
        lists.append({"type": "array", "minItems": 1, "items": _object(plan, partial(_row, length=length))})
    return {"anyOf": lists}


def data_answer(forms: Sequence[Form]) -> Json:
    """The contents of an answer other than JSON."""
    return {FORM_TYPES[form][0]: {"schema": {"description": "As Accept asks for."}} for form in forms if form != "json"}


def example_v2(plan: Plan) -> Json:
    """A request of one row."""
    tensors = []
    for name, spec in plan.inputs.items():
        shape = _shape(spec, 1, 2)
        count = min(math.prod(shape), LISTED_ELEMENTS)
        tensors.append({"name": name, "datatype": spec.datatype, "shape": shape, "data": [_value(spec)] * count})
    return {"inputs": tensors}


def example_v1(plan: Plan) -> Json:
    """A request of one row, by row."""
    if plan.only is not None:
        return {"instances": [_example_row(plan.only)]}
    return {"instances": [{name: _example_row(spec) for name, spec in plan.inputs.items()}]}


def _input_list(plan: Plan, rows: int, length: int) -> Json:
    tensors = [_input(spec, rows, length) for spec in plan.inputs.values()]
    listed = {"type": "array", "minItems": len(tensors), "maxItems": len(tensors)}
    if len(tensors) == 1:
        return {**listed, "items": tensors[0]}
    return {**listed, "prefixItems": tensors, "items": False}


def _input(spec: TensorSpec, rows: int, length: int) -> Json:
    shape = _shape(spec, rows, length)
    count = math.prod(shape)
    data: Json = {"type": "array", "items": _element(spec)}
    if count <= LISTED_ELEMENTS:
        data |= {"minItems": count, "maxItems": count}
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "additionalProperties": False,
        "properties": {
            "name": {"const": spec.name},
            "datatype": {"const": spec.datatype},
            "shape": {"const": shape},
            "data": data,
            "parameters": {
                "type": ["object", "null"],
                "properties": dict.fromkeys((*SHARED_MEMORY, "binary_data_size"), False),
                "description": "Taken and not used. With binary_data_size the data follows the JSON, and is not in it.",
            },
        },
    }


def _shape(spec: TensorSpec, rows: int, length: int) -> list[int]:
    return [rows, *(length if size == -1 else size for size in spec.shape[1:])]


def _row(spec: TensorSpec, length: int) -> Json:
    """One row, nested; variable dimensions have this length."""
    schema = _element(spec)
    listed = math.prod(_shape(spec, 1, length)) <= LISTED_ELEMENTS
    for size in reversed(_shape(spec, 1, length)[1:]):
        schema = {"type": "array", "items": schema} | ({"minItems": size, "maxItems": size} if listed else {})
    return schema


def _nested(spec: TensorSpec, rows: int | None, length: int) -> Json:
    """A whole tensor, nested; rows None: any number from one."""
    count: Json = {"minItems": 1} if rows is None else {"minItems": rows, "maxItems": rows}
    return {"type": "array", "items": _row(spec, length), **count}


def _object(plan: Plan, schema: Callable[[TensorSpec], Json]) -> Json:
    return {
        "type": "object",
        "required": list(plan.inputs),
        "additionalProperties": False,
        "properties": {name: schema(spec) for name, spec in plan.inputs.items()},
    }


def _document(field: str, schema: Json) -> Json:
    more: Json = {
        "signature_name": {"type": ["string", "null"], "description": "Taken and not used: a model has one signature."},
        "parameters": {
            "type": ["object", "null"],
            "properties": {"timeout": _TIMEOUT},
            "description": "Others are taken and not used.",
        },
    }
    return {"type": "object", "required": [field], "additionalProperties": False, "properties": {field: schema, **more}}


def _element(spec: TensorSpec) -> Json:
    datatype = spec.datatype
    if datatype == "BYTES":
        return {"type": "string", "description": "Text, or base64 for a task that takes pictures or recordings."}
    if datatype == "BOOL":
        return {"type": "boolean"}
    if datatype in FLOATS:
        greatest = _GREATEST[datatype]
        return {"type": "number", "minimum": -greatest, "maximum": greatest}
    limits = np.iinfo(NUMPY_DTYPES[datatype])
    return {"type": "integer", "minimum": int(limits.min), "maximum": int(limits.max)}


def _value(spec: TensorSpec) -> Any:
    if spec.datatype == "BYTES":
        return "text"
    if spec.datatype == "BOOL":
        return True
    return 0.5 if spec.datatype in FLOATS else 1


def _example_row(spec: TensorSpec) -> Any:
    value = _value(spec)
    for size in reversed(_shape(spec, 1, 2)[1:]):
        value = [value] * size
    return value
