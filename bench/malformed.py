"""The hand-made bad requests of tests/hostile, for the mlp: one table, so that what is tested is what is measured.

Each must be answered with its own 4xx. Those about what a server does not do (501) or cannot do in time (504) are left out.
"""

from __future__ import annotations

import http.client
import importlib
import sys
from collections.abc import Iterator
from typing import Any

from targets import HERE

sys.path.append(str(HERE.parent / "tests"))  # as pytest's `pythonpath`

TABLES = ("v2_json", "v2_binary", "v1", "torchserve", "arrayfiles", "compression", "routes")


def make_malformed(model: str) -> list[Any]:
    """The attacks (`hostile.attack.Attack`) on a model with one input `x`, FP32 `[-1, 10]`."""
    return [attack.for_model(model) for attack in _read_tables() if attack.status < 500]


def _read_tables() -> Iterator[Any]:
    for name in TABLES:
        yield from importlib.import_module(f"hostile.attacks.{name}").ATTACKS


def serialize(attack: Any) -> bytes:
    """The bytes of the request."""
    lines = [
        f"{name}: {value}"
        for name, value in (("Host", "bench"), *attack.fields(), ("Content-Length", str(len(attack.body))))
    ]
    return "\r\n".join([f"{attack.method} {attack.path} HTTP/1.1", *lines, "", ""]).encode("latin-1") + attack.body


def ask(connection: http.client.HTTPConnection, attack: Any) -> int:
    """The status of the answer."""
    connection.putrequest(attack.method, attack.path, skip_accept_encoding=True)
    for name, value in attack.fields():
        connection.putheader(name, value.encode("latin-1"))
    connection.putheader("Content-Length", str(len(attack.body)))
    connection.endheaders(attack.body)
    response = connection.getresponse()
    response.read()
    return response.status
