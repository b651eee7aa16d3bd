"""What goes beside gRPC's messages: metadata as headers, answers and errors as a status with trailing metadata.

Called by `grpc_v2`, `grpc_told` and `grpc_health`. Errors are raised by `context.abort`, so that nothing goes before the status:
clients retry by themselves only then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from multidict import CIMultiDict

from torchmodel_runtime import errors
from torchmodel_runtime.codec.v2messages import parse
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer
from torchmodel_runtime.server import Server
from torchmodel_runtime.telemetry import REQUEST_ID

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
"""The two are generic for type checkers alone."""

_CODES = {
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,  # as gRPC itself says of a message that is too large
    429: grpc.StatusCode.UNAVAILABLE,  # come again; RESOURCE_EXHAUSTED would say that it is no use
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_Request = TypeVar("_Request", bound=Message)


def code_of(status: int) -> grpc.StatusCode:
    """gRPC's code for the status that the same error has over HTTP (docs/design/0003-grpc-as-a-dialect.md)."""
    if status in _CODES:
        return _CODES[status]
    return grpc.StatusCode.INVALID_ARGUMENT if status < 500 else grpc.StatusCode.INTERNAL


def read_headers(context: Context) -> CIMultiDict[str]:
    """What the client sent beside the message; values in bytes, whose names end in -bin, are nothing we read."""
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in context.invocation_metadata() or ():
        if isinstance(value, str):
            headers.add(name, value)
    return headers


async def finish(context: Context, answer: Answer) -> bytes:
    """The message to send. Does not return for an error, which is sent as a status."""
    trailing = tuple((name.lower(), value) for name, value in answer.headers.items())
    if answer.status == 200:
        context.set_trailing_metadata(trailing)
        return answer.body
    retry_after_s = answer.headers.get("Retry-After")
    if retry_after_s is not None:
        # what gRPC's own retries go by (gRFC A6); the other is what HTTP says, for those who write their own
        trailing = (*trailing, ("grpc-retry-pushback-ms", f"{retry_after_s}000"))
    await context.abort(code_of(answer.status), answer.body.decode(), trailing)
    raise AssertionError("abort returned")  # it never does


def make_handler(server: Server, kind: type[_Request], tell: Callable[[_Request], Message]) -> Handler:
    """A method with one message in and one out, which takes no time: `tell` answers it, or raises RequestError."""

    async def handle(body: bytes, context: Context) -> bytes:
        try:
            return tell(parse(kind, body)).SerializeToString()
        except RequestError as error:
            refused = server.refuse("grpc", error)
        except Exception:
            logger.exception("a request failed inside the server", extra={"fields": {"message": kind.__name__}})
            refused = server.refuse("grpc", errors.internal())
        refused.headers[REQUEST_ID] = server.telemetry.request_id(read_headers(context))
        return await finish(context, refused)

    return grpc.unary_unary_rpc_method_handler(handle)
