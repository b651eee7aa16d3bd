"""A client's own deadline, and requests larger than a batch, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from testkit.models import mlp_config, save_mlp
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import Batching, Serving

ROW = [0.5, -1.0, 2.0, 0.0, 1.5, -0.25, 3.0, 1.0, -2.0, 0.75]
V2 = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": ROW}]}
ASKED = [
    ("/v2/models/mlp/infer", V2),
    ("/v1/models/mlp:predict", {"instances": [ROW]}),
    ("/predictions/mlp", [ROW]),
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RuntimeProcess, torch.nn.Module]]:
    folder = tmp_path_factory.mktemp("mlp")
    layers = save_mlp(folder)
    with RuntimeProcess(mlp_config(folder, serving=Serving(batching=Batching(max_size=8)))) as server:
        yield server.wait_ready(), layers


@pytest.fixture(scope="module")
def server(served: tuple[RuntimeProcess, torch.nn.Module]) -> RuntimeProcess:
    return served[0]


@pytest.mark.parametrize(("path", "body"), ASKED, ids=["v2", "v1", "torchserve"])
@pytest.mark.parametrize("header", ["X-Request-Timeout-Milliseconds", "x-envoy-expected-rq-timeout-ms"])
def test_a_deadline_in_a_header_is_read_in_every_dialect(
    server: RuntimeProcess, path: str, body: Any, header: str
) -> None:
    assert server.request("POST", path, body, {"Content-Type": "application/json", header: "20000"})[0] == 200
    status, _, answer = server.request("POST", path, body, {"Content-Type": "application/json", header: "soon"})
    assert status == 400
    assert header in str(answer)


def test_a_deadline_in_v2_parameters_is_read(server: RuntimeProcess) -> None:
    assert server.post("/v2/models/mlp/infer", {**V2, "parameters": {"timeout": 20_000_000}})[0] == 200
    status, answer = server.post("/v2/models/mlp/infer", {**V2, "parameters": {"timeout": "soon"}})
    assert status == 400
    assert "parameters.timeout" in answer["error"]
    status, answer = server.post("/v2/models/mlp/infer", {**V2, "parameters": {"timeout": 1}})
    assert status == 504, "a microsecond is over before the queue"


def test_a_request_larger_than_a_batch_is_answered_row_for_row(served: tuple[RuntimeProcess, torch.nn.Module]) -> None:
    server, layers = served
    rows = torch.arange(1000, dtype=torch.float32).reshape(100, 10) / 1000
    tensor = {"name": "x", "datatype": "FP32", "shape": [100, 10], "data": rows.flatten().tolist()}
    status, answer = server.post("/v2/models/mlp/infer", {"inputs": [tensor]})
    assert status == 200
    with torch.inference_mode():
        assert answer["outputs"][0]["data"] == pytest.approx(layers(rows).flatten().tolist(), abs=1e-5)
