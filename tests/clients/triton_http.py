"""tritonclient.http, as its users write it."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import requests
from reporting import Order, Report, main, to_json
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput


def make_report(order: Order) -> Report:
    """Every attempt, by one client for each model."""
    report = Report()
    clients = {name: InferenceServerClient(address) for name, address in order.servers.items()}
    for case in order.cases:
        report.attempt(case["name"], lambda case=case: flip(clients["flip"], order, case))
    report.attempt("flip, all outputs", lambda: flip_all(clients["flip"], order))
    ask_what_is_served(report, clients["mlp"])
    ask_mlp(report, clients["mlp"], order)
    ask_what_is_refused(report, clients["mlp"], order)
    for is_binary in (True, False):
        form = "binary" if is_binary else "JSON"
        report.attempt(f"texts, {form}", lambda b=is_binary: embed(clients["text"], order, b))
    pictures = np.array(order.pictures, np.object_)
    as_text = np.array([base64.b64encode(picture).decode() for picture in order.pictures], np.object_)
    report.attempt("pictures, binary", lambda: classify(clients["colour"], pictures, True, True))
    report.attempt("pictures, labels as JSON", lambda: classify(clients["colour"], pictures, True, False))
    report.attempt("pictures, base64 in JSON", lambda: classify(clients["colour"], as_text, False, True))
    for client in clients.values():
        client.close()
    return report


def make_flip_inputs(order: Order, case: dict[str, Any]) -> list[InferInput]:
    """All thirteen inputs: the case's in its form, the others as bytes."""
    inputs = []
    for name, array in order.tensors.items():
        given = InferInput(name.lower(), list(array.shape), name)
        given.set_data_from_numpy(array, binary_data=case["sent"] == "binary" or name != case["datatype"])
        inputs.append(given)
    return inputs


def make_flip_outputs(case: dict[str, Any]) -> list[InferRequestedOutput]:
    """Only the case's output."""
    return [InferRequestedOutput(f"{case['datatype'].lower()}_flipped", binary_data=case["asked"] == "binary")]


def read_flip_output(result: Any, case: dict[str, Any]) -> dict[str, Any]:
    """The one output, which must be the only one."""
    (output,) = result.get_response()["outputs"]
    is_binary = "data" not in output
    return to_json(result.as_numpy(output["name"])) | {"came": "binary" if is_binary else "json"}


def flip(client: InferenceServerClient, order: Order, case: dict[str, Any]) -> dict[str, Any]:
    """One datatype in one form."""
    result = client.infer("flip", make_flip_inputs(order, case), outputs=make_flip_outputs(case))
    return read_flip_output(result, case)


def flip_all(client: InferenceServerClient, order: Order) -> dict[str, Any]:
    """As the client does by itself: everything binary, no outputs named."""
    result = client.infer("flip", make_flip_inputs(order, {"sent": "binary"}))
    return {name: to_json(result.as_numpy(f"{name.lower()}_flipped")) for name in order.tensors}


def ask_what_is_served(report: Report, client: InferenceServerClient) -> None:
    """Health, metadata, configuration, index."""
    report.attempt("server is live", client.is_server_live)
    report.attempt("server is ready", client.is_server_ready)
    report.attempt("model is ready", lambda: client.is_model_ready("mlp"))
    report.attempt("version is ready", lambda: client.is_model_ready("mlp", "1"))
    report.attempt("another model is ready", lambda: client.is_model_ready("other"))
    report.attempt("server metadata", client.get_server_metadata)
    report.attempt("model metadata", lambda: client.get_model_metadata("mlp"))
    report.attempt("version metadata", lambda: client.get_model_metadata("mlp", "1"))
    report.attempt("model configuration", lambda: client.get_model_config("mlp"))
    report.attempt("repository index", client.get_model_repository_index)


def row_input(rows: np.ndarray, binary_data: bool = True, name: str = "x", datatype: str = "FP32") -> InferInput:
    """The input of `mlp`."""
    given = InferInput(name, list(rows.shape), datatype)
    given.set_data_from_numpy(rows, binary_data=binary_data)
    return given


def predict(client: InferenceServerClient, given: InferInput, **options: Any) -> dict[str, Any]:
    """The answer of `mlp`."""
    return to_json(client.infer("mlp", [given], **options).as_numpy("y"))


def ask_mlp(report: Report, client: InferenceServerClient, order: Order) -> None:
    """An ordinary model with every option that has a meaning here."""
    rows = order.rows
    as_json = [InferRequestedOutput("y", binary_data=False)]
    report.attempt("a row", lambda: predict(client, row_input(rows)))
    report.attempt("a row, JSON", lambda: predict(client, row_input(rows, binary_data=False), outputs=as_json))
    report.attempt("a row of a version", lambda: predict(client, row_input(rows), model_version="1"))
    report.attempt("more rows than a batch has", lambda: predict(client, row_input(np.repeat(rows, 100, axis=0))))
    report.attempt("large JSON", lambda: predict(client, row_input(np.repeat(rows, 1000, axis=0), False)))
    strided = np.ascontiguousarray(rows.T).T
    report.attempt("a row that is not contiguous", lambda: predict(client, row_input(strided)))
    report.attempt("request id", lambda: client.infer("mlp", [row_input(rows)], request_id="id-7").get_response()["id"])
    report.attempt(
        "parameters", lambda: predict(client, row_input(rows), parameters={"tenant": "a", "n": 3, "q": 0.5, "b": True})
    )
    report.attempt("priority and timeout", lambda: predict(client, row_input(rows), priority=1, timeout=20_000_000))
    for kind in ("gzip", "deflate"):
        both = {"request_compression_algorithm": kind, "response_compression_algorithm": kind}
        report.attempt(f"{kind}, binary", lambda both=both: predict(client, row_input(rows), **both))
        report.attempt(
            f"{kind}, JSON", lambda both=both: predict(client, row_input(rows, False), outputs=as_json, **both)
        )
    report.attempt(
        "async_infer", lambda: to_json(client.async_infer("mlp", [row_input(rows)]).get_result().as_numpy("y"))
    )
    report.attempt("query parameters", lambda: predict(client, row_input(rows), query_params={"trace": "on"}))
    report.attempt("a body of one's own", lambda: post_body(order.servers["mlp"], rows))


def post_body(address: str, rows: np.ndarray) -> dict[str, Any]:
    """The client's body sent by another library, its answer read by the client."""
    body, json_size = InferenceServerClient.generate_request_body([row_input(rows)])
    length = "Inference-Header-Content-Length"
    answer = requests.post(f"http://{address}/v2/models/mlp/infer", body, headers={length: str(json_size)}, timeout=30)
    read = InferenceServerClient.parse_response_body(answer.content, header_length=int(answer.headers[length]))
    return to_json(read.as_numpy("y"))


def ask_what_is_refused(report: Report, client: InferenceServerClient, order: Order) -> None:
    """Each must raise the client's own exception with the server's sentence."""
    rows = order.rows
    report.attempt("refused: shape", lambda: predict(client, row_input(rows[:, :9])))
    report.attempt("refused: datatype", lambda: predict(client, row_input(rows.astype(np.float64), datatype="FP64")))
    report.attempt("refused: name", lambda: predict(client, row_input(rows, name="z")))
    report.attempt("refused: NaN in JSON", lambda: predict(client, row_input(rows * np.nan, binary_data=False)))
    report.attempt("NaN as bytes", lambda: predict(client, row_input(rows * np.nan)))
    as_json = [InferRequestedOutput("y", binary_data=False)]
    report.attempt("NaN as bytes, JSON back", lambda: predict(client, row_input(rows * np.nan), outputs=as_json))
    report.attempt("refused: output", lambda: predict(client, row_input(rows), outputs=[InferRequestedOutput("z")]))
    classes = [InferRequestedOutput("y", class_count=3)]
    report.attempt("refused: classification", lambda: predict(client, row_input(rows), outputs=classes))
    report.attempt("refused: sequence", lambda: predict(client, row_input(rows), sequence_id=3, sequence_start=True))
    report.attempt("refused: model", lambda: client.infer("other", [row_input(rows)]))
    report.attempt("refused: version", lambda: client.infer("mlp", [row_input(rows)], model_version="2"))
    report.attempt("refused: timeout", lambda: predict(client, row_input(np.repeat(rows, 500, axis=0)), timeout=1))
    report.attempt("refused: metadata of another model", lambda: client.get_model_metadata("other"))
    report.attempt("refused: statistics", lambda: client.get_inference_statistics("mlp"))
    report.attempt("refused: load", lambda: client.load_model("mlp"))
    report.attempt("refused: unload", lambda: client.unload_model("mlp"))
    report.attempt("refused: shared memory", lambda: client.register_system_shared_memory("a", "/a", 64))
    report.attempt("refused: trace settings", client.get_trace_settings)


def embed(client: InferenceServerClient, order: Order, is_binary: bool) -> dict[str, Any]:
    """BYTES in: str or bytes elements of an object array."""
    texts = np.array([text.encode() if is_binary else text for text in order.texts], np.object_)
    given = InferInput("text", [len(texts)], "BYTES")
    given.set_data_from_numpy(texts, binary_data=is_binary)
    outputs = [InferRequestedOutput("embedding", binary_data=is_binary)]
    return to_json(client.infer("text", [given], outputs=outputs).as_numpy("embedding"))


def classify(
    client: InferenceServerClient, pictures: np.ndarray, sends_binary: bool, asks_binary: bool
) -> dict[str, Any]:
    """BYTES in that are no text, and BYTES out."""
    given = InferInput("image", list(pictures.shape), "BYTES")
    given.set_data_from_numpy(pictures, binary_data=sends_binary)
    outputs = [InferRequestedOutput(name, binary_data=asks_binary) for name in ("labels", "scores")]
    result = client.infer("colour", [given], outputs=outputs)
    return {name: to_json(result.as_numpy(name)) for name in ("labels", "scores")}


if __name__ == "__main__":
    main(make_report)
