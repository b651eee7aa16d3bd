"""What a bad request is, and the pieces that the tables under `attacks/` are built of. Pure: no server, no torch.

The tables for a model with one input `x`, FP32 `[-1, 10]`, call it `{model}`, so that `bench/` sends the same to a model of its
own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

V2 = "/v2/models/{model}/infer"
V1 = "/v1/models/{model}:predict"
TORCHSERVE = "/predictions/{model}"

JSON, BINARY = "application/json", "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"

ROW = [0.5, -1.0, 2.0, 0.0, 1.5, -0.25, 3.0, 1.0, -2.0, 0.75]


@dataclass(frozen=True)
class Attack:
    """One bad request, and what it must be answered."""

    title: str
    """What is wrong, as a sentence; the test's id."""
    body: bytes
    says: str | tuple[str, ...] = ()
    """In the error's message: what was given, and what is allowed."""
    status: int = 400
    path: str = V2
    content_type: str | None = JSON
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def for_model(self, model: str) -> Attack:
        """With the model's name in its path."""
        return replace(self, path=self.path.replace("{model}", model))

    @property
    def is_torchserve(self) -> bool:
        """True where errors have TorchServe's form."""
        return self.path.startswith(("/predictions", "/ping", "/models", "/explanations", "/invocations"))

    @property
    def words(self) -> tuple[str, ...]:
        """`says`, as a tuple."""
        return (self.says,) if isinstance(self.says, str) else self.says

    def fields(self) -> list[tuple[str, str]]:
        """Header fields, without those that frame the body."""
        return ([("Content-Type", self.content_type)] if self.content_type is not None else []) + list(self.headers)


def on(path: str, attacks: Iterable[Attack]) -> tuple[Attack, ...]:
    """The same on another route."""
    return tuple(replace(attack, path=path) for attack in attacks)


def dump(value: Any) -> bytes:
    """JSON, with Python's NaN and Infinity where they are in it."""
    return json.dumps(value).encode()


def v2(*, more: dict[str, Any] | None = None, without: str = "", **changes: Any) -> bytes:
    """A V2 request that is right but for the changes of its one tensor; more: fields beside `inputs`."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 10], "data": ROW, **changes}
    tensor.pop(without, None)
    return dump({"inputs": [tensor], **(more or {})})


def v2_text(data: str, shape: str = "[1, 10]") -> bytes:
    """A V2 request whose data is this text, which may be no JSON."""
    return f'{{"inputs": [{{"name": "x", "datatype": "FP32", "shape": {shape}, "data": {data}}}]}}'.encode()


def ten(element: str) -> str:
    """A row of which the first element is this text."""
    return f"[{element}, 0, 0, 0, 0, 0, 0, 0, 0, 0]"


def binary(
    title: str, header: bytes, payload: bytes, says: str | tuple[str, ...], length: str | None = None, **more: Any
) -> Attack:
    """A V2 request with binary tensors; length: what the header's length is said to be."""
    told = (LENGTH, str(len(header)) if length is None else length)
    return Attack(title, header + payload, says, content_type=BINARY, headers=(told,), **more)


def binary_header(size: Any, **changes: Any) -> bytes:
    """The JSON of a request with so many bytes of x."""
    return v2(without="data", parameters={"binary_data_size": size}, **changes)
