"""Requests that are wrong in every way we could think of. Pure; each must be answered with a 4xx."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

V2_PATH = "/v2/models/bench/infer"
BINARY = "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class Malformed:
    """One wrong request."""

    title: str
    body: bytes
    path: str = V2_PATH
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/json"})


def v2(**changes: Any) -> bytes:
    """A V2 request to the mlp, right but for the changes."""
    tensor = {"name": "x", "shape": [1, 10], "datatype": "FP32", "data": [0.5] * 10}
    return json.dumps({"inputs": [{**tensor, **changes}]}).encode()


def binary(header: bytes, payload: bytes, length: str | None = None) -> dict[str, Any]:
    """Body and headers of a V2 request with binary tensors; length: what the header's length is said to be."""
    return {
        "body": header + payload,
        "headers": {"Content-Type": BINARY, LENGTH: str(len(header)) if length is None else length},
    }


def binary_header(size: int) -> bytes:
    """A V2 header that announces so many bytes of x."""
    tensor = {"name": "x", "shape": [1, 10], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [tensor]}).encode()


MALFORMED = (
    Malformed("no body", b""),
    Malformed("not JSON", b"{"),
    Malformed("not UTF-8", b'{"inputs": "\xff\xfe"}'),
    Malformed("another JSON type", b"[]"),
    Malformed("no inputs", b"{}"),
    Malformed("an empty list of inputs", b'{"inputs": []}'),
    Malformed("nested 50,000 deep", b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    Malformed("an unknown name", v2(name="z")),
    Malformed("an unknown datatype", v2(datatype="FP31")),
    Malformed("another datatype", v2(datatype="BYTES")),
    Malformed("a wrong shape", v2(shape=[1, 11], data=[0.5] * 11)),
    Malformed("a shape that is not the data's", v2(shape=[2, 10])),
    Malformed("a negative shape", v2(shape=[-1, 10])),
    Malformed("a shape beyond all memory", v2(shape=[2**40, 10])),
    Malformed("no rows", v2(shape=[0, 10], data=[])),
    Malformed("text among the numbers", v2(data=["a"] * 10)),
    Malformed("null among the numbers", v2(data=[None] * 10)),
    Malformed("ragged rows", v2(data=[[0.5] * 9, [0.5]])),
    Malformed("too much data, 1 MiB", v2(data=[0.5] * 200_000)),
    Malformed("an unknown model", v2(), "/v2/models/other/infer"),
    Malformed("an unknown route", v2(), "/v2/models/bench/nothing"),
    Malformed("V1 of a wrong shape", b'{"instances": [[1, 2, 3]]}', "/v1/models/bench:predict"),
    Malformed("binary data that is cut off", **binary(binary_header(40), bytes(39))),
    Malformed("binary data of a wrong size", **binary(binary_header(44), bytes(44))),
    Malformed("a binary header longer than the body", **binary(binary_header(40), bytes(40), "100000")),
    Malformed("a binary header length that is no number", **binary(binary_header(40), bytes(40), "ten")),
    Malformed("random bytes as binary tensors", **binary(bytes(range(256)), bytes(1000))),
)
