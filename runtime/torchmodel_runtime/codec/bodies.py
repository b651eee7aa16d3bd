"""What a body is, by its media type and the route it came on; and bodies that are the medium itself. Called by `codec`.

Clients are bad at naming types: curl says x-www-form-urlencoded for JSON, TorchServe's say nothing for a picture. So a type that
HTTP or curl fill in by themselves is looked at as what the route most likely means, and a body that then is no JSON is told
what it looks like instead.
"""

from __future__ import annotations

from typing import Literal

from torchmodel_runtime.codec.decoded import Decoded
from torchmodel_runtime.codec.negotiation import FORM_TYPES
from torchmodel_runtime.codec.plan import Plan
from torchmodel_runtime.codec.v2 import JSON_LENGTH
from torchmodel_runtime.errors import invalid, unsupported_media
from torchmodel_runtime.exchange import Call, Dialect
from torchmodel_runtime.tensors import bytes_tensor

Kind = Literal["json", "medium", "npy", "safetensors", "form"]
"""json: the dialect's document, with binary tensors behind it in V2."""

JSON_TYPES = (
    "application/json",
    "application/octet-stream",
    "application/x-www-form-urlencoded",
    "application/vnd.kserve+json",
)
"""Types that may hold JSON: the two that HTTP and curl fill in when the client names none are let through to the parser."""

FORM = "multipart/form-data"

_NPY_TYPES = (*FORM_TYPES["npy"], "application/npy")

_MAGIC = (
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\0", "a TIFF image"),
    (b"MM\0*", "a TIFF image"),
    (b"\x93NUMPY", "an npy file (Content-Type: application/x-npy)"),
    (b"\x1f\x8b", "gzip data (Content-Encoding: gzip)"),
    (b"PK\x03\x04", "a zip file, as torch.save and numpy.savez write them"),
    (b"\x80\x02", "a pickle, which is never read"),
    (b"\x80\x04", "a pickle, which is never read"),
    (b"\x80\x05", "a pickle, which is never read"),
    (b"fLaC", "a FLAC recording"),
    (b"OggS", "an Ogg recording"),
    (b"ID3", "an MP3 recording"),
    (b"%PDF", "a PDF document"),
    (b"<", "HTML or XML"),
)
"""First bytes, and what they say in a message; nothing is decided by them."""


def classify(call: Call, plan: Plan) -> Kind:
    """What the body is to be read as; RequestError 400 or 415 for what the route does not take."""
    content_type, dialect = call.content_type, call.dialect
    if JSON_LENGTH in call.headers:
        if dialect != "v2":
            raise invalid(f"{JSON_LENGTH}: binary tensors belong to the route /v2/models/{plan.model}/infer")
        return "json"
    if content_type == "application/json":
        return "json"
    if dialect != "v1":
        if content_type in _NPY_TYPES:
            return "npy"
        if content_type in FORM_TYPES["safetensors"]:
            return "safetensors"
        if plan.media and content_type.startswith(plan.media):
            return "medium"
    if dialect == "torchserve":
        if content_type == FORM:
            return "form"
        if plan.media and not content_type.startswith("multipart/"):
            return "medium"  # TorchServe's clients send files without naming their type
    if content_type in JSON_TYPES:
        return "json"
    raise unsupported_media(f"Content-Type {content_type[:100]}: must be {' or '.join(taken_types(dialect, plan))}")


def taken_types(dialect: Dialect, plan: Plan) -> list[str]:
    """The types that a route takes for this model, for messages and for OpenAPI."""
    taken = ["application/json"]
    if dialect != "v1":
        taken += [f"{kind}*" if kind.endswith("/") else kind for kind in plan.media]
        if all(spec.datatype != "BYTES" for spec in plan.signature.inputs):
            taken += ([FORM_TYPES["npy"][0]] if plan.only else []) + [FORM_TYPES["safetensors"][0]]
    return taken + ([FORM] if dialect == "torchserve" else [])


def check_looks_like_json(call: Call, plan: Plan) -> None:
    """RequestError 400 that says what the body looks like, when it begins like no JSON document."""
    body = call.body
    if body.startswith((b"{", b"[")) or JSON_LENGTH in call.headers:
        return
    begin = body[:64].lstrip()[:1]
    if begin in (b"{", b"["):
        return
    if not body.strip():
        raise invalid("body: is empty, must be a JSON document")
    found = next((words for magic, words in _MAGIC if body.startswith(magic)), "")
    if not found and body[:4] == b"RIFF":
        found = "a WebP image" if body[8:12] == b"WEBP" else "a WAV recording"
    if not found:
        return  # the parser's own message is as good
    if plan.media and found.startswith("a") and any(word in found for word in ("image", "recording")):
        raise invalid(f"body: looks like {found}, its Content-Type must say so ({' or '.join(plan.media)}...)")
    takes = "JSON" if plan.media else f"tensors {list(plan.inputs)}, as JSON or in binary form"
    raise invalid(f"body: looks like {found}; this model takes {takes} (GET /v2/models/{plan.model})")


def decode_medium(body: bytes) -> Decoded:
    """The body itself is the one element of the one input: an image, a recording, a text."""
    if not body:
        raise invalid("the body is empty")
    return Decoded(inputs=[bytes_tensor([body])], is_medium=True)
