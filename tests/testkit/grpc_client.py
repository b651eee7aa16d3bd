"""Calls over gRPC by the methods' names, with the product's own messages: for what real clients cannot be made to send.

with GrpcClient(server) as client:
    told = client.ask("ModelReady", pb.ModelReadyRequest(name="linear"), pb.ModelReadyResponse)
    refusal = client.refusal(pb.ModelInferRequest(model_name="nope"))
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np
from google.protobuf.message import Message
from testkit.runtime_process import RuntimeProcess
from torchmodel_runtime.protos import open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
INFER = f"/{SERVICE}/ModelInfer"

LIMIT_S = 30
"""No call of a test takes longer, so that none hangs."""

_Answer = TypeVar("_Answer", bound=Message)


class Refusal(NamedTuple):
    """How a call failed."""

    code: grpc.StatusCode
    details: str
    trailing: dict[str, str]


class GrpcClient:
    """A connection of its own."""

    def __init__(self, server: RuntimeProcess, *more: tuple[str, Any]) -> None:
        """more: options of the channel."""
        options = [
            *more,
            ("grpc.use_local_subchannel_pool", 1),  # else all clients of a process share one connection
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
        ]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options)

    def __enter__(self) -> GrpcClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def ask(
        self, method: str, request: Message, answer: type[_Answer], service: str = SERVICE, **options: Any
    ) -> _Answer:
        """The answer of any method; grpc.RpcError when it is refused."""
        call = self.channel.unary_unary(
            f"/{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        found: _Answer = call(request, **{"timeout": LIMIT_S, **options})
        return found

    def infer(self, request: pb.ModelInferRequest, **options: Any) -> pb.ModelInferResponse:
        """Of ModelInfer."""
        return self.ask("ModelInfer", request, pb.ModelInferResponse, **options)

    def begin(self, request: pb.ModelInferRequest, **options: Any) -> grpc.Future:
        """A ModelInfer that is not waited for."""
        call = self.channel.unary_unary(
            INFER,
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return call.future(request, **{"timeout": LIMIT_S, **options})

    def refusal(self, message: bytes | Message, path: str = INFER, **options: Any) -> Refusal:
        """How a call fails, its message in bytes or not. AssertionError when it is answered."""
        body = message if isinstance(message, bytes) else message.SerializeToString()
        try:
            answer = self.channel.unary_unary(path)(body, **{"timeout": LIMIT_S, **options})
        except grpc.RpcError as error:
            return refusal_of(error)
        raise AssertionError(f"{path} was answered: {answer!r}")


def refusal_of(error: Any) -> Refusal:
    """What a failed call says."""
    return Refusal(error.code(), error.details(), dict(error.trailing_metadata() or ()))


def make_request(rows: np.ndarray, model: str = "linear", *, typed: bool = False, **more: Any) -> pb.ModelInferRequest:
    """x FP32, raw or typed."""
    request = pb.ModelInferRequest(model_name=model, **more)
    tensor = request.inputs.add(name="x", datatype="FP32", shape=rows.shape)
    if typed:
        tensor.contents.fp32_contents.extend(rows.ravel().tolist())
    else:
        request.raw_input_contents.append(rows.astype(np.float32).tobytes())
    return request
