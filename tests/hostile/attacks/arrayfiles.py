"""npy and safetensors."""

from __future__ import annotations

import io
import pickle
import struct
from dataclasses import replace
from typing import Any

import numpy as np
from hostile.attack import ROW, TORCHSERVE, Attack, dump

NPY, SAFETENSORS = "application/x-npy", "application/vnd.safetensors"
X = np.float32([ROW])
DATA = X.tobytes()
PLAIN = "not an npy file of plain numbers: its header must give descr, fortran_order and shape"


def npy(array: np.ndarray, **options: Any) -> bytes:
    """As numpy writes it."""
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npy_text(
    header: str | bytes, payload: bytes = DATA, version: bytes = b"\x01\x00", size: int | None = None
) -> bytes:
    """An npy file with this text as header; size: what its length is said to be."""
    text = header.encode() if isinstance(header, str) else header
    width = "<H" if version[0] == 1 else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(text) if size is None else size) + text + payload


def npy_header(descr: str = "'<f4'", order: str = "False", shape: str = "(1, 10)") -> str:
    """The literal that numpy writes."""
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


class Explosive:
    """What a pickle could do."""

    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("the pickle was read",)


def file(title: str, body: bytes, says: str | tuple[str, ...], status: int = 400) -> Attack:
    """An npy file to V2's route."""
    return Attack(title, body, says, status, content_type=NPY)


NPY_FILES = (
    file("an npy file is empty", b"", "body: not an npy file"),
    file("an npy file is its magic alone", b"\x93NUMPY", "body: not an npy file"),
    file("an npy file is something else", b"PK\x03\x04" + bytes(100), "body: not an npy file"),
    file(
        "an npy file is of version 0", npy_text(npy_header(), version=b"\x00\x01"), "npy format 0.1, must be 1, 2 or 3"
    ),
    file(
        "an npy file is of version 9", npy_text(npy_header(), version=b"\x09\x00"), "npy format 9.0, must be 1, 2 or 3"
    ),
    file("an npy file's header is longer than the file", npy_text(npy_header(), size=4000), PLAIN),
    file(
        "an npy file's header has 64 KiB", npy_text(" " * 65535), "an npy header of 65535 bytes, at most 4096 are read"
    ),
    file(
        "an npy file's header has 4 GiB",
        npy_text(npy_header(), version=b"\x02\x00", size=2**32 - 1),
        "an npy header of 4294967295 bytes, at most 4096 are read",
    ),
    file("an npy file's header is empty", npy_text(""), PLAIN),
    file("an npy file's header is a list", npy_text("[1, 2]"), PLAIN),
    file(
        "an npy file's header calls a function",
        npy_text("{'descr': '<f4', 'fortran_order': False, 'shape': print('!')}"),
        PLAIN,
    ),
    file("an npy file's header is nested deep", npy_text("(" * 4000), PLAIN),
    file("an npy file's header has no shape", npy_text("{'descr': '<f4', 'fortran_order': False}"), PLAIN),
    file(
        "an npy file's header has a shape twice",
        npy_text("{'descr': '<f4', 'shape': (1, 10), 'shape': (1, 10)}"),
        PLAIN,
    ),
    file("an npy file's header has an item too many", npy_text(npy_header()[:-2] + "'a': 1}"), PLAIN),
    file("an npy file's header is no Latin-1", npy_text(b"{'descr': '\xff'}"), PLAIN),
    file(
        "an npy file holds pickled objects",
        npy(np.array([Explosive()], object), allow_pickle=True),
        "holds pickled Python objects, which are never read",
    ),
    file(
        "an npy file says that it holds pickled objects",
        npy_text(npy_header("'|O'"), pickle.dumps([Explosive()])),
        "holds pickled Python objects, which are never read",
    ),
    file("an npy file holds records", npy(np.zeros(10, [("a", "f4"), ("b", "i4")])), PLAIN),
    file("an npy file holds texts", npy(np.array([["a"] * 10])), "has dtype <U1, must be float32 (FP32)"),
    file("an npy file holds dates", npy(np.zeros((1, 10), "datetime64[s]")), PLAIN),
    file(
        "an npy file holds complex numbers", npy(X.astype(np.complex64)), "has dtype complex64, must be float32 (FP32)"
    ),
    file("an npy file holds FP64", npy(X.astype(np.float64)), "has dtype float64, must be float32 (FP32)"),
    file("an npy file's dtype is unknown", npy_text(npy_header("'<f3'")), "npy header: descr b'<f3'"),
    file("an npy file's dtype is of no width", npy_text(npy_header("'|V0'")), "has dtype |V0, must be float32 (FP32)"),
    file("an npy file's dtype is raw", npy_text(npy_header("'|V4'")), "has dtype |V4, must be float32 (FP32)"),
    file("an npy file's dtype is a list of commas", npy_text(npy_header("'f4,f4'")), PLAIN),
    file("an npy file's shape is negative", npy_text(npy_header(shape="(-1, 10)")), PLAIN),
    file("an npy file's shape is a fraction", npy_text(npy_header(shape="(1.0, 10)")), PLAIN),
    file("an npy file's shape is none", npy_text(npy_header(shape="()")), "shape [], must be [-1, 10]"),
    file(
        "an npy file's shape is a number",
        npy_text(npy_header(shape="(10,)")),
        ("shape [10], must be [-1, 10]", "one row"),
    ),
    file("an npy file's shape has no rows", npy_text(npy_header(shape="(0, 10)"), b""), "at least 1"),
    file(
        "an npy file's shape has ten dimensions",
        npy_text(npy_header(shape="(" + "1, " * 10 + ")")),
        "10 dimensions, at most 9 are taken (serving.limits.maxRank)",
    ),
    file(
        "an npy file's shape has a thousand dimensions",
        npy_text(npy_header(shape="(" + "9," * 1000 + ")")),
        "1000 dimensions, at most 9 are taken",
    ),
    file(
        "an npy file's shape is beyond all memory",
        npy_text(npy_header(shape=f"({2**50}, 10)")),
        "serving.limits.maxElements",
        413,
    ),
    file(
        "an npy file's shape is 2^64", npy_text(npy_header(shape=f"({2**64}, 10)")), "serving.limits.maxElements", 413
    ),
    file(
        "an npy file's shape has 3,000 digits",
        npy_text(npy_header(shape=f"({'9' * 3000}, 10)")),
        "serving.limits.maxElements",
        413,
    ),
    file("an npy file's shape is written in two parts", npy_text(npy_header(shape="(1 0, 10)")), "npy header: descr"),
    file("an npy file's data is cut off", npy(X)[:-1], "39 bytes follow the npy header, shape [1, 10] takes 40"),
    file(
        "an npy file's data is followed by more",
        npy(X) + b"\0",
        "41 bytes follow the npy header, shape [1, 10] takes 40",
    ),
    file(
        "an npy file's columns lie where rows should",
        npy(np.asfortranarray(np.zeros((10, 1), np.float32))),
        "shape [10, 1], must be [-1, 10]",
    ),
    file("an npy file says neither true nor false", npy_text(npy_header(order="1")), PLAIN),
    replace(
        file("an npy file is no file, by TorchServe's route", b"\x93NUMPY\x01", "body: not an npy file"),
        path=TORCHSERVE,
    ),
)


def header(
    dtype: Any = "F32", shape: Any = (1, 10), offsets: Any = (0, 40), name: str = "x", **more: Any
) -> dict[str, Any]:
    """One tensor."""
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}}


def tensors(
    title: str,
    head: Any,
    says: str | tuple[str, ...],
    payload: bytes = DATA,
    size: int | None = None,
    status: int = 400,
) -> Attack:
    """A safetensors file to V2's route; size: what its header's length is said to be."""
    text = head if isinstance(head, bytes) else dump(head)
    body = struct.pack("<Q", len(text) if size is None else size) + text + payload
    return Attack(title, body, says, status, content_type=SAFETENSORS)


LEAVE = "leave a gap, overlap or pass the end"
TAKEN = "bytes, at most"

SAFETENSORS_FILES = (
    Attack(
        "a safetensors file is empty",
        b"",
        "0 bytes are no safetensors file, which begins with 8 bytes of length",
        content_type=SAFETENSORS,
    ),
    Attack("a safetensors file has seven bytes", bytes(7), "7 bytes are no safetensors file", content_type=SAFETENSORS),
    tensors("a safetensors header is longer than the file", header(), TAKEN, size=10_000),
    tensors(
        "a safetensors header has 2^63 bytes",
        header(),
        "its header would have 9223372036854775808 bytes, at most",
        size=2**63,
    ),
    tensors(
        "a safetensors header has 2^64 - 1 bytes",
        header(),
        "its header would have 18446744073709551615 bytes, at most",
        size=2**64 - 1,
    ),
    tensors(
        "a safetensors header has two megabytes",
        b" " * 2_000_000,
        "its header would have 2000000 bytes, at most 262144 are taken",
    ),
    tensors(
        "a safetensors header has no bytes", b"", "safetensors header: Input data was truncated", payload=b"", size=0
    ),
    tensors("a safetensors header is cut off", header(), "safetensors header:", size=20),
    tensors("a safetensors header takes the data", header(), "safetensors header:", size=len(dump(header())) + 40),
    tensors("a safetensors header is a list", [], "safetensors header: Expected `object`, got `array`"),
    tensors("a safetensors header is no UTF-8", b'{"\xff": {}}', "safetensors header:"),
    tensors("a safetensors header is nested 100,000 deep", b'{"x": ' + b"[" * 100_000, "safetensors header:"),
    tensors("a safetensors header holds no tensors", {}, "40 bytes follow the safetensors header, its tensors take 0"),
    tensors(
        "a safetensors header holds metadata alone", {"__metadata__": {"a": "b"}}, "body: missing ['x']", payload=b""
    ),
    tensors("a safetensors header holds another tensor", header(name="z"), "body: missing ['x'], unknown ['z']"),
    tensors(
        "a safetensors header holds a name of 200,000 letters",
        header(name="z" * 200_000),
        "body: missing ['x'], unknown ['zzz",
    ),
    tensors(
        "a safetensors header holds 33 tensors",
        {f"t{n}": header(shape=[0], offsets=(0, 0))["x"] for n in range(33)},
        "33 tensors, at most 32 are taken (serving.limits.maxTensors)",
        payload=b"",
    ),
    tensors(
        "a safetensors header holds 3,000 tensors",
        {f"t{n}": header(shape=[0], offsets=(0, 0))["x"] for n in range(3_000)},
        "3000 tensors, at most 32 are taken (serving.limits.maxTensors)",
        payload=b"",
    ),
    tensors("a safetensors tensor is null", {"x": None}, "tensor 'x': Expected `object`, got `null`"),
    tensors(
        "a safetensors tensor has no dtype",
        {"x": {"shape": [1, 10], "data_offsets": [0, 40]}},
        "tensor 'x': Object missing required field `dtype`",
    ),
    tensors(
        "a safetensors tensor has a field too many",
        header(device="cuda"),
        "tensor 'x': Object contains unknown field `device`",
    ),
    tensors(
        "a safetensors tensor's dtype is another", header("F64", [1, 5]), "tensor 'x': dtype 'F64', must be F32 (FP32)"
    ),
    tensors("a safetensors tensor's dtype is unknown", header("F31"), "tensor 'x': dtype 'F31', must be F32 (FP32)"),
    tensors("a safetensors tensor's dtype has 200,000 letters", header("F" * 200_000), "must be F32 (FP32)"),
    tensors(
        "a safetensors tensor's shape is negative",
        header(shape=[-1, 10]),
        "tensor 'x': shape [-1, 10], must be [-1, 10]",
    ),
    tensors("a safetensors tensor's shape is none", header(shape=[]), "tensor 'x': shape [], must be [-1, 10]"),
    tensors(
        "a safetensors tensor's shape has no rows", header(shape=[0, 10], offsets=[0, 0]), "at least 1", payload=b""
    ),
    tensors(
        "a safetensors tensor's shape is beyond all memory",
        header(shape=[2**60, 10]),
        "serving.limits.maxElements",
        status=413,
    ),
    tensors("a safetensors tensor's shape is 2^64", header(shape=[2**64, 1]), "serving.limits.maxElements", status=413),
    tensors(
        "a safetensors tensor's shape has 80,000 dimensions",
        header(shape=[9] * 80_000),
        "80000 dimensions, at most 9 are taken (serving.limits.maxRank)",
    ),
    tensors(
        "a safetensors tensor's shape is not its size",
        header(shape=[2, 10]),
        "tensor 'x': 40 bytes, but shape [2, 10] of FP32 takes 80",
    ),
    tensors(
        "a safetensors tensor's offsets are three",
        header(offsets=[0, 20, 40]),
        "tensor 'x': Expected `array` of length 2",
    ),
    tensors("a safetensors tensor's offsets are backwards", header(offsets=[40, 0]), f"data_offsets [40, 0] {LEAVE}"),
    tensors("a safetensors tensor's offsets are negative", header(offsets=[-40, 0]), f"data_offsets [-40, 0] {LEAVE}"),
    tensors("a safetensors tensor's offsets pass the end", header(offsets=[0, 44]), f"data_offsets [0, 44] {LEAVE}"),
    tensors("a safetensors tensor's offsets are 2^63", header(offsets=[2**63, 2**63 + 40]), LEAVE),
    tensors(
        "a safetensors tensor's offsets leave bytes out",
        header(offsets=[0, 36]),
        "40 bytes follow the safetensors header, its tensors take 36",
    ),
    tensors(
        "a safetensors tensor's offsets leave a gap",
        header(offsets=[4, 44]),
        f"data_offsets [4, 44] {LEAVE}",
        payload=DATA + b"abcd",
    ),
    tensors(
        "two safetensors tensors lie over each other",
        {**header(), **header(name="z", offsets=[20, 60])},
        f"data_offsets [20, 60] {LEAVE}",
        payload=DATA + bytes(20),
    ),
    tensors(
        "two safetensors tensors are the same bytes", {**header(), **header(name="z")}, f"data_offsets [0, 40] {LEAVE}"
    ),
    Attack("a safetensors file is a pickle", pickle.dumps({"x": 1}), "no safetensors file", content_type=SAFETENSORS),
)

ATTACKS = NPY_FILES + SAFETENSORS_FILES
