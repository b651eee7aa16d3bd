"""kserve's InferenceGRPCClient, as its users write it: typed contents from lists, raw contents from arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput
from reporting import Order, Report, main, to_json

RAW_ONLY = ("FP16", "BF16")
"""Datatypes without typed contents in the protocol."""


async def make_report(order: Order) -> Report:
    """Every attempt, by one client for each model."""
    report = Report()
    clients = {name: InferenceGRPCClient(address) for name, address in order.servers.items()}
    mlp = clients["mlp"]
    for datatype in order.tensors:
        name = f"{datatype} as bytes"
        await report.attempt_later(name, lambda datatype=datatype: flip(clients["flip"], order, datatype))
    for datatype in order.tensors:
        if datatype not in RAW_ONLY:
            name = f"{datatype} as a list"
            await report.attempt_later(name, lambda datatype=datatype: flip_typed(clients["typed"], order, datatype))
    await report.attempt_later("server is live", mlp.is_server_live)
    await report.attempt_later("server is ready", mlp.is_server_ready)
    await report.attempt_later("model is ready", lambda: mlp.is_model_ready("mlp"))
    await ask_mlp(report, mlp, order)
    await ask_text(report, clients["text"], order)
    for is_list in (False, True):
        name = "pictures, list" if is_list else "pictures, array"
        await report.attempt_later(name, lambda is_list=is_list: classify(clients["colour"], order, is_list))
    for client in clients.values():
        await client.close()
    return report


async def flip(client: InferenceGRPCClient, order: Order, datatype: str) -> dict[str, Any]:
    """One output of one datatype. All inputs are given as bytes, BF16 included, which the client has no array for."""
    inputs = [InferInput(name.lower(), list(array.shape), name) for name, array in order.tensors.items()]
    raw = [array.tobytes() for array in order.tensors.values()]
    outputs = [RequestedOutput(f"{datatype.lower()}_flipped")]
    result = await client.infer(InferRequest("flip", inputs, raw_inputs=raw, request_outputs=outputs))
    (output,) = result.outputs
    return to_json(output.as_numpy())


async def flip_typed(client: InferenceGRPCClient, order: Order, datatype: str) -> dict[str, Any]:
    """One output of one datatype, as lists both ways: typed contents."""
    arrays = {name: array for name, array in order.tensors.items() if name not in RAW_ONLY}
    inputs = [
        InferInput(name.lower(), list(array.shape), name, data=array.flatten().tolist())
        for name, array in arrays.items()
    ]
    outputs = [RequestedOutput(f"{datatype.lower()}_flipped")]
    result = await client.infer(InferRequest("typed", inputs, request_outputs=outputs))
    (output,) = result.outputs
    if not isinstance(output.data, list) or not output.data:
        raise RuntimeError(f"typed contents were sent, raw ones came: {output}")
    return to_json(output.as_numpy())


async def predict(client: InferenceGRPCClient, given: InferInput, **options: Any) -> dict[str, Any]:
    """The answer of `mlp`, and the id it came with."""
    result = await client.infer(InferRequest(options.pop("model", "mlp"), [given], **options))
    return to_json(result.outputs[0].as_numpy()) | {"id": result.id}


def row_input(rows: np.ndarray, name: str = "x") -> InferInput:
    """As an array, which travels raw."""
    given = InferInput(name, list(rows.shape), "FP32")
    given.set_data_from_numpy(rows)
    return given


async def ask_mlp(report: Report, client: InferenceGRPCClient, order: Order) -> None:
    """Each way to give the data, and what is refused."""
    rows = order.rows
    ways = {
        "array": row_input(rows),
        "array as data": InferInput("x", [1, 10], "FP32", data=rows),
        "list": InferInput("x", [1, 10], "FP32", data=rows.flatten().tolist()),
    }
    for name, given in ways.items():
        await report.attempt_later(name, lambda given=given: predict(client, given, request_id="id-7"))
    parameters = {"tenant": "a", "n": 3, "b": True}
    await report.attempt_later(
        "parameters", lambda: predict(client, row_input(rows), request_id="id-7", parameters=parameters)
    )
    await report.attempt_later(
        "a version", lambda: predict(client, row_input(rows), request_id="id-7", model_version="1")
    )
    await report.attempt_later("refused: shape", lambda: predict(client, row_input(rows[:, :9])))
    await report.attempt_later("refused: name", lambda: predict(client, row_input(rows, name="z")))
    await report.attempt_later("refused: model", lambda: predict(client, row_input(rows), model="other"))
    await report.attempt_later("refused: another model is ready", lambda: client.is_model_ready("other"))


async def ask_text(report: Report, client: InferenceGRPCClient, order: Order) -> None:
    """BYTES as a list, and as an array."""
    as_array = InferInput("text", [len(order.texts)], "BYTES")
    as_array.set_data_from_numpy(np.array(order.texts, np.object_))
    as_list = InferInput("text", [len(order.texts)], "BYTES", data=list(order.texts))
    for name, given in {"texts, array": as_array, "texts, list": as_list}.items():
        await report.attempt_later(name, lambda given=given: predict(client, given, model="text"))


async def classify(client: InferenceGRPCClient, order: Order, is_list: bool) -> dict[str, Any]:
    """BYTES in that are no text, and BYTES out."""
    given = InferInput("image", [len(order.pictures)], "BYTES", data=list(order.pictures) if is_list else None)
    if not is_list:
        given.set_data_from_numpy(np.array(order.pictures, np.object_))
    outputs = [RequestedOutput(name) for name in ("labels", "scores")]
    result = await client.infer(InferRequest("colour", [given], request_outputs=outputs))
    return {output.name: to_json(output.as_numpy()) for output in result.outputs}


if __name__ == "__main__":
    main(make_report)
