"""tritonclient.grpc and its aio twin, as their users write them. This client sends and reads raw contents alone."""

from __future__ import annotations

import contextlib
import queue
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from reporting import Order, Report, main, to_json
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient as AioClient
from tritonclient.utils import InferenceServerException

WAIT_S = 30


async def make_report(order: Order) -> Report:
    """Every attempt: by the client that blocks, then by the one that is awaited."""
    report = Report()
    ask_blocking(report, order)
    await ask_awaiting(report, order)
    return report


def ask_blocking(report: Report, order: Order) -> None:
    """By one client for each model."""
    clients = {name: InferenceServerClient(address) for name, address in order.servers.items()}
    for datatype in order.tensors:
        report.attempt(datatype, lambda datatype=datatype: flip(clients["flip"], order, datatype))
    ask_what_is_served(report, clients["mlp"])
    ask_mlp(report, clients["mlp"], order)
    ask_what_is_refused(report, clients["mlp"], order)
    report.attempt("texts", lambda: embed(clients["text"], order))
    report.attempt("pictures", lambda: classify(clients["colour"], order))
    for client in clients.values():
        client.close()


def make_flip_inputs(order: Order) -> list[InferInput]:
    """All thirteen."""
    inputs = []
    for name, array in order.tensors.items():
        inputs.append(InferInput(name.lower(), list(array.shape), name))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def read_flip_output(result: Any, datatype: str) -> dict[str, Any]:
    """The one output, which must be the only one."""
    (output,) = result.get_response().outputs
    return to_json(result.as_numpy(output.name)) | {"datatype": output.datatype, "asked": datatype}


def flip(client: InferenceServerClient, order: Order, datatype: str) -> dict[str, Any]:
    """One output of one datatype."""
    outputs = [InferRequestedOutput(f"{datatype.lower()}_flipped")]
    return read_flip_output(client.infer("flip", make_flip_inputs(order), outputs=outputs), datatype)


def ask_what_is_served(report: Report, client: InferenceServerClient) -> None:
    """Health, metadata, configuration, index, as JSON where the client offers it."""
    report.attempt("server is live", client.is_server_live)
    report.attempt("server is ready", client.is_server_ready)
    report.attempt("model is ready", lambda: client.is_model_ready("mlp"))
    report.attempt("version is ready", lambda: client.is_model_ready("mlp", "1"))
    report.attempt("server metadata", lambda: client.get_server_metadata(as_json=True))
    report.attempt("model metadata", lambda: client.get_model_metadata("mlp", as_json=True))
    report.attempt("model configuration", lambda: client.get_model_config("mlp", as_json=True))
    report.attempt("repository index", lambda: client.get_model_repository_index(as_json=True))


def row_input(rows: np.ndarray, name: str = "x", datatype: str = "FP32") -> InferInput:
    """The input of `mlp`."""
    given = InferInput(name, list(rows.shape), datatype)
    given.set_data_from_numpy(rows)
    return given


def predict(client: InferenceServerClient, given: InferInput, **options: Any) -> dict[str, Any]:
    """The answer of `mlp`."""
    return to_json(client.infer("mlp", [given], **options).as_numpy("y"))


def ask_mlp(report: Report, client: InferenceServerClient, order: Order) -> None:
    """An ordinary model with every option that has a meaning here."""
    rows = order.rows
    report.attempt("a row", lambda: predict(client, row_input(rows)))
    report.attempt("a row of a version", lambda: predict(client, row_input(rows), model_version="1"))
    report.attempt("more rows than a batch has", lambda: predict(client, row_input(np.repeat(rows, 100, axis=0))))
    report.attempt("request id", lambda: client.infer("mlp", [row_input(rows)], request_id="id-7").get_response().id)
    report.attempt(
        "parameters", lambda: predict(client, row_input(rows), parameters={"tenant": "a", "n": 3, "q": 0.5, "b": True})
    )
    report.attempt("priority and timeout", lambda: predict(client, row_input(rows), priority=1, timeout=20_000_000))
    report.attempt("client timeout", lambda: predict(client, row_input(rows), client_timeout=WAIT_S))
    report.attempt("headers", lambda: predict(client, row_input(rows), headers={"x-request-id": "a"}))
    for kind in ("gzip", "deflate"):
        report.attempt(kind, lambda kind=kind: predict(client, row_input(rows), compression_algorithm=kind))
    report.attempt("async_infer", lambda: to_json(call_back(client, rows)))


def call_back(client: InferenceServerClient, rows: np.ndarray) -> np.ndarray:
    """By the client's own thread."""
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.async_infer("mlp", [row_input(rows)], callback=lambda result, error: done.put((result, error)))
    result, error = done.get(timeout=WAIT_S)
    if error is not None:
        raise error
    return result.as_numpy("y")


def stream(client: InferenceServerClient, rows: np.ndarray) -> np.ndarray:
    """One request over a stream."""
    done: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(callback=lambda result, error: done.put((result, error)))
    try:
        with contextlib.suppress(InferenceServerException):  # when the stream was refused before: the callback says why
            client.async_stream_infer("mlp", [row_input(rows)])
        result, error = done.get(timeout=WAIT_S)
    finally:
        client.stop_stream()
    if error is not None:
        raise error
    return result.as_numpy("y")


def ask_what_is_refused(report: Report, client: InferenceServerClient, order: Order) -> None:
    """Each must raise the client's own exception with the server's sentence."""
    rows = order.rows
    report.attempt("refused: shape", lambda: predict(client, row_input(rows[:, :9])))
    report.attempt("refused: datatype", lambda: predict(client, row_input(rows.astype(np.float64), datatype="FP64")))
    report.attempt("refused: name", lambda: predict(client, row_input(rows, name="z")))
    report.attempt("refused: output", lambda: predict(client, row_input(rows), outputs=[InferRequestedOutput("z")]))
    classes = [InferRequestedOutput("y", class_count=3)]
    report.attempt("refused: classification", lambda: predict(client, row_input(rows), outputs=classes))
    report.attempt("refused: sequence", lambda: predict(client, row_input(rows), sequence_id=3, sequence_start=True))
    report.attempt("refused: model", lambda: client.infer("other", [row_input(rows)]))
    report.attempt("refused: version", lambda: client.infer("mlp", [row_input(rows)], model_version="2"))
    report.attempt("refused: timeout", lambda: predict(client, row_input(np.repeat(rows, 500, axis=0)), timeout=1))
    report.attempt("refused: another model is ready", lambda: client.is_model_ready("other"))
    report.attempt("refused: statistics", lambda: client.get_inference_statistics("mlp"))
    report.attempt("refused: load", lambda: client.load_model("mlp"))
    report.attempt("refused: shared memory", lambda: client.register_system_shared_memory("a", "/a", 64))
    report.attempt("refused: trace settings", client.get_trace_settings)
    report.attempt("refused: stream", lambda: to_json(stream(client, rows)))


def embed(client: InferenceServerClient, order: Order) -> dict[str, Any]:
    """BYTES in."""
    given = InferInput("text", [len(order.texts)], "BYTES")
    given.set_data_from_numpy(np.array(order.texts, np.object_))
    return to_json(client.infer("text", [given]).as_numpy("embedding"))


def classify(client: InferenceServerClient, order: Order) -> dict[str, Any]:
    """BYTES in that are no text, and BYTES out."""
    given = InferInput("image", [len(order.pictures)], "BYTES")
    given.set_data_from_numpy(np.array(order.pictures, np.object_))
    outputs = [InferRequestedOutput(name) for name in ("labels", "scores")]
    result = client.infer("colour", [given], outputs=outputs)
    return {name: to_json(result.as_numpy(name)) for name in ("labels", "scores")}


async def ask_awaiting(report: Report, order: Order) -> None:
    """The twin: the datatypes again, a row in each way, a refusal and a stream."""
    rows = order.rows
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(AioClient(address)) for name, address in order.servers.items()}
        client = clients["mlp"]
        for datatype in order.tensors:
            await report.attempt_later(
                f"aio: {datatype}", lambda datatype=datatype: flip_later(clients["flip"], order, datatype)
            )
        await report.attempt_later("aio: server is live", client.is_server_live)
        await report.attempt_later("aio: server is ready", client.is_server_ready)
        await report.attempt_later("aio: model is ready", lambda: client.is_model_ready("mlp"))
        await report.attempt_later("aio: a row", lambda: predict_later(client, row_input(rows)))
        await report.attempt_later(
            "aio: gzip", lambda: predict_later(client, row_input(rows), compression_algorithm="gzip")
        )
        await report.attempt_later("aio: refused: shape", lambda: predict_later(client, row_input(rows[:, :9])))
        await report.attempt_later("aio: refused: model", lambda: client.infer("other", [row_input(rows)]))
        await report.attempt_later("aio: refused: stream", lambda: stream_later(client, rows))


async def flip_later(client: AioClient, order: Order, datatype: str) -> dict[str, Any]:
    """One output of one datatype."""
    outputs = [InferRequestedOutput(f"{datatype.lower()}_flipped")]
    return read_flip_output(await client.infer("flip", make_flip_inputs(order), outputs=outputs), datatype)


async def predict_later(client: AioClient, given: InferInput, **options: Any) -> dict[str, Any]:
    """The answer of `mlp`."""
    return to_json((await client.infer("mlp", [given], **options)).as_numpy("y"))


async def stream_later(client: AioClient, rows: np.ndarray) -> dict[str, Any]:
    """One request over a stream."""

    async def requests() -> Any:
        yield {"model_name": "mlp", "inputs": [row_input(rows)]}

    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise error
        return to_json(result.as_numpy("y"))
    raise RuntimeError("the stream ended without an answer")


if __name__ == "__main__":
    main(make_report)
