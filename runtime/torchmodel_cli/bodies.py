"""What a person has (a file, JSON, a sentence) → a request that the model's task understands. Pure but for reading the file.

Called by `prediction`.
"""

from __future__ import annotations

import json
import mimetypes
import sys
from pathlib import Path
from typing import Any, NamedTuple

MEDIA_BY_INPUT = {"image": ("image/",), "audio": ("audio/",), "text": ("text/",)}
"""The name of a task's one input says which medium it takes (docs/reference/torchmodel.md, task)."""

EXAMPLES = {"image": "photo.jpg", "audio": "speech.wav", "text": "'A sentence.'"}


class BadUse(Exception):
    """The command was given something it cannot send; exit code 2."""


class Body(NamedTuple):
    """A request, without its address."""

    route: str
    """Template with {name}."""
    content_type: str
    data: bytes


def make_body(given: str, inputs: list[dict[str, Any]]) -> Body:
    """The request for what was given: `-`, a file's name, JSON, or (for a text model) the text itself. Raises BadUse."""
    medium = str(inputs[0]["name"]) if len(inputs) == 1 and inputs[0]["datatype"] == "BYTES" else ""
    if given == "-":
        return _from_bytes(sys.stdin.buffer.read(), "standard input", "", medium)
    if given.lstrip()[:1] in ("{", "["):
        return _from_json(given.encode(), "the argument")
    file = Path(given)
    if file.is_file():
        return _from_bytes(file.read_bytes(), given, mimetypes.guess_type(file.name)[0] or "", medium)
    if medium == "text" and not file.suffix:
        return Body("/predictions/{name}", "text/plain", given.encode())
    hint = f"; this model takes {medium}, for example {EXAMPLES[medium]}" if medium in EXAMPLES else ""
    raise BadUse(f"{given!r} is neither a file nor JSON{hint}")


def _from_bytes(data: bytes, where: str, content_type: str, medium: str) -> Body:
    if not data:
        raise BadUse(f"{where} is empty")
    is_json = content_type == "application/json" or (not content_type and data.lstrip()[:1] in (b"{", b"["))
    if is_json:
        return _from_json(data, where)
    families = MEDIA_BY_INPUT.get(medium, ())
    if not families:
        raise BadUse(f"{where}: this model takes tensors; give a .json file or JSON")
    if content_type and not content_type.startswith(families):
        raise BadUse(f"{where} is {content_type}, but this model takes {medium}")
    # the server recognises images and recordings by their bytes, so the family is enough
    fallback = {"image": "image/*", "audio": "audio/*", "text": "text/plain"}[medium]
    return Body("/predictions/{name}", "text/plain" if medium == "text" else content_type or fallback, data)


def _from_json(data: bytes, where: str) -> Body:
    """JSON goes to the protocol it is written in: V2 has tensors with names, V1 `instances`, the rest is TorchServe's."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise BadUse(f"{where} is not JSON: {error}") from None
    inputs = document.get("inputs") if isinstance(document, dict) else None
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) and "datatype" in inputs[0]:
        route = "/v2/models/{name}/infer"
    elif isinstance(document, dict) and ("instances" in document or "inputs" in document):
        route = "/v1/models/{name}:predict"
    else:
        route = "/predictions/{name}"
    return Body(route, "application/json", data)
