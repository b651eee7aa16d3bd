"""Bodies that are no document of a dialect: the medium itself. Called by `codec`."""

from __future__ import annotations

from torchmodel_runtime.codec.decoded import Decoded
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.codec.v2 import JSON_LENGTH
from torchmodel_runtime.errors import invalid, unsupported_media
from torchmodel_runtime.exchange import Call
from torchmodel_runtime.tensors import bytes_tensor

JSON_TYPES = (
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "application/vnd.kserve+json",
)
"""Types that may hold JSON: the two that HTTP and curl fill in when the client names none are let through to the parser."""


def is_medium(call: Call, plan: Plan) -> bool:
    """True when the body is the medium itself, False when it is JSON; RequestError 415 for anything else."""
    if JSON_LENGTH in call.headers:
        if call.dialect != "v2":
            raise invalid(f"{JSON_LENGTH}: binary tensors belong to the route /v2/models/{plan.model}/infer")
        return False
    content_type = call.content_type
    if plan.media and call.dialect != "v1" and content_type.startswith(plan.media):
        return True
    if content_type == "application/json":
        return False
    if plan.media and call.dialect == "torchserve" and not content_type.startswith("multipart/"):
        return True  # TorchServe's clients send files without naming their type
    if content_type in JSON_TYPES:
        return False
    taken = ["application/json", *(f"{kind}*" if kind.endswith("/") else kind for kind in plan.media)]
    raise unsupported_media(f"Content-Type {content_type}: must be {' or '.join(taken)}")


def decode_medium(body: bytes) -> Decoded:
    """The body itself is the one element of the one input: an image, a recording, a text."""
    if not body:
        raise invalid("the body is empty")
    return Decoded(inputs=[bytes_tensor([body])], is_medium=True)
