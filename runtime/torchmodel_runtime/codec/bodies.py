"""Bodies that are no document of a dialect: the medium itself. Called by `codec`."""

from __future__ import annotations

from torchmodel_runtime.codec.decoded import Decoded
from torchmodel_runtime.errors import invalid, unsupported_media
from torchmodel_runtime.exchange import Call
from torchmodel_runtime.tasks import Task
from torchmodel_runtime.tensors import bytes_tensor

JSON_TYPES = (
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "application/vnd.kserve+json",
)
"""Types that may hold JSON: the two that HTTP and curl fill in when the client names none are let through to the parser."""


def is_medium(call: Call, task: Task) -> bool:
    """True when the body is the medium itself, False when it is JSON; RequestError 415 for anything else."""
    if "Inference-Header-Content-Length" in call.headers:
        raise unsupported_media("the binary tensor data extension is not offered (GET /v2); send JSON data")
    content_type = call.content_type
    if task.media and call.dialect != "v1" and content_type.startswith(task.media):
        return True
    if content_type == "application/json":
        return False
    if task.media and call.dialect == "torchserve" and not content_type.startswith("multipart/"):
        return True  # TorchServe's clients send files without naming their type
    if content_type in JSON_TYPES:
        return False
    taken = ["application/json", *(f"{kind}*" if kind.endswith("/") else kind for kind in task.media)]
    raise unsupported_media(f"Content-Type {content_type}: must be {' or '.join(taken)}")


def decode_medium(body: bytes) -> Decoded:
    """The body itself is the one element of the one input: an image, a recording, a text."""
    if not body:
        raise invalid("the body is empty")
    return Decoded(inputs=[bytes_tensor([body])], is_medium=True)
