"""The gRPC port: messages that lie, bytes that are no HTTP/2, clients that are gone."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from hostile.asking import TIMEOUT_S, failures_inside
from hostile.attacks.grpc import ATTACKS, GOOD, Message
from testkit.runtime_process import RuntimeProcess
from testkit.tiny_media import serve_echo
from torchmodel_runtime.config import Grpc, Limits, Serving
from torchmodel_runtime.protos.open_inference_pb2 import ModelInferResponse

INFER = "/inference.GRPCInferenceService/ModelInfer"
MAX_DETAILS = 1003
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    serving = Serving(
        processes=1,
        workers=1,
        threads=1,
        grpc=Grpc(enabled=True, max_message_bytes=2 << 20),
        limits=Limits(body_timeout_seconds=2),
    )
    with RuntimeProcess(serve_echo(tmp_path_factory.mktemp("echo"), serving=serving)) as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def infer(server: RuntimeProcess) -> Iterator[Any]:
    """ModelInfer, with bytes for messages."""
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", [("grpc.max_send_message_length", -1)]) as channel:
        yield channel.unary_unary(INFER)


@pytest.fixture(scope="module")
def good(infer: Any) -> ModelInferResponse:
    answer = ModelInferResponse.FromString(infer(GOOD, timeout=TIMEOUT_S))
    assert len(answer.raw_output_contents) == 4
    return answer


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.title for attack in ATTACKS])
def test_a_bad_message_is_told_what_is_wrong_and_harms_nobody(
    infer: Any, good: ModelInferResponse, attack: Message
) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        infer(attack.body, timeout=TIMEOUT_S, metadata=attack.metadata)
    assert refused.value.code() == grpc.StatusCode[attack.code], refused.value.details()
    assert attack.says in refused.value.details()
    assert len(refused.value.details()) <= MAX_DETAILS
    assert ModelInferResponse.FromString(infer(GOOD, timeout=TIMEOUT_S)) == good


def test_a_message_over_the_limit_is_refused(infer: Any, good: ModelInferResponse) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        infer(bytes(3 << 20), timeout=TIMEOUT_S)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ModelInferResponse.FromString(infer(GOOD, timeout=TIMEOUT_S)) == good


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: test\r\n\r\n",
        bytes(10_000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        PREFACE,
        PREFACE + bytes(range(256)) * 10,
        PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(1000),
        PREFACE + SETTINGS + b"\0\0\5\1\4\0\0\0\1" + b"\xff\xff\xff\xff\xff",
        PREFACE + SETTINGS + b"\0\0\4\x08\0\0\0\0\0" + b"\x7f\xff\xff\xff" * 2,
        PREFACE + SETTINGS + b"\0\0\x08\6\0\0\0\0\0" + b"12345678" * 100,
        PREFACE + (SETTINGS * 10_000),
    ],
    ids=[
        "HTTP/1.1",
        "NULs",
        "TLS",
        "a preface and silence",
        "a preface and random bytes",
        "a frame that is too large",
        "headers that cannot be decoded",
        "a window that overflows",
        "pings that are none",
        "10,000 settings",
    ],
)
def test_what_is_no_http_2_harms_nobody(
    server: RuntimeProcess, infer: Any, good: ModelInferResponse, sent: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.grpc_port), timeout=TIMEOUT_S) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        assert ModelInferResponse.FromString(infer(GOOD, timeout=TIMEOUT_S)) == good


def test_clients_that_leave_are_no_failure_inside(server: RuntimeProcess, infer: Any, good: ModelInferResponse) -> None:
    for _ in range(20):
        infer.future(GOOD, timeout=TIMEOUT_S).cancel()
    with pytest.raises(grpc.RpcError) as refused:
        infer(GOOD, timeout=1e-6)
    assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert ModelInferResponse.FromString(infer(GOOD, timeout=TIMEOUT_S)) == good
    assert server.post("/v2/models/echo/infer", {"inputs": []})[0] == 400
    assert failures_inside(server) == []
