"""kserve's InferenceRESTClient, as its users write it, for both protocols."""

from __future__ import annotations

from typing import Any

import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from reporting import Order, Report, main, to_json

LENGTH = "inference-header-content-length"


async def make_report(order: Order) -> Report:
    """Every attempt, by one client for each protocol."""
    report = Report()
    urls = {name: f"http://{address}" for name, address in order.servers.items()}
    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    async with v1, v2:
        for case in order.cases:
            await report.attempt_later(case["name"], lambda case=case: flip(v2, urls["flip"], order, case))
        for protocol, client in (("V1", v1), ("V2", v2)):
            await ask_health(report, client, urls["mlp"], protocol)
        await ask_v1(report, v1, urls, order)
        await ask_v2(report, v2, urls, order)
    return report


def make_flip_inputs(order: Order, case: dict[str, Any]) -> list[InferInput]:
    """All thirteen: the case's in its form, the others as bytes. The client knows no BF16 array: a list is its only way."""
    inputs = []
    for name, array in order.tensors.items():
        if name == "BF16":
            values = array.astype(np.float64).flatten().tolist()
            inputs.append(InferInput(name.lower(), list(array.shape), name, data=values))
            if case["sent"] == "binary" and case["datatype"] == "BF16":
                inputs[-1].set_data_from_numpy(array)
            continue
        inputs.append(InferInput(name.lower(), list(array.shape), name))
        inputs[-1].set_data_from_numpy(array, binary_data=case["sent"] == "binary" or name != case["datatype"])
    return inputs


def make_flip_outputs(case: dict[str, Any]) -> list[RequestedOutput]:
    """Only the case's output."""
    return [RequestedOutput(f"{case['datatype'].lower()}_flipped", {"binary_data": case["asked"] == "binary"})]


async def flip(client: InferenceRESTClient, url: str, order: Order, case: dict[str, Any]) -> dict[str, Any]:
    """One datatype in one form; the client itself turns bytes into a list, so the answer's header says what came."""
    request = InferRequest("flip", make_flip_inputs(order, case), request_outputs=make_flip_outputs(case))
    headers: dict[str, str] = {}
    result = await client.infer(url, request, model_name="flip", response_headers=headers)
    (output,) = result.outputs
    came = {"came": "binary" if LENGTH in headers else "json"}
    if output.datatype == "BF16":  # as_numpy has no dtype for it
        return {"dtype": "bfloat16", "shape": output.shape, "values": output.data} | came
    return to_json(output.as_numpy()) | came


async def ask_health(report: Report, client: InferenceRESTClient, url: str, protocol: str) -> None:
    """Liveness and readiness."""
    await report.attempt_later(f"{protocol}: server is live", lambda: client.is_server_live(url))
    await report.attempt_later(f"{protocol}: server is ready", lambda: client.is_server_ready(url))
    await report.attempt_later(f"{protocol}: model is ready", lambda: client.is_model_ready(url, "mlp"))
    await report.attempt_later(f"{protocol}: another model is ready", lambda: client.is_model_ready(url, "other"))


async def ask_v1(report: Report, client: InferenceRESTClient, urls: dict[str, str], order: Order) -> None:
    """`predict` by rows and by columns."""
    url, rows = urls["mlp"], order.rows.tolist()
    await report.attempt_later("V1: instances", lambda: client.infer(url, {"instances": rows}, model_name="mlp"))
    named = [{"x": row} for row in rows]
    await report.attempt_later("V1: named rows", lambda: client.infer(url, {"instances": named}, model_name="mlp"))
    await report.attempt_later("V1: columns", lambda: client.infer(url, {"inputs": {"x": rows}}, model_name="mlp"))
    texts = {"instances": order.texts}
    await report.attempt_later("V1: texts", lambda: client.infer(urls["text"], texts, model_name="text"))
    await report.attempt_later("V1: refused: no rows", lambda: client.infer(url, {"instances": []}, model_name="mlp"))
    await report.attempt_later("V1: refused: model", lambda: client.infer(url, {"instances": rows}, model_name="other"))
    await report.attempt_later("V1: refused: explain", lambda: client.explain(url, "mlp", {"instances": rows}))


def row_request(rows: Any, binary_data: bool = True, name: str = "x", **options: Any) -> InferRequest:
    """A request to `mlp`."""
    given = InferInput(name, list(rows.shape), "FP32")
    given.set_data_from_numpy(rows, binary_data=binary_data)
    return InferRequest("mlp", [given], **options)


async def predict(client: InferenceRESTClient, url: str, request: InferRequest, **options: Any) -> dict[str, Any]:
    """The answer of `mlp`, and the id it came with."""
    result = await client.infer(url, request, model_name="mlp", **options)
    return to_json(result.outputs[0].as_numpy()) | {"id": result.id}


async def ask_v2(report: Report, client: InferenceRESTClient, urls: dict[str, str], order: Order) -> None:
    """`infer` with each way to give the data, and what is refused."""
    url, rows = urls["mlp"], order.rows
    flat = InferRequest("mlp", [InferInput("x", [1, 10], "FP32", data=rows.flatten().tolist())], request_id="id-7")
    nested = InferRequest("mlp", [InferInput("x", [1, 10], "FP32", data=rows.tolist())], request_id="id-7")
    array = InferRequest("mlp", [InferInput("x", [1, 10], "FP32", data=rows)], request_id="id-7")
    binary = row_request(rows, request_id="id-7")
    both = row_request(rows, request_id="id-7", parameters={"binary_data_output": True, "tenant": "a"})
    numpy_json = row_request(rows, binary_data=False, request_id="id-7")
    requests = {"flat list": flat, "nested list": nested, "array as data": array, "array, binary": binary}
    requests |= {"array, binary both ways": both, "array, JSON": numpy_json}
    for name, request in requests.items():
        await report.attempt_later(f"V2: {name}", lambda request=request: predict(client, url, request))
    as_dict = {"inputs": [{"name": "x", "shape": [1, 10], "datatype": "FP32", "data": rows.tolist()}], "id": "id-7"}
    await report.attempt_later("V2: a dict", lambda: predict(client, url, as_dict))
    await report.attempt_later(
        "V2: no id of one's own",
        lambda: predict(client, url, row_request(rows)),
    )
    await report.attempt_later("V2: with headers", lambda: predict(client, url, binary, headers={"X-Request-Id": "a"}))
    for is_binary in (True, False):
        form = "binary" if is_binary else "JSON"
        await report.attempt_later(f"V2: texts, {form}", lambda b=is_binary: embed(client, urls["text"], order, b))
        await report.attempt_later(
            f"V2: pictures, {form}", lambda b=is_binary: classify(client, urls["colour"], order, b)
        )
    await report.attempt_later("V2: refused: shape", lambda: predict(client, url, row_request(rows[:, :9])))
    await report.attempt_later("V2: refused: name", lambda: predict(client, url, row_request(rows, name="z")))
    await report.attempt_later("V2: refused: model", lambda: client.infer(url, binary, model_name="other"))


async def embed(client: InferenceRESTClient, url: str, order: Order, is_binary: bool) -> dict[str, Any]:
    """BYTES in: str or bytes elements of an object array."""
    given = InferInput("text", [len(order.texts)], "BYTES")
    given.set_data_from_numpy(np.array(order.texts, np.object_), binary_data=is_binary)
    output = RequestedOutput("embedding", {"binary_data": is_binary})
    result = await client.infer(url, InferRequest("text", [given], request_outputs=[output]), model_name="text")
    return to_json(result.outputs[0].as_numpy())


async def classify(client: InferenceRESTClient, url: str, order: Order, is_binary: bool) -> dict[str, Any]:
    """BYTES in that are no text, and BYTES out."""
    given = InferInput("image", [len(order.pictures)], "BYTES")
    given.set_data_from_numpy(np.array(order.pictures, np.object_))
    outputs = [RequestedOutput(name, {"binary_data": is_binary}) for name in ("labels", "scores")]
    result = await client.infer(url, InferRequest("colour", [given], request_outputs=outputs), model_name="colour")
    return {output.name: to_json(output.as_numpy()) for output in result.outputs}


if __name__ == "__main__":
    main(make_report)
