"""The OpenAPI 3.1 document of one loaded model: every route, exactly as this model has it. Pure; served by `ports.rest`.

Names, datatypes and shapes stand in the schemas as constants, so that a generator makes requests that are answered and a reader
can copy an example. JSON Schema cannot tie `data` to `shape`, nor say "any number of rows, all equally long": so the schemas list
a few sizes (`SIZES`), and the description says that there are more. Schemas of the data are in `openapi_schemas`.
"""

from __future__ import annotations

from typing import Any

from torchmodel_runtime.codec import Plan
from torchmodel_runtime.codec.bodies import FORM, taken_types
from torchmodel_runtime.codec.negotiation import FORM_TYPES, offered_forms
from torchmodel_runtime.exchange import Dialect
from torchmodel_runtime.openapi_schemas import (
    data_answer,
    example_v1,
    example_v2,
    infer_request,
    infer_response,
    predict_request,
    rows_schema,
)

JSON = "application/json"
JSON_AND_BINARY = "application/octet-stream"
OPEN = {"type": "object"}

REFUSALS = {
    400: "Something in the request does not fit; the message names it, what was given and what is allowed.",
    406: "None of the types in Accept can be written.",
    408: "The body did not arrive in time (serving.limits.bodyTimeoutSeconds).",
    413: "The body, what it inflates to, or the tensors in it are over a limit; the message names the setting.",
    415: "A Content-Type or Content-Encoding that is not taken.",
    429: "The queue or memory is full, or the answer would come too late; Retry-After says when to come back.",
    500: "The model failed on this request; the server's log says why.",
    503: "Loading, or shutting down.",
    504: "No answer within the time allowed (serving.requestTimeoutSeconds, or the client's own).",
    507: "The model ran out of memory on this request alone; fewer or smaller rows may go.",
}
"""Every status an inference route can answer besides 200."""

ANOTHER_MODEL = 404
"""Only where the path does not name the model."""

NOT_HERE = "This server does not do that; the message says what to do instead."

BINARY = (
    "JSON, then the bytes of the tensors that have parameters.binary_data_size, in the order of inputs; the header "
    "Inference-Header-Content-Length says how long the JSON is. 0: the body is the one input's bytes alone."
)


def make_document(plan: Plan, version: str) -> dict[str, Any]:
    """The whole document. version: the server's."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"Model {plan.model}",
            "version": version,
            "description": "Open Inference Protocol V2, KServe V1 and TorchServe's inference routes, batched together.",
        },
        "servers": [{"url": "/"}],
        "paths": {**_v2_paths(plan), **_v1_paths(plan), **_torchserve_paths(plan), **_own_paths()},
        "components": {
            "schemas": {
                "Error": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
                "TorchServeError": {
                    "type": "object",
                    "required": ["code", "type", "message"],
                    "properties": {
                        "code": {"type": "integer"},
                        "type": {"type": "string"},
                        "message": {"type": "string"},
                    },
                },
                "InferRequest": infer_request(plan),
                "InferResponse": infer_response(plan),
                "PredictRequest": predict_request(plan),
                "PredictResponse": {
                    "type": "object",
                    "required": ["predictions"],
                    "properties": {"predictions": {"type": "array"}},
                },
            }
        },
    }


def _v2_paths(plan: Plan) -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/v2": _get("Server metadata", "v2"),
        "/v2/health/live": _get("The process is there", "v2"),
        "/v2/health/ready": _get("Ready for requests", "v2", {503}),
        "/v2/models": _get("The names of the models: one", "v2"),
        "/v2/repository/index": {
            "post": {
                "summary": "The model and its state",
                "tags": ["v2"],
                "requestBody": {
                    "content": {
                        JSON: {
                            "schema": {
                                "type": "object",
                                "properties": {"ready": {"type": "boolean"}},
                                "additionalProperties": False,
                            }
                        }
                    }
                },
                "responses": _responses("v2", {400, 408, 413}, {"type": "array"}),
            }
        },
    }
    for path in (f"/v2/models/{plan.model}", f"/v2/models/{plan.model}/versions/{plan.version}"):
        paths[path] = _get("Model metadata, and what is loaded", "v2", {503})
        paths[f"{path}/ready"] = _get("Ready for requests", "v2", {503})
        paths[f"{path}/config"] = _get("Triton's model configuration", "v2", {503})
        paths[f"{path}/stats"] = _get("Not here: see /metrics", "v2", {501}, well=False)
        content = {
            JSON: {"schema": _ref("InferRequest"), "example": example_v2(plan)},
            JSON_AND_BINARY: {"schema": {"description": BINARY}},
            **_media("v2", plan),
        }
        paths[f"{path}/infer"] = {"post": _inference("Infer", "v2", plan, content, _ref("InferResponse"))}
    for action in ("load", "unload"):
        paths[f"/v2/repository/models/{plan.model}/{action}"] = {
            "post": {"summary": "Not here", "tags": ["v2"], "responses": _responses("v2", {501}, None)}
        }
    return paths


def _v1_paths(plan: Plan) -> dict[str, Any]:
    content = {JSON: {"schema": _ref("PredictRequest"), "example": example_v1(plan)}}
    explain = {"summary": "Not here", "tags": ["v1"], "responses": _responses("v1", {501}, None)}
    return {
        "/v1/models": _get("The names of the models: one", "v1"),
        f"/v1/models/{plan.model}": _get("Ready for requests", "v1", {503}),
        f"/v1/models/{plan.model}:predict": {
            "post": _inference("Predict", "v1", plan, content, _ref("PredictResponse"))
        },
        f"/v1/models/{plan.model}:explain": {"post": explain},
    }


def _torchserve_paths(plan: Plan) -> dict[str, Any]:
    content = {
        JSON: {
            "schema": {"anyOf": [_ref("PredictRequest"), rows_schema(plan)]},
            "example": example_v1(plan)["instances"],
        },
        FORM: {
            "schema": {
                "description": "data: the body that would be sent alone, or several media; or the inputs by their names.",
                "anyOf": [_form(["data"]), _form(list(plan.inputs))],
            }
        },
        **_media("torchserve", plan),
    }
    explain = {"summary": "Not here", "tags": ["torchserve"], "responses": _responses("torchserve", {501}, None)}
    paths: dict[str, Any] = {
        "/ping": _get("Health", "torchserve", {503}),
        "/invocations": {"post": _invocation(plan, content)},
        f"/explanations/{plan.model}": {"post": explain, "put": explain, "get": explain},
        "/models": _get("The models: one", "torchserve", {503}),
    }
    for path in (f"/models/{plan.model}", f"/models/{plan.model}/{plan.version}"):
        paths[path] = _get("Describe the model", "torchserve", {503}, {"type": "array"})
    for path in (f"/predictions/{plan.model}", f"/predictions/{plan.model}/{plan.version}"):
        paths[path] = {method: _inference("Predict", "torchserve", plan, content, {}) for method in ("post", "put")}
        # with a body too, which OpenAPI has no words for on a GET; without one it is refused
        paths[path]["get"] = {
            "summary": "Predict",
            "tags": ["torchserve"],
            "responses": _responses("torchserve", set(REFUSALS), {}),
        }
    return paths


def _form(names: list[str]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": names,
        "additionalProperties": False,
        "properties": {name: {} for name in names},
    }


def _invocation(plan: Plan, content: dict[str, Any]) -> dict[str, Any]:
    """TorchServe's older route, on which the model stands in the query, where it stands at all."""
    name = {
        "name": "model_name",
        "in": "query",
        "schema": {"const": plan.model},
        "description": "Absent: the one model.",
    }
    responses = _responses("torchserve", {*REFUSALS, ANOTHER_MODEL}, {}, data_answer(offered_forms("torchserve", plan)))
    return {**_inference("Predict", "torchserve", plan, content, {}), "parameters": [name], "responses": responses}


def _own_paths() -> dict[str, Any]:
    text = {"200": {"description": "Prometheus text", "content": {"text/plain": {"schema": {"type": "string"}}}}}
    return {
        "/": {**_get("Alive", "server"), "options": _get("This document", "server", {503})["get"]},
        "/openapi.json": _get("This document", "server", {503}),
        "/metrics": {"get": {"summary": "Metrics", "tags": ["server"], "responses": text}},
    }


def _inference(
    summary: str, dialect: Dialect, plan: Plan, content: dict[str, Any], answer: dict[str, Any]
) -> dict[str, Any]:
    return {
        "summary": summary,
        "tags": [dialect],
        "requestBody": {"required": True, "content": content},
        "responses": _responses(dialect, set(REFUSALS), answer, data_answer(offered_forms(dialect, plan))),
    }


def _get(
    summary: str, tag: str, refusals: set[int] | None = None, answer: dict[str, Any] | None = None, *, well: bool = True
) -> dict[str, Any]:
    schema = (answer or OPEN) if well else None
    return {"get": {"summary": summary, "tags": [tag], "responses": _responses(tag, refusals or set(), schema)}}


def _responses(
    tag: str, refusals: set[int], answer: dict[str, Any] | None, more: dict[str, Any] | None = None
) -> dict[str, Any]:
    """200 with this schema (None: never), and each refusal in the dialect's form; health answers say 503 in their own."""
    responses: dict[str, Any] = {}
    if answer is not None:
        responses["200"] = {"description": "Well", "content": {JSON: {"schema": answer}, **(more or {})}}
    error = _ref("TorchServeError" if tag == "torchserve" else "Error")
    for status in sorted(refusals):
        schema = error if len(refusals) > 1 or status != 503 else OPEN
        words = {ANOTHER_MODEL: "Another model's name.", 501: NOT_HERE, **REFUSALS}[status]
        responses[str(status)] = {"description": words, "content": {JSON: {"schema": schema}}}
        if status in (429, 503):
            responses[str(status)]["headers"] = {"Retry-After": {"schema": {"type": "integer"}}}
    return responses


def _media(dialect: Dialect, plan: Plan) -> dict[str, Any]:
    """The types a route takes besides its document and forms, each a body of bytes."""
    content: dict[str, Any] = {}
    for kind in taken_types(dialect, plan):
        if kind not in (JSON, FORM):
            is_file = any(kind in types for types in FORM_TYPES.values())
            content[kind] = {"schema": {"description": "A file of arrays." if is_file else "The medium itself."}}
    return content


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}
