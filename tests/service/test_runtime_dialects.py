"""Each dialect over HTTP in all its forms: bodies, answers, what the server tells of itself. Errors one by one are unit tests."""

from __future__ import annotations

import gzip
import io
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from openapi_spec_validator import OpenAPIV31SpecValidator
from testkit.models import mlp_config, save_mlp, write_receipt
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.config import Architecture, CodeFile, Security, ServerConfig, Serving, Signature, TensorSpec

ROW = np.float32([0.5, -1.0, 2.0, 0.0, 1.5, -0.25, 3.0, 1.0, -2.0, 0.75])
LENGTH = "Inference-Header-Content-Length"
BINARY, NPY, SAFETENSORS = "application/octet-stream", "application/x-npy", "application/vnd.safetensors"

ECHO_CODE = '''
import torch


class Echo(torch.nn.Module):
    """Gives back what it gets; its one parameter is no float, which would set the width of all."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(1, dtype=torch.int64), requires_grad=False)

    def forward(self, *inputs):
        return tuple(tensor.clone() for tensor in inputs)
'''

DATATYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("mlp")
    save_mlp(folder)
    with RuntimeProcess(mlp_config(folder, serving=Serving(max_request_bytes=8 << 20))) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def expected(server: RuntimeProcess) -> float:
    value: float = server.post("/v1/models/mlp:predict", {"instances": [ROW.tolist()]})[1]["predictions"][0][0]
    return value


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def document(rows: int = 1, **more: Any) -> dict[str, Any]:
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 10], "data": [*ROW.tolist()] * rows}
    return {"inputs": [tensor], **more}


def ask(server: RuntimeProcess, path: str, body: bytes, content_type: str, **headers: str) -> tuple[int, Any, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return server.request("POST", path, body, {"Content-Type": content_type, **named})


def split(headers: Any, body: bytes) -> tuple[Any, bytes]:
    size = int(headers[LENGTH])
    return json.loads(body[:size]), body[size:]


# --- V2, binary ---


def test_binary_tensors_go_in_and_out(server: RuntimeProcess, expected: float) -> None:
    head = json.dumps(
        {
            "id": "42",
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": ROW.nbytes}}
            ],
            "parameters": {"binary_data_output": True},
        }
    ).encode()
    headers = {"Content-Type": BINARY, LENGTH: str(len(head))}
    status, got, body = server.request("POST", "/v2/models/mlp/infer", head + ROW.tobytes(), headers)
    assert status == 200, body
    assert got["Content-Type"] == BINARY
    reply, data = split(got, body)
    assert (reply["id"], reply["model_version"]) == ("42", "1")
    assert reply["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
    ]
    assert struct.unpack("<f", data)[0] == pytest.approx(expected, abs=1e-5)


def test_raw_mode_is_a_tensor_and_nothing_else(server: RuntimeProcess, expected: float) -> None:
    status, got, body = server.request("POST", "/v2/models/mlp/infer", ROW.tobytes() * 3, {LENGTH: "0"})
    assert status == 200, body
    reply, data = split(got, body)
    assert reply["outputs"][0]["shape"] == [3, 1]
    np.testing.assert_allclose(np.frombuffer(data, np.float32), [expected] * 3, atol=1e-5)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder: Path = tmp_path_factory.mktemp("echo")
    torch.save({"nothing": torch.zeros(1, dtype=torch.int64)}, folder / "echo.pth")
    write_receipt(folder, "echo.pth")
    tensors = [TensorSpec(name=name.lower(), datatype=name, shape=[-1, 3]) for name in DATATYPES]  # type: ignore[arg-type]
    config = ServerConfig(
        name="echo",
        checkpoint_folder=str(folder),
        architecture=Architecture(entrypoint="model:Echo"),
        code=CodeFile(inline=ECHO_CODE),
        security=Security(allow_code_execution=True),
        signature=Signature(inputs=tensors, outputs=tensors),
    )
    with RuntimeProcess(config) as server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def values() -> dict[str, torch.Tensor]:
    """Two rows of each datatype, its smallest and greatest number among them; floats keep theirs in FP32's only dtype."""
    made = {}
    for name, dtype in DATATYPES.items():
        if dtype == torch.bool:
            made["bool"] = torch.tensor([[True, False, True], [False, True, False]])
        elif dtype.is_floating_point:
            made[name.lower()] = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.5, -0.25]], dtype=dtype)
        else:
            limits = torch.iinfo(dtype)
            made[name.lower()] = torch.tensor([[limits.min, 1, 2], [3, 4, limits.max]], dtype=dtype)
    return made


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def test_all_datatypes_come_back_as_json(echo: RuntimeProcess, values: dict[str, torch.Tensor]) -> None:
    inputs = [
        {"name": name, "datatype": name.upper(), "shape": [2, 3], "data": tensor.tolist()}
        for name, tensor in values.items()
    ]
    status, answer = echo.post("/v2/models/echo/infer", {"inputs": inputs})
    assert status == 200, answer
    for output in answer["outputs"]:
        assert output["data"] == values[output["name"]].flatten().tolist(), output["name"]


def test_all_datatypes_come_back_as_bytes(echo: RuntimeProcess, values: dict[str, torch.Tensor]) -> None:
    pieces = {name: raw(tensor) for name, tensor in values.items()}
    inputs = [
        {
            "name": name,
            "datatype": name.upper(),
            "shape": [2, 3],
            "parameters": {"binary_data_size": len(pieces[name])},
        }
        for name in reversed(pieces)
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(pieces[name] for name in reversed(pieces))
    status, got, answer = server_request(echo, body, len(head))
    assert status == 200, answer
    reply, data = split(got, answer)
    for output in reply["outputs"]:
        size = output["parameters"]["binary_data_size"]
        assert data[:size] == pieces[output["name"]], output["name"]
        data = data[size:]
    assert data == b""


def server_request(server: RuntimeProcess, body: bytes, length: int) -> tuple[int, Any, Any]:
    headers = {"Content-Type": BINARY, LENGTH: str(length)}
    return server.request("POST", f"/v2/models/{server.config.name}/infer", body, headers)


def test_all_datatypes_come_back_as_safetensors_of_torch(echo: RuntimeProcess, values: dict[str, torch.Tensor]) -> None:
    for path in ("/v2/models/echo/infer", "/predictions/echo"):
        status, got, body = ask(echo, path, safetensors.torch.save(values), "application/safetensors")
        assert status == 200, body
        assert got["Content-Type"] == SAFETENSORS
        again = safetensors.torch.load(body)
        for name, tensor in values.items():
            assert torch.equal(again[name], tensor), name


# --- bodies and answers ---


def test_npy_in_and_out(server: RuntimeProcess, expected: float) -> None:
    for path in ("/v2/models/mlp/infer", "/predictions/mlp"):
        status, got, body = ask(server, path, npy(ROW[None]), NPY)
        assert status == 200, body
        assert got["Content-Type"] == NPY
        assert np.load(io.BytesIO(body))[0, 0] == pytest.approx(expected, abs=1e-5)
    assert ask(server, "/v1/models/mlp:predict", npy(ROW[None]), NPY)[0] == 415


@pytest.mark.parametrize("size", [1, 400, 60_000], ids=["small", "in the other process", "large once inflated"])
def test_gzip_requests(server: RuntimeProcess, expected: float, size: int) -> None:
    rows = min(size, 900)
    body = json.dumps(document(rows)).encode() + b" " * (size * 10)
    if size == 400:
        body += (
            np.random.default_rng(0).integers(0, 2, 100_000).astype(np.uint8).tobytes().translate(b" \n" + bytes(254))
        )
    status, _, answer = ask(
        server, "/v2/models/mlp/infer", gzip.compress(body), "application/json", Content_Encoding="gzip"
    )
    assert status == 200, answer
    assert answer["outputs"][0]["data"][-1] == pytest.approx(expected, abs=1e-5)


def test_a_large_json_body_is_answered_like_a_small_one(server: RuntimeProcess, expected: float) -> None:
    body = json.dumps(document(900)).encode() + b" " * 300_000
    status, _, answer = ask(server, "/v2/models/mlp/infer", body, "application/json")
    assert status == 200, answer
    assert answer["outputs"][0]["data"] == pytest.approx([expected] * 900, abs=1e-5)
    status, _, answer = ask(server, "/v2/models/mlp/infer", body[:-300_001] + b" " * 300_000, "application/json")
    assert status == 400
    assert "body:" in answer["error"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("application/json", "application/json"), (BINARY, BINARY), (NPY, NPY), (SAFETENSORS, SAFETENSORS)],
)
def test_accept_chooses_the_form(server: RuntimeProcess, accept: str, content_type: str) -> None:
    body = json.dumps(document()).encode()
    status, got, _ = ask(server, "/v2/models/mlp/infer", body, "application/json", Accept=accept)
    assert (status, got["Content-Type"].partition(";")[0]) == (200, content_type)


def test_refusals_have_the_dialects_form(server: RuntimeProcess) -> None:
    body = json.dumps(document()).encode()
    status, _, answer = ask(server, "/v2/models/mlp/infer", body, "application/json", Accept="text/html")
    assert (status, list(answer)) == (406, ["error"])
    status, _, answer = ask(server, "/predictions/mlp", b"[[1]]", "application/json", Accept="text/html")
    assert (status, answer["type"]) == (400, "BadRequestException")
    status, got, answer = ask(server, "/v2/models/mlp/infer", body, "application/json", Content_Encoding="br")
    assert (status, got["Accept-Encoding"]) == (415, "gzip, deflate, identity")


# --- TorchServe ---


def form(name: str, content: bytes, content_type: str = "") -> bytes:
    kind = f"Content-Type: {content_type}\r\n" if content_type else ""
    head = f'--line\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n{kind}\r\n'
    return head.encode() + content + b"\r\n--line--\r\n"


@pytest.mark.parametrize(
    "body",
    [
        form("data", json.dumps([ROW.tolist()]).encode()),
        form("data", json.dumps({"instances": [ROW.tolist()]}).encode(), "application/json"),
        form("x", json.dumps([ROW.tolist()]).encode()),
    ],
    ids=["rows", "a document", "an input by name"],
)
def test_forms(server: RuntimeProcess, expected: float, body: bytes) -> None:
    status, _, answer = ask(server, "/predictions/mlp", body, "multipart/form-data; boundary=line")
    assert status == 200, answer
    assert answer[0] == pytest.approx([expected], abs=1e-5)


def test_a_form_with_other_fields_is_refused(server: RuntimeProcess) -> None:
    status, _, answer = ask(server, "/predictions/mlp", form("top_k", b"3"), "multipart/form-data; boundary=line")
    assert (status, answer["type"]) == (400, "BadRequestException")
    assert "unknown ['top_k']" in answer["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predictions/mlp/1"),
        ("PUT", "/predictions/mlp/1"),
        ("GET", "/predictions/mlp"),
        ("POST", "/invocations"),
        ("POST", "/invocations?model_name=mlp"),
    ],
)
def test_all_routes_of_predictions(server: RuntimeProcess, expected: float, method: str, path: str) -> None:
    status, _, answer = server.request(method, path, [ROW.tolist()], {"Content-Type": "application/json"})
    assert status == 200, answer
    assert answer[0] == pytest.approx([expected], abs=1e-5)


def test_describe(server: RuntimeProcess) -> None:
    for path in ("/models/mlp", "/models/mlp/1", "/models/mlp/all"):
        status, answer = server.get(path)
        assert status == 200
        assert (answer[0]["modelName"], answer[0]["modelVersion"], answer[0]["engine"]) == ("mlp", "1", "Torch")
        assert {worker["status"] for worker in answer[0]["workers"]} == {"READY"}
    assert [model["modelName"] for model in server.get("/models")[1]["models"]] == ["mlp"]


@pytest.mark.parametrize(("version", "status"), [("1", 200), ("1.0", 200), ("2.0", 404), ("1.0.0", 404)])
def test_torchserves_name_of_the_first_version_is_taken(server: RuntimeProcess, version: str, status: int) -> None:
    assert server.post(f"/predictions/mlp/{version}", [ROW.tolist()])[0] == status
    assert server.get(f"/models/mlp/{version}")[0] == status


def test_that_name_is_torchserves_alone(server: RuntimeProcess) -> None:
    assert server.post("/v2/models/mlp/versions/1.0/infer", document())[0] == 404


# --- Triton's extras, OpenAPI ---


def test_repository_index_and_configuration(server: RuntimeProcess) -> None:
    ready = [{"name": "mlp", "version": "1", "state": "READY", "reason": ""}]
    for body in (b"", b"{}", b'{"ready": true}'):
        assert server.post("/v2/repository/index", body) == (200, ready)
    assert server.post("/v2/repository/index", b'{"ready": 3}')[0] == 400
    assert server.post("/v2/repository/index", b"\xff")[0] == 400
    status, config = server.get("/v2/models/mlp/config")
    assert status == 200
    assert config["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [10]}]
    assert config["max_batch_size"] >= 1


def test_the_openapi_document_is_served_and_its_examples_are_answered(server: RuntimeProcess) -> None:
    status, made = server.get("/openapi.json")
    assert status == 200
    assert server.request("OPTIONS", "/")[2] == made
    OpenAPIV31SpecValidator(made).validate()
    asked = 0
    for path, methods in made["paths"].items():
        for method, operation in methods.items():
            content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            status = server.request(method.upper(), path, content.get("example"), {"Content-Type": "application/json"})[
                0
            ]
            assert str(status) in operation["responses"], (method, path, status)
            asked += status == 200
    assert asked > 20
