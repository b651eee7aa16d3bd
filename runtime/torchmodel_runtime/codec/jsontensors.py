"""A JSON array as a tensor of the datatype and shape that the signature declares, or a RequestError 400 that says why not.

Dialects call it wherever a dialect holds data; every limit on nesting, range and shape of that data stands here. Knows no
dialect. `where` begins each message: the input's name, or the place in the body.
"""

from __future__ import annotations

import re
import types
from typing import Any

import msgspec
import numpy as np

from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.errors import invalid
from torchmodel_runtime.tensors import FLOATS, NUMPY_DTYPES

MAX_DEPTH = 9
"""Nesting of JSON data: a signature has at most 8 dimensions, V1 puts one list around scalars."""

_NOT_JSON = re.compile(rb"[\[,:\s]-?(?:NaN|Infinity)\s*[,\]}]")
"""What Python's json module writes for numbers that JSON does not have."""

_ELEMENTS: dict[str, Any] = {"b": bool, "u": int, "i": int, "f": float, "V": float, "O": str}


def decode_data(where: str, data: msgspec.Raw | bytes, spec: TensorSpec) -> np.ndarray:
    """A JSON array, flat or nested, as an array of the declared datatype; never rounds an integer, never parses a string."""
    dtype = NUMPY_DTYPES[spec.datatype]
    depth = _nesting(data)
    if not 1 <= depth <= MAX_DEPTH:
        raise invalid(f"{where}: data must be a JSON array of at most {MAX_DEPTH} levels")
    values = decode_json(_data_decoders[dtype.kind, depth], data, f"{where}: data")
    try:
        with np.errstate(over="ignore"):  # an overflow shows as infinity, which is looked for below
            array = np.array(values, dtype=dtype)
    except OverflowError:
        raise invalid(f"{where}: a value is out of the range of {spec.datatype}") from None
    except ValueError:
        raise invalid(f"{where}: data is ragged: the lists of one level differ in length") from None
    if spec.datatype in FLOATS and not np.isfinite(array).all():
        raise invalid(f"{where}: a value is out of the range of {spec.datatype}")
    return array


def check_shape(where: str, shape: list[int], spec: TensorSpec) -> None:
    """Compare a shape that was given, or that the data has, with the declared one; -1 there is any size."""
    fits = len(shape) == len(spec.shape) and all(
        given >= 0 if allowed == -1 else given == allowed for given, allowed in zip(shape, spec.shape, strict=False)
    )
    if not fits:
        raise invalid(f"{where}: shape {shape}, must be {spec.shape} (-1 is any)")


def decode_json(decoder: msgspec.json.Decoder[Any], data: bytes | msgspec.Raw, where: str = "body") -> Any:
    """Decode by msgspec, whose message names the field and what it must be."""
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        hint = "; JSON has no NaN and no Infinity" if _NOT_JSON.search(data) else ""
        raise invalid(f"{where}: {error}{hint}") from None


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
    for kind, element in _ELEMENTS.items():
        nested: Any = element
        for depth in range(1, MAX_DEPTH + 1):
            nested = types.GenericAlias(list, (nested,))
            decoders[kind, depth] = msgspec.json.Decoder(nested)
    return decoders


_data_decoders = _make_data_decoders()
