"""tritonclient.http.aio, as its users write it; inputs and outputs are those of tritonclient.http."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
from reporting import Order, Report, main, to_json
from triton_http import make_flip_inputs, make_flip_outputs, read_flip_output, row_input
from tritonclient.http import InferInput
from tritonclient.http.aio import InferenceServerClient


async def make_report(order: Order) -> Report:
    """Every attempt, by one client for each model."""
    report = Report()
    async with AsyncExitStack() as stack:
        clients = {
            name: await stack.enter_async_context(InferenceServerClient(address))
            for name, address in order.servers.items()
        }
        for case in order.cases:
            await report.attempt_later(case["name"], lambda case=case: flip(clients["flip"], order, case))
        await ask_mlp(report, clients["mlp"], order)
        await report.attempt_later("texts", lambda: embed(clients["text"], order))
        await report.attempt_later("many at once", lambda: ask_at_once(clients["mlp"], order))
    return report


async def flip(client: InferenceServerClient, order: Order, case: dict[str, Any]) -> dict[str, Any]:
    """One datatype in one form."""
    result = await client.infer("flip", make_flip_inputs(order, case), outputs=make_flip_outputs(case))
    return read_flip_output(result, case)


async def ask_mlp(report: Report, client: InferenceServerClient, order: Order) -> None:
    """What is served, a row in each form and compression, what is refused."""
    rows = order.rows
    await report.attempt_later("server is live", client.is_server_live)
    await report.attempt_later("server is ready", client.is_server_ready)
    await report.attempt_later("model is ready", lambda: client.is_model_ready("mlp"))
    await report.attempt_later("model metadata", lambda: client.get_model_metadata("mlp"))
    await report.attempt_later("model configuration", lambda: client.get_model_config("mlp"))
    await report.attempt_later("repository index", client.get_model_repository_index)
    await report.attempt_later("a row", lambda: predict(client, row_input(rows)))
    for kind in ("gzip", "deflate"):
        both = {"request_compression_algorithm": kind, "response_compression_algorithm": kind}
        await report.attempt_later(f"{kind}, binary", lambda both=both: predict(client, row_input(rows), **both))
        await report.attempt_later(f"{kind}, JSON", lambda both=both: predict(client, row_input(rows, False), **both))
    await report.attempt_later("refused: shape", lambda: predict(client, row_input(rows[:, :9])))
    await report.attempt_later("refused: model", lambda: client.infer("other", [row_input(rows)]))
    await report.attempt_later("refused: statistics", lambda: client.get_inference_statistics("mlp"))


async def predict(client: InferenceServerClient, given: InferInput, **options: Any) -> dict[str, Any]:
    """The answer of `mlp`."""
    return to_json((await client.infer("mlp", [given], **options)).as_numpy("y"))


async def embed(client: InferenceServerClient, order: Order) -> dict[str, Any]:
    """BYTES in, all outputs binary."""
    given = InferInput("text", [len(order.texts)], "BYTES")
    given.set_data_from_numpy(np.array(order.texts, np.object_))
    return to_json((await client.infer("text", [given])).as_numpy("embedding"))


async def ask_at_once(client: InferenceServerClient, order: Order) -> list[list[float]]:
    """Requests that share batches: each of its own number, answered in order."""
    rows = [order.rows * factor for factor in range(40)]
    answers = await asyncio.gather(*[predict(client, row_input(row), request_id=str(n)) for n, row in enumerate(rows)])
    return [answer["values"] for answer in answers]


if __name__ == "__main__":
    main(make_report)
