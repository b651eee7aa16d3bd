"""A JSON array as a tensor of the datatype and shape that the signature declares, or a RequestError 400 that says why not.

Dialects call it wherever a dialect holds data; every limit on nesting, range and shape of that data stands here. Knows no
dialect. `where` begins each message: the input's name, or the place in the body.
"""

from __future__ import annotations

import math
import re
import struct
import types
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.config import Limits, TensorSpec
from torchmodel_runtime.errors import invalid, too_large
from torchmodel_runtime.tensors import FLOATS, NUMPY_DTYPES

MAX_DEPTH = 9
"""Nesting of JSON data: a signature has at most 8 dimensions, V1 puts one list around scalars."""

_NOT_JSON = re.compile(rb"(?:NaN|Infinity)\s*[,\]}]")
"""What Python's json module writes for numbers that JSON does not have, and what follows them there; by its first letter it is
found fast in megabytes that have none."""
_BEFORE = b"[,:- \t\r\n"

_SMALL = 1024
"""Elements from which on the plain check is as quick; a guess from measurements, nothing depends on it."""

_PIECE_BYTES = 1 << 20

_FP32 = NUMPY_DTYPES["FP32"]


def _element_type(datatype: str) -> Any:
    if datatype in FLOATS:
        return float
    return {"BOOL": bool, "BYTES": str}.get(datatype, int)


def decode_data(where: str, data: msgspec.Raw | bytes, spec: TensorSpec, limits: Limits) -> np.ndarray:
    """A JSON array, flat or nested, as an array of the declared datatype; never rounds an integer, never parses a string.

    Numbers become FP16 and BF16 by rounding to the nearest, as they do FP32. What is nested more deeply than is taken is refused
    before it is parsed.
    """
    datatype = spec.datatype
    depth, most = _nesting(data), min(MAX_DEPTH, limits.max_rank)
    if not 1 <= depth <= most:
        raise invalid(f"{where}: data must be a JSON array of at most {most} levels (serving.limits.maxRank)")
    values = decode_json(_data_decoders[datatype, depth], data, where, ": data")
    if datatype == "FP32" and depth <= 2:
        row = values if depth == 1 else values[0] if len(values) == 1 else []
        if 0 < len(row) <= _SMALL:
            return _pack_row(where, row, depth)
    try:
        array = _to_array(values, NUMPY_DTYPES[datatype])
    except OverflowError:
        raise invalid(f"{where}: a value is out of the range of {datatype}") from None
    except ValueError:
        raise invalid(f"{where}: data is ragged: the lists of one level differ in length") from None
    if datatype in FLOATS and not _is_finite(array):
        raise invalid(f"{where}: a value is out of the range of {datatype}")
    return array


def _pack_row(where: str, row: list[float], depth: int) -> np.ndarray:
    """One short row of FP32, the commonest request, in a third of the time: struct finds overflows by itself."""
    try:
        packed = struct.pack(f"<{len(row)}f", *row)
    except OverflowError:
        raise invalid(f"{where}: a value is out of the range of FP32") from None
    array = np.frombuffer(packed, _FP32)
    return array if depth == 1 else array.reshape(1, -1)


# an overflow shows as infinity, which is looked for; the decorator is cheaper than the block
@np.errstate(over="ignore")
def _to_array(values: list[Any], dtype: np.dtype[Any]) -> np.ndarray:
    return np.array(values, dtype)


def _is_finite(array: np.ndarray) -> bool:
    """True when no element is NaN or infinite. The sum of the squares alone tells so of most small arrays, in half the time."""
    if array.size <= _SMALL and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def check_json_elements(body: bytes | memoryview, limits: Limits) -> None:
    """RequestError 413 for more JSON values than are parsed; counted by the commas, those inside of strings left out."""
    limit = limits.max_json_elements
    if len(body) <= limit:  # cannot hold so many: spares small bodies the count
        return
    body = bytes(body)
    if body.count(b",") >= limit and _commas_outside_strings(body) >= limit:
        raise too_large(
            f"body: more than {limit} JSON values (serving.limits.maxJsonElements); send larger tensors in binary form"
        )


def _commas_outside_strings(body: bytes) -> int:
    """By pieces, since the answer is wanted before anything as large as the values is allocated."""
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    commas = 0
    is_inside = np.False_
    for start in range(0, len(plain), _PIECE_BYTES):
        piece = np.frombuffer(plain, np.uint8, min(_PIECE_BYTES, len(plain) - start), start)
        inside = np.logical_xor.accumulate(piece == ord('"')) ^ is_inside
        commas += int(((piece == ord(",")) & ~inside).sum())
        is_inside = inside[-1]
    return commas


def decode_json(
    decoder: msgspec.json.Decoder[Any], data: bytes | memoryview | msgspec.Raw, where: str = "body", part: str = ""
) -> Any:
    """Decode by msgspec, whose message names the field and what it must be."""
    try:
        return decoder.decode(data)
    except RecursionError:
        raise invalid(f"{where}{part}: lists and objects are nested too deep") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        hint = "; JSON has no NaN and no Infinity" if _has_no_number(data) else ""
        raise invalid(f"{where}{part}: {error}{hint}") from None


def _has_no_number(data: bytes | memoryview | msgspec.Raw) -> bool:
    text = bytes(data)
    return any(text[found.start() - 1] in _BEFORE for found in _NOT_JSON.finditer(text) if found.start())


def _nesting(data: msgspec.Raw | bytes) -> int:
    """How many `[` the text begins with."""
    depth = 0
    for byte in memoryview(data):
        if byte == 0x5B:
            depth += 1
        elif byte not in b" \t\r\n":
            break
        if depth > MAX_DEPTH:
            break
    return depth


def _make_data_decoders() -> dict[tuple[str, int], msgspec.json.Decoder[Any]]:
    decoders: dict[tuple[str, int], msgspec.json.Decoder[Any]] = {}
    for datatype in NUMPY_DTYPES:
        nested = _element_type(datatype)
        for depth in range(1, MAX_DEPTH + 1):
            nested = types.GenericAlias(list, (nested,))
            decoders[datatype, depth] = msgspec.json.Decoder(nested)
    return decoders


_data_decoders = _make_data_decoders()
