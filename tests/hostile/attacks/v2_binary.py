"""V2's binary tensors: the JSON and the bytes behind it, and what is said of either."""

from __future__ import annotations

import struct

from hostile.attack import LENGTH, ROW, TORCHSERVE, V1, Attack, binary, binary_header, dump, v2

X = struct.pack("<10f", *ROW)
LEFT = "bytes are left of the body's binary part"


def lengths(title: str, length: str, says: str | tuple[str, ...] = "must be a number of bytes") -> Attack:
    """A request that is right but for the length of its JSON."""
    return binary(title, binary_header(40), X, (LENGTH, says) if isinstance(says, str) else says, length)


def sizes(title: str, size: object, says: str, payload: bytes = X) -> Attack:
    """A request that is right but for `binary_data_size`."""
    return binary(title, binary_header(size), payload, says)


ATTACKS = (
    lengths("the JSON's length is a word", "ten", "got 'ten', must be a number of bytes"),
    lengths("the JSON's length is empty", ""),
    lengths("the JSON's length is negative", "-1"),
    lengths("the JSON's length has a sign", "+100"),
    lengths("the JSON's length is a fraction", "100.0"),
    lengths("the JSON's length is hexadecimal", "0x64"),
    lengths("the JSON's length is a superscript", "\u00b2"),
    lengths("the JSON's length has two values", "100, 100"),
    lengths("the JSON's length has a thousand digits", "1" * 1000),
    lengths("the JSON's length is 2^63", str(2**63), "9223372036854775808 bytes of JSON are announced, the body has"),
    lengths("the JSON's length is more than the body's", "100000", "100000 bytes of JSON are announced, the body has"),
    lengths("the JSON's length cuts the JSON off", "50", ("body: Input data was truncated",)),
    lengths("the JSON's length takes a byte of the tensor", str(len(binary_header(40)) + 1), ("body:",)),
    lengths("the JSON's length is all of the body", str(len(binary_header(40)) + 40), ("body:",)),
    Attack(
        "a length of JSON comes with a plain document",
        v2() + b"more",
        "4 bytes follow the JSON, binary_data_size of the inputs says 0 in all",
        headers=((LENGTH, str(len(v2()))),),
    ),
    sizes("a tensor is cut off", 40, f"binary_data_size 40, but 39 {LEFT}", X[:-1]),
    sizes(
        "a tensor is followed by a byte",
        40,
        "41 bytes follow the JSON, binary_data_size of the inputs says 40 in all",
        X + b"\0",
    ),
    sizes("a tensor's size is not its shape's", 44, "44 bytes, but shape [1, 10] of FP32 takes 40", X + b"abcd"),
    sizes("a tensor's size is zero", 0, "40 bytes follow the JSON, binary_data_size of the inputs says 0 in all"),
    sizes("a tensor's size is zero, and there is none", 0, "0 bytes, but shape [1, 10] of FP32 takes 40", b""),
    sizes("a tensor's size is negative", -40, "binary_data_size -40, must be a number of bytes"),
    sizes("a tensor's size is a fraction", 40.0, "binary_data_size 40.0, must be a number of bytes"),
    sizes("a tensor's size is a text", "40", "binary_data_size '40', must be a number of bytes"),
    sizes("a tensor's size is a megabyte of text", "4" * 1_000_000, "must be a number of bytes"),
    sizes("a tensor's size is a flag", True, "binary_data_size True, must be a number of bytes"),
    sizes("a tensor's size is a list", [40], "must be a number of bytes"),
    sizes("a tensor's size is null", None, "40 bytes follow the JSON, binary_data_size of the inputs says 0 in all"),
    sizes("a tensor's size is 2^63 - 1", 2**63 - 1, f"binary_data_size 9223372036854775807, but 40 {LEFT}"),
    sizes("a tensor's size is 2^64", 2**64, "binary_data_size"),
    sizes("a tensor's size is 2^64 + 40", 2**64 + 40, "binary_data_size"),
    binary(
        "a tensor is both here and there",
        v2(parameters={"binary_data_size": 40}),
        X,
        "has both data and binary_data_size, must have one of them",
    ),
    binary("a tensor's shape has no rows", binary_header(0, shape=[0, 10]), b"", "at least 1"),
    binary("a tensor's shape is negative", binary_header(40, shape=[-1, 10]), X, "shape [-1, 10], must be [-1, 10]"),
    binary(
        "a tensor's shape is beyond all memory",
        binary_header(40, shape=[2**61, 10]),
        X,
        "serving.limits.maxElements",
        status=413,
    ),
    binary(
        "a tensor's datatype has another width",
        binary_header(80, datatype="FP64"),
        X * 2,
        "datatype 'FP64', must be FP32",
    ),
    binary(
        "two tensors share the bytes",
        dump(
            {
                "inputs": [
                    {"name": n, "datatype": "FP32", "shape": [1, 10], "parameters": {"binary_data_size": 40}}
                    for n in "xz"
                ]
            }
        ),
        X,
        f"input 'z': binary_data_size 40, but 0 {LEFT}",
    ),
    binary("the JSON is no JSON", b"\0" * 100, X, "body:"),
    binary("the JSON is random bytes", bytes(range(256)), X, "body:"),
    binary("the JSON is missing, and its length is not 0", b"", X, "body:", "40"),
    binary("the JSON is nested 100,000 deep", b"[" * 100_000, X, "body:"),
    binary("raw mode has no body", b"", b"", "the body is empty", "0"),
    binary(
        "raw mode has half a row", b"", X[:-4], "body: 36 bytes, must be a multiple of 40: FP32 of shape [-1, 10]", "0"
    ),
    binary("raw mode has a byte too many", b"", X + b"\0", "body: 41 bytes, must be a multiple of 40", "0"),
    binary("raw mode has JSON", v2(), b"", "must be a multiple of 40", "0"),
    binary(
        "raw mode has more rows than the queue takes",
        b"",
        X * 1025,
        "has 1025 rows, the queue takes at most 1024 (serving.queue.maxRows)",
        "0",
        status=413,
    ),
    binary(
        "binary tensors come by V1",
        binary_header(40),
        X,
        f"{LENGTH}: binary tensors belong to the route /v2/models/",
        path=V1,
    ),
    binary(
        "binary tensors come by TorchServe's route",
        binary_header(40),
        X,
        f"{LENGTH}: binary tensors belong to the route /v2/models/",
        path=TORCHSERVE,
    ),
)
