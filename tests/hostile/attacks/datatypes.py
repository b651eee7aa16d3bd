"""Datatypes other than FP32, several inputs, variable dimensions: for the model that `testkit.tiny_media.serve_echo` serves."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
from hostile.attack import LENGTH, TORCHSERVE, V1, Attack, binary, dump
from hostile.attacks.arrayfiles import NPY, SAFETENSORS, npy

GOOD: dict[str, dict[str, Any]] = {
    "ids": {"datatype": "INT64", "shape": [1, 2], "data": [1, 2]},
    "flags": {"datatype": "BOOL", "shape": [1, 3], "data": [True, False, True]},
    "half": {"datatype": "FP16", "shape": [1, 2], "data": [0.5, -1]},
    "byte": {"datatype": "UINT8", "shape": [1, 2], "data": [0, 255]},
}
PACKED = {
    "ids": struct.pack("<2q", 1, 2),
    "flags": b"\1\0\1",
    "half": np.float16([0.5, -1]).tobytes(),
    "byte": b"\0\xff",
}
ROW = {name: tensor["data"] for name, tensor in GOOD.items()}


def document(**changes: dict[str, Any] | None) -> bytes:
    """A V2 request that is right but for the named inputs; None leaves one out."""
    tensors = {
        name: {**tensor, **(changes.get(name) or {})}
        for name, tensor in GOOD.items()
        if changes.get(name, {}) is not None
    }
    return dump({"inputs": [{"name": name, **tensor} for name, tensor in tensors.items()]})


def text(name: str, data: str) -> bytes:
    """A V2 request in which one input's data is this text."""
    return document(**{name: {"data": "HERE"}}).replace(b'"HERE"', data.encode())


def packed(
    title: str,
    says: str | tuple[str, ...],
    sizes: dict[str, Any] | None = None,
    more: bytes = b"",
    status: int = 400,
    **pieces: bytes,
) -> Attack:
    """A V2 request with all inputs in binary form; sizes: what is said of theirs."""
    data = {**PACKED, **pieces}
    tensors = [
        {
            "name": name,
            "datatype": tensor["datatype"],
            "shape": tensor["shape"],
            "parameters": {"binary_data_size": (sizes or {}).get(name, len(data[name]))},
        }
        for name, tensor in GOOD.items()
    ]
    return binary(title, dump({"inputs": tensors}), b"".join(data.values()) + more, says, status=status)


def row(**changes: Any) -> bytes:
    """A V1 request of one row by name."""
    return dump({"instances": [{**ROW, **changes}]})


ATTACKS = (
    Attack("an integer has a point", text("ids", "[1.0, 2]"), "input 'ids': data: Expected `int`, got `float`"),
    Attack("an integer has an exponent", text("ids", "[1e3, 2]"), "input 'ids': data: Expected `int`, got `float`"),
    Attack("an integer is 2^63", text("ids", f"[{2**63}, 2]"), "input 'ids': a value is out of the range of INT64"),
    Attack("an integer is beyond 64 bits", text("ids", f"[{2**64}, 2]"), "input 'ids'"),
    Attack("an integer is -2^63 - 1", text("ids", f"[{-(2**63) - 1}, 2]"), "input 'ids'"),
    Attack("an integer has 4,000 digits", text("ids", f"[{'9' * 4000}, 2]"), "input 'ids'"),
    Attack("an integer has 100,000 digits", text("ids", f"[{'9' * 100_000}, 2]"), "input 'ids'"),
    Attack("an integer is a flag", text("ids", "[true, 2]"), "input 'ids': data: Expected `int`, got `bool`"),
    Attack("an integer is a text", text("ids", '["1", 2]'), "input 'ids': data: Expected `int`, got `str`"),
    Attack(
        "an integer is negative zero", text("byte", "[-1, 2]"), "input 'byte': a value is out of the range of UINT8"
    ),
    Attack("a byte is 256", text("byte", "[0, 256]"), "input 'byte': a value is out of the range of UINT8"),
    Attack("a byte is NaN", text("byte", "[0, NaN]"), "JSON has no NaN and no Infinity"),
    Attack("a flag is a number", text("flags", "[1, 0, 1]"), "input 'flags': data: Expected `bool`, got `int`"),
    Attack(
        "a flag is a text", text("flags", '["true", true, true]'), "input 'flags': data: Expected `bool`, got `str`"
    ),
    Attack("a flag is null", text("flags", "[null, true, true]"), "input 'flags': data: Expected `bool`, got `null`"),
    Attack("a half is over FP16", text("half", "[70000, 0]"), "input 'half': a value is out of the range of FP16"),
    Attack("a half is far over FP16", text("half", "[-1e308, 0]"), "input 'half': a value is out of the range of FP16"),
    Attack(
        "an input is missing",
        document(byte=None),
        "inputs: missing ['byte'], unknown []; this model has ['ids', 'flags', 'half', 'byte']",
    ),
    Attack(
        "all inputs are missing but one",
        document(flags=None, half=None, byte=None),
        "inputs: missing ['flags', 'half', 'byte']",
    ),
    Attack(
        "a variable dimension is none",
        document(ids={"shape": [1, 0], "data": []}),
        "input 'ids': shape [1, 0] holds no elements",
    ),
    Attack(
        "a variable dimension is negative",
        document(ids={"shape": [1, -1]}),
        "input 'ids': shape [1, -1], must be [-1, -1]",
    ),
    Attack(
        "two variable dimensions are negative",
        document(ids={"shape": [-1, -2]}),
        "input 'ids': shape [-1, -2], must be [-1, -1]",
    ),
    Attack(
        "rows differ between inputs",
        document(ids={"shape": [2, 1]}),
        "inputs: all must have the same number of rows, at least 1; got {'ids': 2, 'flags': 1, 'half': 1, 'byte': 1}",
    ),
    Attack(
        "a shape is 2^63 in a variable dimension",
        document(ids={"shape": [1, 2**63]}),
        "serving.limits.maxElements",
        413,
    ),
    Attack(
        "elements are too many together",
        document(ids={"shape": [1, 2**23]}, byte={"shape": [1, 2**23 + 1]}),
        "16777222 elements, at most 16777216 are taken (serving.limits.maxElements)",
        413,
    ),
    Attack(
        "the shapes of two inputs are swapped",
        document(flags={"shape": [1, 2]}, ids={"shape": [1, 3]}),
        "input 'ids': shape [1, 3] means 3 elements, data has 2",
    ),
    packed("a flag's byte is 2", "input 'flags': a BOOL is one byte, 0 or 1", flags=b"\0\1\2"),
    packed(
        "two sizes are swapped", "input 'ids': 3 bytes, but shape [1, 2] of INT64 takes 16", {"ids": 3, "flags": 16}
    ),
    packed("sizes overlap", "binary_data_size 4, but 1 bytes are left", {"byte": 4, "flags": 4}),
    packed("sizes add up to 2^64", "binary_data_size 18446744073709551616, but", {"ids": 2**64, "flags": 2**64}),
    packed(
        "a size is far beyond the body in the middle",
        "input 'half': binary_data_size 9223372036854775807, but",
        {"half": 2**63 - 1},
    ),
    packed("bytes are left over", ("26 bytes follow the JSON", "says 25 in all"), more=b"a"),
    packed(
        "there is one tensor's bytes for all",
        "bytes are left of the body's binary part",
        ids=b"",
        flags=b"",
        half=b"",
        sizes={"ids": 16, "flags": 3, "half": 4, "byte": 2},
    ),
    binary(
        "raw mode is for one input",
        b"",
        bytes(40),
        f"{LENGTH}: 0 is for models of one input, this one has ['ids', 'flags', 'half', 'byte']",
        "0",
    ),
    Attack(
        "an npy file is for one input",
        npy(np.zeros((1, 2), np.int64)),
        "an npy file holds one tensor, this model takes ['ids', 'flags', 'half', 'byte']",
        content_type=NPY,
    ),
    Attack(
        "an npy answer is for one output",
        document(),
        "this route answers in application/json",
        406,
        headers=(("Accept", NPY),),
    ),
    Attack(
        "a safetensors file lacks inputs",
        b"\x02" + bytes(7) + b"{}",
        "body: missing ['ids', 'flags', 'half', 'byte']",
        content_type=SAFETENSORS,
    ),
    Attack(
        "rows are plain",
        b'{"instances": [[1, 2]]}',
        "this model has several inputs, each row must be an object with ['ids', 'flags', 'half', 'byte']",
        path=V1,
    ),
    Attack(
        "a row lacks a name",
        dump({"instances": [{"ids": [1]}]}),
        "instances[0]: missing ['flags', 'half', 'byte']",
        path=V1,
    ),
    Attack("a row has an empty list", row(ids=[]), "input 'ids': shape [1, 0] holds no elements", path=V1),
    Attack("a row has a scalar", row(ids=1), "instances, input 'ids': shape [1], must be [-1, -1]", path=V1),
    Attack("a row has a text", row(ids="[1]"), "instances, input 'ids'", path=V1),
    Attack(
        "columns are one tensor",
        b'{"inputs": [[1, 2]]}',
        "inputs: this model has several, give an object with ['ids', 'flags', 'half', 'byte']",
        path=V1,
    ),
    Attack(
        "columns differ in rows",
        dump({"inputs": {name: [value] * (1 + (name == "ids")) for name, value in ROW.items()}}),
        "inputs: all must have the same number of rows",
        path=V1,
    ),
    Attack("rows are plain, by TorchServe's route", b"[[1, 2]]", "this model has several inputs", path=TORCHSERVE),
    Attack(
        "a name comes four times",
        json.dumps({"inputs": [{"name": "ids", **GOOD["ids"]}] * 4}).encode(),
        "each name may appear once",
    ),
)
