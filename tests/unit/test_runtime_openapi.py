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
from torchmodel_runtime.deadlines import choose_timeout_s
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


X = {"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [1] * 10}
V2, V1 = "/v2/models/m/infer", "/v1/models/m:predict"


@pytest.mark.parametrize(
    ("path", "body", "fits"),
    [
        (V2, {"inputs": [X], "id": None, "model_name": None, "parameters": None, "outputs": None}, True),
        (V2, {"inputs": [X], "id": 7}, False),
        (V2, {"inputs": [X], "parameters": {"mine": 1.5, "sequence_id": 0, "sequence_start": False}}, True),
        (V2, {"inputs": [X], "parameters": {"sequence_id": 5}}, False),
        (V2, {"inputs": [X], "parameters": {"sequence_end": True}}, False),
        (V2, {"inputs": [X], "parameters": {"binary_data_output": "yes"}}, False),
        (V2, {"inputs": [{**X, "parameters": {"mine": [1]}}]}, True),
        (V2, {"inputs": [{**X, "parameters": None}]}, True),
        (V2, {"inputs": [{**X, "parameters": {"shared_memory_region": "a"}}]}, False),
        (V2, {"inputs": [{**X, "parameters": {"binary_data_size": 40}}]}, False),
        (V2, {"inputs": [X], "outputs": [{"name": "x", "parameters": {"mine": 1, "classification": 0}}]}, True),
        (V2, {"inputs": [X], "outputs": [{"name": "x", "parameters": None}]}, True),
        (V2, {"inputs": [X], "outputs": [{"name": "x", "parameters": {"classification": 3}}]}, False),
        (V2, {"inputs": [X], "outputs": [{"name": "x", "parameters": {"shared_memory_offset": 0}}]}, False),
        (V2, {"inputs": [X], "outputs": [{"name": "z"}]}, False),
        (V1, {"instances": [[1] * 10], "signature_name": "any", "parameters": {"mine": 1}}, True),
        (V1, {"instances": [[1] * 10], "signature_name": None, "parameters": None}, True),
        (V1, {"instances": [[1] * 10], "signature": "any"}, False),
        (V1, {"instances": [[1] * 10], "inputs": [[1] * 10]}, False),
    ],
)
def test_what_may_stand_beside_the_tensors_is_what_the_codec_takes(path: str, body: Any, fits: bool) -> None:
    assert jsonschema.Draft202012Validator(schema_of(document(VECTOR), path)).is_valid(body) is fits
    call = Call("v2" if path == V2 else "v1", "m", json.dumps(body).encode(), {}, "application/json")
    if fits:
        assert codec.decode_request(call, plan(VECTOR)).inputs[0].shape == (1, 10)
    else:
        with pytest.raises(RequestError):
            codec.decode_request(call, plan(VECTOR))


@pytest.mark.parametrize("path", [V2, V1])
@pytest.mark.parametrize(
    ("wish", "fits"),
    [
        (0, True),
        (2_000_000, True),
        ("2000000", True),
        (None, True),
        (-1, False),
        (1 << 63, False),
        ("2 s", False),
        (True, False),
    ],
)
def test_a_deadline_in_the_parameters_may_be_what_is_read(path: str, wish: Any, fits: bool) -> None:
    tensors = {"inputs": [X]} if path == V2 else {"instances": [[1] * 10]}
    body = {**tensors, "parameters": {"timeout": wish}}
    assert jsonschema.Draft202012Validator(schema_of(document(VECTOR), path)).is_valid(body) is fits
    if fits:
        assert 0 < choose_timeout_s({}, body["parameters"], 30) <= 30
    else:
        with pytest.raises(RequestError):
            choose_timeout_s({}, body["parameters"], 30)


@pytest.mark.parametrize(
    ("fields", "fits"),
    [
        ({"data": "[[1]]"}, True),
        ({"x": "[[1]]"}, True),
        ({"data": "a", "x": "b"}, False),
        ({"z": "a"}, False),
        ({}, False),
    ],
)
def test_a_form_holds_the_body_or_the_inputs_by_name(fields: Any, fits: bool) -> None:
    schema = schema_of(document(VECTOR), "/predictions/m", "multipart/form-data")
    assert jsonschema.Draft202012Validator(schema).is_valid(fields) is fits


def test_the_older_route_names_the_model_by_a_parameter_and_knows_no_other() -> None:
    operation = document(VECTOR)["paths"]["/invocations"]["post"]
    assert [(each["name"], each["in"]) for each in operation["parameters"]] == [("model_name", "query")]
    assert "404" in operation["responses"]


def test_whatever_is_read_of_a_body_may_come_too_slowly() -> None:
    assert "408" in document(VECTOR)["paths"]["/v2/repository/index"]["post"]["responses"]


def test_every_status_of_an_inference_route_is_listed() -> None:
    responses = document(VECTOR)["paths"]["/v2/models/m/infer"]["post"]["responses"]
    assert list(responses) == ["200", "400", "406", "408", "413", "415", "429", "500", "503", "504", "507"]
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
