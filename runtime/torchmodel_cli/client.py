"""HTTP to a serving model, with the standard library only. Called by `prediction` and `localrun`."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from torchmodel_cli.bodies import BadUse, Body

TIMEOUT_S = 60.0
"""Longer than the default serving.requestTimeoutSeconds, so that the server's own answer arrives first."""


class ServerError(Exception):
    """The server did not answer, or answered with an error; the message is for a person."""


class Endpoint(NamedTuple):
    """Where a model is served."""

    base: str
    """Scheme, host and port, without a slash at the end."""
    name: str


def parse_endpoint(text: str) -> tuple[str, str | None]:
    """Base and model name of any URL of a model; the name is None when the URL says none. Raises BadUse."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise BadUse(
            f"{text!r} is not a URL; give http://host:port, or the name of a model that `torchmodel run` serves"
        )
    match = re.match(r"(.*?)/(?:v[12]/models|predictions)/([^/:?]+)", parts.path)
    prefix = match[1] if match else parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{prefix}", match[2] if match else None


def fetch_metadata(endpoint: Endpoint, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The V2 metadata of a model. Raises ServerError."""
    answer = json.loads(_exchange(f"{endpoint.base}/v2/models/{quote(endpoint.name)}", None, timeout_s))
    if not isinstance(answer, dict) or "inputs" not in answer:
        raise ServerError(f"{endpoint.base} answers, but not as the Open Inference Protocol V2 says")
    return answer


def find_names(base: str) -> list[str]:
    """The models that a server serves, by its own list. Raises ServerError."""
    answer = json.loads(_exchange(f"{base}/v1/models", None, TIMEOUT_S))
    return [str(name) for name in answer.get("models", [])]


def post(endpoint: Endpoint, body: Body, timeout_s: float = TIMEOUT_S) -> bytes:
    """The answer to a request. Raises ServerError."""
    url = endpoint.base + body.route.format(name=quote(endpoint.name))
    return _exchange(url, body, timeout_s)


def is_ready(base: str) -> bool:
    """True when the server takes requests."""
    try:
        _exchange(f"{base}/v2/health/ready", None, 2.0)
    except ServerError:
        return False
    return True


def _exchange(url: str, body: Body | None, timeout_s: float) -> bytes:
    headers = {"Accept": "application/json"} | ({"Content-Type": body.content_type} if body else {})
    request = urllib.request.Request(url, body.data if body else None, headers)  # noqa: S310 - scheme was checked
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:  # noqa: S310
            answer: bytes = response.read()
            return answer
    except urllib.error.HTTPError as error:
        raise ServerError(f"{error.code} {error.reason}: {_message_of(error.read())}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ServerError(f"no answer from {url}: {reason}") from None


def _message_of(body: bytes) -> str:
    """The sentence inside any dialect's error body."""
    try:
        document = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:200]
    if isinstance(document, dict):
        return str(document.get("error") or document.get("message") or document)
    return str(document)
