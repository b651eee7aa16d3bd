"""Open Inference Protocol V2 over gRPC on a real process. Every datatype with the real clients: test_clients_grpc."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf.message import Message
from testkit.grpc_client import INFER, SERVICE, GrpcClient, make_request
from testkit.models import linear_config, save_linear
from testkit.runtime_process import RuntimeProcess
from testkit.wire import read_metric
from torchmodel_runtime.config import Grpc, Limits, Serving, Telemetry
from torchmodel_runtime.protos import open_inference_pb2 as pb
from torchmodel_runtime.protos.health_pb2 import HealthCheckRequest, HealthCheckResponse

HEALTH = "grpc.health.v1.Health"
Code = grpc.StatusCode
ROWS = np.linspace(-1, 1, 20, dtype=np.float32).reshape(2, 10)
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"

module = torch.nn.Linear(10, 1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    folder = tmp_path_factory.mktemp("linear")
    module.load_state_dict(save_linear(folder).state_dict())
    serving = Serving(
        processes=1,
        grpc=Grpc(enabled=True, max_message_bytes=1 << 20),
        limits=Limits(max_tensors=2, body_timeout_seconds=1),
        telemetry=Telemetry(access_log_ratio=1),
    )
    with RuntimeProcess(linear_config(folder, serving=serving)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def client(server: RuntimeProcess) -> Iterator[GrpcClient]:
    with GrpcClient(server) as client:
        yield client


def expected() -> list[float]:
    with torch.inference_mode():
        return module(torch.from_numpy(ROWS)).flatten().tolist()  # type: ignore[no-any-return]


# --- inference ---


def test_raw_contents_are_answered_raw(client: GrpcClient) -> None:
    answer = client.infer(make_request(ROWS, id="seven"))
    assert (answer.model_name, answer.model_version, answer.id) == ("linear", "1", "seven")
    assert [(output.name, output.datatype, list(output.shape)) for output in answer.outputs] == [("y", "FP32", [2, 1])]
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == pytest.approx(expected(), abs=1e-6)
    assert not answer.outputs[0].HasField("contents")


def test_typed_contents_are_answered_typed(client: GrpcClient) -> None:
    answer = client.infer(make_request(ROWS, typed=True))
    assert list(answer.outputs[0].contents.fp32_contents) == pytest.approx(expected(), abs=1e-6)
    assert not answer.raw_output_contents


def test_large_typed_contents_are_decoded_in_another_process(server: RuntimeProcess, client: GrpcClient) -> None:
    """10 000 floats each by itself, as encoders that do not pack write them: 50 kB."""
    rows = np.resize(ROWS, (1000, 10))
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=rows.shape).SerializeToString()
    contents = b"".join(b"\x35" + element.tobytes() for element in rows.ravel())
    request = pb.ModelInferRequest(model_name="linear").SerializeToString()
    request += as_field(5, tensor + as_field(5, contents))
    call = client.channel.unary_unary(INFER, response_deserializer=pb.ModelInferResponse.FromString)
    answer = call(request, timeout=30)
    assert list(answer.outputs[0].contents.fp32_contents) == pytest.approx(expected() * 500, abs=1e-6)
    threads = Path(f"/proc/{server.process.pid}/task").iterdir()
    children = [child for thread in threads for child in (thread / "children").read_text().split()]
    assert any(b"decodepool" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children)


def as_field(number: int, content: bytes) -> bytes:
    """A field of a message around bytes that are one."""
    head, size = bytearray([number << 3 | 2]), len(content)
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


@pytest.mark.parametrize("version", ["", "1"])
def test_the_version_may_be_named(client: GrpcClient, version: str) -> None:
    assert client.infer(make_request(ROWS, model_version=version)).model_version == "1"


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_messages_are_taken(client: GrpcClient, algorithm: grpc.Compression) -> None:
    answer = client.infer(make_request(ROWS), compression=algorithm)
    assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == pytest.approx(expected(), abs=1e-6)


REFUSED: dict[str, tuple[bytes | Message, dict[str, Any], Code, str]] = {
    "bytes that are no message": (b"\xff", {}, Code.INVALID_ARGUMENT, "message: is no inference.ModelInferRequest"),
    "another model": (make_request(ROWS, "nope"), {}, Code.NOT_FOUND, "no model 'nope' here; this server has 'linear'"),
    "another version": (make_request(ROWS, model_version="2"), {}, Code.NOT_FOUND, "has no version '2'"),
    "another shape": (
        make_request(ROWS[:, :9]),
        {},
        Code.INVALID_ARGUMENT,
        "input 'x': shape [2, 9], must be [-1, 10]",
    ),
    "more tensors than are read": (
        pb.ModelInferRequest(model_name="linear", inputs=[pb.ModelInferRequest.InferInputTensor()] * 3),
        {},
        Code.INVALID_ARGUMENT,
        "inputs: 3 tensors, at most 2 are taken (serving.limits.maxTensors)",
    ),
    "a shape of too many elements": (
        pb.ModelInferRequest(
            model_name="linear", inputs=[pb.ModelInferRequest.InferInputTensor(name="x", shape=[1 << 30, 10])]
        ),
        {},
        Code.RESOURCE_EXHAUSTED,
        "serving.limits.maxElements",
    ),
    "a timeout that is no number": (
        make_request(ROWS, parameters={"timeout": pb.InferParameter(string_param="soon")}),
        {},
        Code.INVALID_ARGUMENT,
        "parameters.timeout: got 'soon'",
    ),
    "a timeout in a header that is no number": (
        make_request(ROWS),
        {"metadata": (("x-request-timeout-milliseconds", "soon"),)},
        Code.INVALID_ARGUMENT,
        "X-Request-Timeout-Milliseconds: got 'soon'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_gets_its_code_and_sentence(client: GrpcClient, case: str) -> None:
    message, options, code, words = REFUSED[case]
    refusal = client.refusal(message, **options)
    assert refusal.code == code
    assert words in refusal.details
    assert refusal.trailing["x-request-id"]


# --- limits of the transport ---


def resident_kib(server: RuntimeProcess) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text())
    assert found
    return int(found[1])


def test_a_message_larger_than_max_message_bytes_is_refused(server: RuntimeProcess, client: GrpcClient) -> None:
    assert client.refusal(bytes((1 << 20) + 1)).code == Code.RESOURCE_EXHAUSTED
    assert client.infer(make_request(ROWS)).outputs


def test_a_small_message_that_inflates_to_much_is_refused_before_it_does(
    server: RuntimeProcess, client: GrpcClient
) -> None:
    before = resident_kib(server)
    refusal = client.refusal(bytes(400 << 20), compression=grpc.Compression.Gzip)
    assert refusal.code == Code.RESOURCE_EXHAUSTED
    assert resident_kib(server) - before < 50 << 10


def test_more_metadata_than_max_header_bytes_is_refused(client: GrpcClient) -> None:
    assert client.refusal(make_request(ROWS), metadata=(("x-much", "a" * 20000),)).code == Code.RESOURCE_EXHAUSTED
    assert client.infer(make_request(ROWS), metadata=(("x-much", "a" * 12000),)).outputs


def test_a_client_that_sends_no_message_is_not_waited_for_longer_than_body_timeout_seconds(client: GrpcClient) -> None:
    def nothing() -> Iterator[bytes]:
        time.sleep(4)
        yield b""

    began_s = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.stream_unary(INFER)(nothing(), timeout=20)
    assert time.monotonic() - began_s < 3
    assert caught.value.code() == Code.DEADLINE_EXCEEDED
    assert "did not arrive within 1 s (serving.limits.bodyTimeoutSeconds)" in caught.value.details()


def test_a_call_without_a_message_is_told_so(client: GrpcClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.channel.stream_unary(INFER)(iter(()), timeout=20)
    assert caught.value.code() == Code.RESOURCE_EXHAUSTED
    assert (
        caught.value.details()
        == "no message of at most 1048576 bytes came (serving.grpc.maxMessageBytes), or none at all"
    )


# --- what is served, and whether ---


def test_what_is_served_is_told(client: GrpcClient) -> None:
    assert client.ask("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live
    assert client.ask("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready
    assert client.ask("ModelReady", pb.ModelReadyRequest(name="linear", version="1"), pb.ModelReadyResponse).ready
    server = client.ask("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
    assert (server.name, "model_configuration" in server.extensions) == ("torchmodel", True)
    model = client.ask("ModelMetadata", pb.ModelMetadataRequest(name="linear"), pb.ModelMetadataResponse)
    tensor = pb.ModelMetadataResponse.TensorMetadata
    assert model == pb.ModelMetadataResponse(
        name="linear",
        versions=["1"],
        platform="pytorch_safetensors",
        inputs=[tensor(name="x", datatype="FP32", shape=[-1, 10])],
        outputs=[tensor(name="y", datatype="FP32", shape=[-1, 1])],
    )
    config = client.ask("ModelConfig", pb.ModelConfigRequest(name="linear"), pb.ModelConfigResponse).config
    assert config == pb.ModelConfig(
        name="linear",
        platform="pytorch_safetensors",
        backend="pytorch",
        max_batch_size=32,
        input=[pb.ModelInput(name="x", data_type=pb.TYPE_FP32, dims=[10])],
        output=[pb.ModelOutput(name="y", data_type=pb.TYPE_FP32, dims=[1])],
    )
    index = client.ask("RepositoryIndex", pb.RepositoryIndexRequest(ready=True), pb.RepositoryIndexResponse)
    assert [(entry.name, entry.version, entry.state) for entry in index.models] == [("linear", "1", "READY")]


@pytest.mark.parametrize("method", ["ModelReady", "ModelMetadata", "ModelConfig"])
def test_another_model_is_not_found(client: GrpcClient, method: str) -> None:
    refusal = client.refusal(pb.ModelReadyRequest(name="nope"), f"/{SERVICE}/{method}")
    assert (refusal.code, refusal.details) == (Code.NOT_FOUND, "no model 'nope' here; this server has 'linear'")
    assert refusal.trailing["x-request-id"]


def test_bytes_that_are_no_message_are_refused_by_every_method(client: GrpcClient) -> None:
    refusal = client.refusal(b"\xff", f"/{SERVICE}/ModelReady")
    assert refusal.code == Code.INVALID_ARGUMENT
    assert refusal.details.startswith("message: is no inference.ModelReadyRequest: ")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (f"/{SERVICE}/ModelStatistics", "see GET /metrics"),
        (f"/{SERVICE}/RepositoryModelLoad", "change the TorchModel resource"),
        (f"/{SERVICE}/RepositoryModelUnload", "change the TorchModel resource"),
        (f"/{SERVICE}/ModelStreamInfer", "call ModelInfer for each"),
        (f"/{SERVICE}/SystemSharedMemoryStatus", "send tensors in the request"),
        (f"/{SERVICE}/CudaSharedMemoryRegister", "send tensors in the request"),
        (f"/{SERVICE}/TraceSetting", "spec.serving.telemetry"),
        (f"/{SERVICE}/Nothing", f"no method /{SERVICE}/Nothing; {SERVICE} and {HEALTH} are served"),
        ("/other.Service/ModelInfer", "no method /other.Service/ModelInfer"),
    ],
)
def test_methods_that_there_are_not_say_what_to_do_instead(client: GrpcClient, path: str, words: str) -> None:
    refusal = client.refusal(b"", path)
    assert refusal.code == Code.UNIMPLEMENTED
    assert words in refusal.details


@pytest.mark.parametrize("service", ["", SERVICE, "live"])
def test_the_health_service_says_that_it_serves(client: GrpcClient, service: str) -> None:
    answer = client.ask("Check", HealthCheckRequest(service=service), HealthCheckResponse, HEALTH)
    assert answer.status == HealthCheckResponse.SERVING


def test_a_service_that_there_is_not_has_no_health(client: GrpcClient) -> None:
    refusal = client.refusal(HealthCheckRequest(service="other"), f"/{HEALTH}/Check")
    assert (refusal.code, refusal.details) == (
        Code.NOT_FOUND,
        f"no service 'other'; there are '', '{SERVICE}' and 'live'",
    )
    watch = client.channel.unary_stream(f"/{HEALTH}/Watch", response_deserializer=HealthCheckResponse.FromString)
    watching = watch(HealthCheckRequest(service="other").SerializeToString(), timeout=20)
    assert next(watching).status == HealthCheckResponse.SERVICE_UNKNOWN
    watching.cancel()


# --- seen ---


def test_requests_are_counted_and_logged_as_a_dialect_like_the_others(
    server: RuntimeProcess, client: GrpcClient
) -> None:
    def count(code: int) -> float:
        return read_metric(server, "torchmodel_requests_total", dialect="grpc", code=str(code))

    answered, refused = count(200), count(404)
    rejected = read_metric(server, "torchmodel_rejected_total", reason="NOT_FOUND")
    received = read_metric(server, "torchmodel_request_bytes_total", dialect="grpc")
    request = make_request(ROWS)
    call = client.channel.unary_unary(INFER)
    sent = (("x-request-id", "mine"), ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01"), ("other-bin", b"\x00\xff"))
    _, told = call.with_call(request.SerializeToString(), timeout=20, metadata=sent)
    assert ("x-request-id", "mine") in [tuple(entry) for entry in told.trailing_metadata()]
    client.refusal(make_request(ROWS, "nope"))
    assert (count(200), count(404)) == (answered + 1, refused + 1)
    assert read_metric(server, "torchmodel_rejected_total", reason="NOT_FOUND") == rejected + 1
    size = request.ByteSize()
    assert read_metric(server, "torchmodel_request_bytes_total", dialect="grpc") == received + size
    (line,) = [json.loads(line) for line in server.log.splitlines() if '"requestId":"mine"' in line]
    assert (line["dialect"], line["status"], line["rows"], line["requestBytes"]) == ("grpc", 200, 2, size)
    assert line["traceId"] == TRACE


def test_the_log_is_json_and_nothing_else(server: RuntimeProcess, client: GrpcClient) -> None:
    client.refusal(bytes((1 << 20) + 1))
    for line in server.log.splitlines():
        assert json.loads(line)["level"] in ("info", "warning", "error")
