"""Every route and error of a serving process, asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from testkit.models import mlp_config, save_mlp
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import Serving

ROW = [0.5, -1.0, 2.0, 0.0, 1.5, -0.25, 3.0, 1.0, -2.0, 0.75]
POISON = [666.0] + [0.0] * 9


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RuntimeProcess, torch.nn.Module]]:
    folder = tmp_path_factory.mktemp("mlp")
    layers = save_mlp(folder)
    config = mlp_config(folder, serving=Serving(max_request_bytes=200_000))
    with RuntimeProcess(config) as server:
        yield server.wait_ready(), layers


@pytest.fixture(scope="module")
def server(served: tuple[RuntimeProcess, torch.nn.Module]) -> RuntimeProcess:
    return served[0]


@pytest.fixture(scope="module")
def expected(served: tuple[RuntimeProcess, torch.nn.Module]) -> float:
    with torch.inference_mode():
        return float(served[1](torch.tensor([ROW])))


def v2(*rows: list[float], **changes: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [len(rows), 10], "data": list(rows), **changes}
    return {"inputs": [tensor]}


@pytest.mark.parametrize("path", ["/v2/models/mlp/infer", "/v2/models/mlp/versions/1/infer"])
def test_v2_answers_what_torch_answers_and_echoes_the_id(server: RuntimeProcess, expected: float, path: str) -> None:
    status, answer = server.post(path, {"id": "abc", **v2(ROW, ROW)})
    assert status == 200
    assert answer["model_name"] == "mlp"
    assert answer["id"] == "abc"
    output = answer["outputs"][0]
    assert (output["name"], output["datatype"], output["shape"]) == ("y", "FP32", [2, 1])
    assert output["data"] == pytest.approx([expected, expected], abs=1e-5)


def test_flat_data_is_taken_as_nested_data(server: RuntimeProcess, expected: float) -> None:
    status, answer = server.post("/v2/models/mlp/infer", v2(ROW, data=ROW))
    assert status == 200
    assert answer["outputs"][0]["data"] == pytest.approx([expected], abs=1e-5)


def test_more_rows_than_a_batch_holds_are_answered_in_order(
    served: tuple[RuntimeProcess, torch.nn.Module],
) -> None:
    server, layers = served
    rows = torch.randn(100, 10)
    status, answer = server.post("/v2/models/mlp/infer", v2(*rows.tolist()))
    assert status == 200
    with torch.inference_mode():
        assert answer["outputs"][0]["data"] == pytest.approx(layers(rows).flatten().tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [ROW, ROW]},
        {"instances": [{"x": ROW}, {"x": ROW}]},
        {"inputs": [ROW, ROW]},
        {"inputs": {"x": [ROW, ROW]}},
    ],
    ids=["rows", "rows by name", "columns", "columns by name"],
)
def test_v1_takes_its_four_forms(server: RuntimeProcess, expected: float, body: Any) -> None:
    status, answer = server.post("/v1/models/mlp:predict", body)
    assert status == 200
    assert [row[0] for row in answer["predictions"]] == pytest.approx([expected, expected], abs=1e-5)


def test_torchserve_takes_rows_and_answers_rows(server: RuntimeProcess, expected: float) -> None:
    assert server.post("/predictions/mlp", [ROW])[1][0] == pytest.approx([expected], abs=1e-5)
    status, _, answer = server.request("PUT", "/predictions/mlp", {"instances": [ROW]})
    assert status == 200
    assert answer[0] == pytest.approx([expected], abs=1e-5)


def test_curl_without_a_content_type_is_understood(server: RuntimeProcess) -> None:
    body = json.dumps(v2(ROW)).encode()
    assert server.post("/v2/models/mlp/infer", body, "application/x-www-form-urlencoded")[0] == 200


def test_metadata_tells_what_is_loaded(server: RuntimeProcess) -> None:
    for path in ("/v2/models/mlp", "/v2/models/mlp/versions/1"):
        status, answer = server.get(path)
        assert status == 200
        assert answer["name"] == "mlp"
        assert answer["platform"] == "pytorch_state_dict"
        assert answer["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}]
        report = answer["parameters"]
        assert report["loadSafety"] == "code"
        assert report["format"] == "state-dict"
        assert report["device"] == "cpu"
        assert report["batching"]["enabled"] is True
        assert report["coldStart"]["fetchSeconds"] == 0.25
        assert report["coldStart"]["importSeconds"] > 0


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/", {"status": "alive"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/mlp/ready", {"name": "mlp", "ready": True}),
        ("/v2/models/mlp/versions/1/ready", {"name": "mlp", "ready": True}),
        ("/v2/models", {"models": ["mlp"]}),
        ("/v1/models", {"models": ["mlp"]}),
        ("/v1/models/mlp", {"name": "mlp", "ready": True}),
        ("/ping", {"status": "Healthy"}),
    ],
)
def test_health_and_lists(server: RuntimeProcess, path: str, answer: Any) -> None:
    assert server.get(path) == (200, answer)


def test_server_metadata_names_server_and_version(server: RuntimeProcess) -> None:
    status, answer = server.get("/v2")
    assert status == 200
    assert answer["name"] == "torchmodel"
    assert "binary_tensor_data" in answer["extensions"]


def test_metrics_are_prometheus_text(server: RuntimeProcess) -> None:
    server.post("/v2/models/mlp/infer", v2(ROW))
    status, headers, body = server.request("GET", "/metrics")
    text = body.decode()
    assert status == 200
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert 'torchmodel_requests_total{code="200",dialect="v2",model="mlp"}' in text
    assert 'torchmodel_model_info{device="cpu",format="state-dict",model="mlp",sha256="' in text
    assert 'torchmodel_cold_start_seconds{model="mlp",phase="load"}' in text
    for name in ("queue_wait_seconds", "batch_rows", "compute_seconds"):
        assert f"torchmodel_{name}_count" in text
    assert 'torchmodel_in_flight_requests{model="mlp"} 0.0' in text
    assert 'torchmodel_queued_rows{model="mlp"} 0.0' in text


BAD_V2: list[tuple[str, Any, str]] = [
    ("not JSON", b"{", "body:"),
    ("no object", [1], "body:"),
    ("unknown field", {"input": []}, "unknown field"),
    ("unknown input", v2(ROW, name="z"), "missing ['x'], unknown ['z']"),
    ("input twice", {"inputs": v2(ROW)["inputs"] * 2}, "each name may appear once"),
    ("wrong datatype", v2(ROW, datatype="FP64"), "must be FP32"),
    ("wrong tail", v2(ROW, shape=[1, 9]), "must be [-1, 10]"),
    ("wrong rank", v2(ROW, shape=[10]), "must be [-1, 10]"),
    ("negative rows", v2(ROW, shape=[-1, 10]), "must be [-1, 10]"),
    ("shape and data differ", v2(ROW, shape=[2, 10]), "data has 10"),
    ("no rows", v2(data=[]), "at least 1"),
    ("no data", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10]}]}, "has no data"),
    (
        "binary",
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}]},
        "40, but 0 bytes are left",
    ),
    ("text", v2(["a"] * 10), "Expected `float`"),
    ("null", v2([None] * 10), "Expected `float`"),
    ("true", v2([True] * 10), "Expected `float`"),
    ("ragged", v2(ROW, ROW[:5], shape=[2, 10]), "ragged"),
    ("too large a number", v2([1e39] * 10), "out of the range of FP32"),
    ("NaN", json.dumps(v2([float("nan")] * 10)).encode(), "; JSON has no NaN and no Infinity"),
    ("deep nesting", b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "body:"),
    ("not UTF-8", b'{"id": "\xff"}', "body:"),
    ("unknown output", {**v2(ROW), "outputs": [{"name": "z"}]}, "'z' is not an output"),
]


@pytest.mark.parametrize(("body", "words"), [case[1:] for case in BAD_V2], ids=[case[0] for case in BAD_V2])
def test_a_bad_v2_request_is_told_what_is_wrong(server: RuntimeProcess, body: Any, words: str) -> None:
    status, answer = server.post("/v2/models/mlp/infer", body)
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "exactly one of"),
        ({"instances": [ROW], "inputs": [ROW]}, "exactly one of"),
        ({"instances": []}, "at least one row"),
        ({"instances": 3}, "instances"),
        ({"instances": [{"z": ROW}]}, "missing ['x']"),
        ({"instances": [{"x": ROW}, ROW]}, "instances[1]"),
        ({"inputs": {"z": [ROW]}}, "missing ['x']"),
        ({"instances": [ROW[:3]]}, "must be [-1, 10]"),
        ({"rows": [ROW]}, "unknown field"),
    ],
)
def test_a_bad_v1_request_is_told_what_is_wrong(server: RuntimeProcess, body: Any, words: str) -> None:
    status, answer = server.post("/v1/models/mlp:predict", body)
    assert status == 400
    assert words in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/v2/models/other/infer", 404, "this server has 'mlp'"),
        ("GET", "/v2/models/other", 404, "this server has 'mlp'"),
        ("GET", "/v2/models/mlp/versions/2", 404, "no version"),
        ("GET", "/v1/models/other", 404, "this server has 'mlp'"),
        ("POST", "/v1/models/other:predict", 404, "this server has 'mlp'"),
        ("POST", "/v2/models/mlp/versions/2/infer", 404, "no version"),
        ("GET", "/v2/models/mlp/versions/2/ready", 404, "no version"),
        ("GET", "/v2/models/mlp/versions/2/config", 404, "no version"),
        ("GET", "/v2/models/mlp/stats", 501, "/metrics"),
        ("GET", "/v2/models/other/stats", 404, "this server has 'mlp'"),
        ("POST", "/v2/repository/models/mlp/load", 501, "TorchModel resource"),
        ("POST", "/v2/repository/models/mlp/unload", 501, "TorchModel resource"),
        ("POST", "/v1/models/mlp:explain", 501, "explains no predictions"),
        ("GET", "/nothing", 404, "no route"),
        ("GET", "/v2/models/mlp/infer", 405, "POST is"),
        ("GET", "/v1/models/mlp:predict", 405, "POST is"),
        ("DELETE", "/v2", 405, "GET"),
    ],
)
def test_wrong_names_and_methods(server: RuntimeProcess, method: str, path: str, status: int, words: str) -> None:
    got, headers, answer = server.request(method, path)
    assert got == status
    assert words in answer["error"]
    assert status != 405 or headers["Allow"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/predictions/mlp", b"[[1]]", 400, "BadRequestException"),
        ("POST", "/predictions/other", b"[]", 404, "ModelNotFoundException"),
        ("DELETE", "/predictions/mlp", None, 405, "MethodNotAllowedException"),
        ("POST", "/predictions/mlp/2", b"[]", 404, "ModelNotFoundException"),
        ("GET", "/predictions/mlp", None, 400, "BadRequestException"),
        ("POST", "/invocations?model_name=other", b"[]", 404, "ModelNotFoundException"),
        ("POST", "/explanations/mlp", b"[]", 501, "NotImplementedException"),
        ("GET", "/models/other", None, 404, "ModelNotFoundException"),
        ("GET", "/models/mlp/2", None, 404, "ModelNotFoundException"),
    ],
)
def test_torchserve_clients_get_torchserve_errors(
    server: RuntimeProcess, method: str, path: str, body: bytes | None, status: int, kind: str
) -> None:
    got, _, answer = server.request(method, path, body, {"Content-Type": "application/json"})
    assert got == status
    assert answer["code"] == status
    assert answer["type"] == kind
    assert answer["message"]


def test_a_body_over_the_limit_gets_413(server: RuntimeProcess) -> None:
    status, answer = server.post("/v2/models/mlp/infer", b" " * 300_000)
    assert status == 413
    assert "200000 bytes (serving.maxRequestBytes)" in answer["error"]


def test_a_small_body_that_inflates_over_the_limit_gets_413(server: RuntimeProcess) -> None:
    import zlib

    headers = {"Content-Type": "application/json", "Content-Encoding": "deflate"}
    status, _, _ = server.request("POST", "/v2/models/mlp/infer", zlib.compress(b" " * 5_000_000), headers)
    assert status == 413


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "image/png"},
        {"Content-Type": "multipart/form-data; boundary=x"},
    ],
    ids=["an image for tensors", "a form"],
)
def test_other_content_types_get_415(server: RuntimeProcess, headers: dict[str, str]) -> None:
    status, _, answer = server.request("POST", "/v2/models/mlp/infer", b"0123456789", headers)
    assert status == 415
    assert "JSON" in answer["error"] or "application/json" in answer["error"]


def test_too_many_rows_for_the_queue_get_413(server: RuntimeProcess) -> None:
    status, answer = server.post("/v2/models/mlp/infer", v2(*[[1] * 10] * 1025))
    assert status == 413
    assert "at most 1024 (serving.queue.maxRows)" in answer["error"]


def test_a_poisoned_request_fails_alone_and_says_nothing_internal(server: RuntimeProcess, expected: float) -> None:
    """Many good and some poisoned requests at once, so that they share batches."""
    rows = [POISON if index % 8 == 0 else ROW for index in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: server.post("/v2/models/mlp/infer", v2(row)), rows))
    for row, (status, answer) in zip(rows, answers, strict=True):
        if row is POISON:
            assert status == 500
            assert "secret" not in json.dumps(answer)
        else:
            assert status == 200
            assert answer["outputs"][0]["data"] == pytest.approx([expected], abs=1e-5)
    assert "a poisoned row: secret detail" in server.log


def test_bad_neighbours_do_no_harm(server: RuntimeProcess, expected: float) -> None:
    def ask(index: int) -> tuple[int, Any]:
        body = BAD_V2[index % len(BAD_V2)][1] if index % 2 else v2(ROW)
        return server.post("/v2/models/mlp/infer", body)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    for index, (status, answer) in enumerate(answers):
        assert status == (400 if index % 2 else 200)
        if index % 2 == 0:
            assert answer["outputs"][0]["data"] == pytest.approx([expected], abs=1e-5)


def test_the_log_is_one_json_object_a_line(server: RuntimeProcess) -> None:
    lines = [json.loads(line) for line in server.log.splitlines()]
    assert all(line["model"] == "mlp" for line in lines)
    assert any(line["message"] == "ready" and line["report"]["parallelism"]["threads"] >= 1 for line in lines)
