"""Sends an attack and checks the refusal. What the tests of this folder share."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from hostile.attack import Attack
from testkit.runtime_process import RuntimeProcess

TIMEOUT_S = 15
"""Nothing may take so long; what takes a second or two on a busy machine is no failure."""

ALLOWED_5XX = (501, 504)
"""What this server does not do; a deadline that the client set so that it cannot be met."""

MAX_TOLD_BYTES = 4096
"""Of an error: nobody gets back a megabyte that was sent."""

TORCHSERVE_TYPES = {
    400: "BadRequestException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    406: "NotAcceptableException",
    413: "RequestEntityTooLargeException",
    415: "UnsupportedMediaTypeException",
    501: "NotImplementedException",
}

CHUNK_BYTES = 60_000


def table(attacks: Iterable[Attack]) -> pytest.MarkDecorator:
    """A test for each attack, its sentence as id."""
    listed = list(attacks)
    return pytest.mark.parametrize("attack", listed, ids=[attack.title for attack in listed])


def as_one(attack: Attack) -> bytes:
    """The request with the length of its body, as most clients send it."""
    return _head(attack, ("Content-Length", str(len(attack.body)))) + attack.body


def in_chunks(attack: Attack) -> bytes:
    """The same without a length: it goes another way through the server."""
    pieces = [attack.body[start : start + CHUNK_BYTES] for start in range(0, len(attack.body), CHUNK_BYTES)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return _head(attack, ("Transfer-Encoding", "chunked")) + chunks + b"0\r\n\r\n"


def _head(attack: Attack, *framing: tuple[str, str]) -> bytes:
    lines = [f"{name}: {value}" for name, value in (("Host", "test"), *attack.fields(), *framing)]
    return "\r\n".join([f"{attack.method} {attack.path} HTTP/1.1", *lines, "", ""]).encode("latin-1")


def ask(server: RuntimeProcess, sent: bytes) -> tuple[int, dict[str, str], bytes]:
    """The answer to bytes on a connection of their own; the server may answer, and close, before it has read all of them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=TIMEOUT_S) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(sent)
        return read_answer(connection)


def read_answer(connection: socket.socket, seen: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Status, header fields by lower-case name, body by its length."""
    while b"\r\n\r\n" not in seen:
        seen += receive(connection)
    head, _, body = seen.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += receive(connection)
    return int(first.split()[1]), headers, body


def receive(connection: socket.socket) -> bytes:
    """Some bytes; ConnectionError when there are no more."""
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("the server closed the connection without a whole answer")
    return data


def check_refusal(attack: Attack, status: int, headers: dict[str, str], body: bytes) -> str:
    """The status that was expected, in the dialect's own form, with the words that help; the sentence itself."""
    assert status == attack.status, body[:500]
    assert status < 500 or status in ALLOWED_5XX
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"]
    assert len(body) <= MAX_TOLD_BYTES
    told: dict[str, Any] = json.loads(body)
    if attack.is_torchserve:
        assert (set(told), told["code"]) == ({"code", "type", "message"}, status)
        assert told["type"] == TORCHSERVE_TYPES[status]
        message = told["message"]
    else:
        assert set(told) == {"error"}
        message = told["error"]
    for words in attack.words:
        assert words in message
    assert "Traceback" not in message
    return str(message)


def refuse_both_ways(server: RuntimeProcess, attack: Attack) -> None:
    """By either way through the server the same is said."""
    attack = attack.for_model(server.config.name)
    said = [check_refusal(attack, *ask(server, sent)) for sent in (as_one(attack), in_chunks(attack))]
    if attack.status != 504:  # which says how long it took
        assert said[0] == said[1]


def failures_inside(server: RuntimeProcess) -> list[str]:
    """Log lines of level error: a request is never the reason of one."""
    return [line for line in server.log.splitlines() if '"level":"error"' in line]
