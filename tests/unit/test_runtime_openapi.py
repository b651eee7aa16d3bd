"""The OpenAPI document is valid, and what it says may be sent is taken."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from test_runtime_codec import plan, signature
from torchmodel_runtime import codec, openapi
from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Call

VECTOR = signature(("x", "FP32", [-1, 10]))
SEVERAL = signature(
    ("ids", "INT64", [-1, -1]), ("mask", "BOOL", [-1, -1]), ("half", "FP16", [-1]), ("brain", "BF16", [-1, 2])
)
PICTURES = signature(("pixels", "UINT8", [-1, 3, 224, 224]))
TEXT = Signature(
    inputs=[TensorSpec(name="text", datatype="BYTES", shape=[-1])],
    outputs=[TensorSpec(name="embedding", datatype="FP32", shape=[-1, 4])],
)
MODELS = [(VECTOR, ()), (SEVERAL, ()), (PICTURES, ()), (TEXT, ("text/plain",))]
IDS = ["one vector", "several inputs", "large tensors", "texts"]


def document(tensors: Signature, media: tuple[str, ...] = ()) -> dict[str, Any]:
    return json.loads(json.dumps(openapi.make_document(plan(tensors, media), "1.2.3")))


def schema_of(made: dict[str, Any], path: str, kind: str = "application/json") -> dict[str, Any]:
    schema = made["paths"][path]["post"]["requestBody"]["content"][kind]["schema"]
    return {**schema, "components": made["components"]}


@pytest.mark.parametrize(("tensors", "media"), MODELS, ids=IDS)
def test_the_document_is_valid_openapi(tensors: Signature, media: tuple[str, ...]) -> None:
    OpenAPIV31SpecValidator(document(tensors, media)).validate()


@pytest.mark.parametrize(("tensors", "media"), MODELS, ids=IDS)
@pytest.mark.parametrize(
    ("path", "dialect"),
    [("/v2/models/m/infer", "v2"), ("/v1/models/m:predict", "v1"), ("/predictions/m", "torchserve")],
)
def test_the_examples_fit_their_schemas_and_are_taken(
    tensors: Signature, media: tuple[str, ...], path: str, dialect: Any
) -> None:
    made = document(tensors, media)
    example = made["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    jsonschema.Draft202012Validator(schema_of(made, path)).validate(example)
    if tensors is PICTURES and dialect == "v2":
        return  # cut short: nobody wants to read 150,528 numbers
    call = Call(dialect, "m", json.dumps(example).encode(), {}, "application/json")
    assert codec.decode_request(call, plan(tensors, media)).inputs[0].shape[0] == 1


@pytest.mark.parametrize(
    ("body", "fits"),
    [
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 10], "data": [1] * 20}]}, True),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [1] * 9}]}, False),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [1e39] * 10}]}, False),
        ({"inputs": [{"name": "z", "datatype": "FP32", "shape": [1, 10], "data": [1] * 10}]}, False),
        ({"inputs": []}, False),
        ({"input": []}, False),
    ],
    ids=["two rows", "too few", "too great", "another name", "no input", "another field"],
)
def test_the_schema_refuses_what_the_codec_refuses(body: Any, fits: bool) -> None:
    made = document(VECTOR)
    assert jsonschema.Draft202012Validator(schema_of(made, "/v2/models/m/infer")).is_valid(body) is fits
    call = Call("v2", "m", json.dumps(body).encode(), {}, "application/json")
    if fits:
        assert codec.decode_request(call, plan(VECTOR)).inputs[0].shape == (2, 10)
    else:
        with pytest.raises(RequestError):
            codec.decode_request(call, plan(VECTOR))


def test_every_status_of_an_inference_route_is_listed() -> None:
    responses = document(VECTOR)["paths"]["/v2/models/m/infer"]["post"]["responses"]
    assert list(responses) == ["200", "400", "406", "408", "413", "415", "429", "500", "503", "504"]
    assert list(responses["200"]["content"]) == [
        "application/json",
        "application/octet-stream",
        "application/x-npy",
        "application/vnd.safetensors",
    ]


def test_media_are_listed_where_the_task_takes_them() -> None:
    made = document(TEXT, ("text/plain",))
    assert list(made["paths"]["/v2/models/m/infer"]["post"]["requestBody"]["content"]) == [
        "application/json",
        "application/octet-stream",
        "text/plain",
    ]
    assert "multipart/form-data" in made["paths"]["/predictions/m"]["post"]["requestBody"]["content"]
