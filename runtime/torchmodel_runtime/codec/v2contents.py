"""Typed contents of V2's gRPC messages (`InferTensorContents`) to arrays and back. Called by `v2messages`.

A tensor's elements stand in the one field that belongs to its datatype. Floating-point numbers lie there as numpy has them and
are taken without a copy; integers are varints; BYTES are fields of their own. An integer that does not fit a smaller datatype
is refused, as in JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from torchmodel_runtime.codec import protowire
from torchmodel_runtime.codec.protowire import FIXED32, FIXED64, LENGTH, VARINT, TooManyFieldsError, WireError
from torchmodel_runtime.codec.shapes import check_shape
from torchmodel_runtime.config import Limits, TensorSpec
from torchmodel_runtime.errors import invalid, too_large
from torchmodel_runtime.protos.open_inference_pb2 import InferTensorContents
from torchmodel_runtime.tensors import NUMPY_DTYPES, bytes_tensor


class _Home(NamedTuple):
    """Where the elements of a datatype stand."""

    number: int
    name: str
    kind: int
    """Of one element."""
    wire: np.dtype
    """What the field itself holds: INT8 travels as int32."""


_HOMES = {
    "BOOL": _Home(1, "bool_contents", VARINT, np.dtype(np.bool_)),
    "INT8": _Home(2, "int_contents", VARINT, np.dtype(np.int32)),
    "INT16": _Home(2, "int_contents", VARINT, np.dtype(np.int32)),
    "INT32": _Home(2, "int_contents", VARINT, np.dtype(np.int32)),
    "INT64": _Home(3, "int64_contents", VARINT, np.dtype(np.int64)),
    "UINT8": _Home(4, "uint_contents", VARINT, np.dtype(np.uint32)),
    "UINT16": _Home(4, "uint_contents", VARINT, np.dtype(np.uint32)),
    "UINT32": _Home(4, "uint_contents", VARINT, np.dtype(np.uint32)),
    "UINT64": _Home(5, "uint64_contents", VARINT, np.dtype(np.uint64)),
    "FP32": _Home(6, "fp32_contents", FIXED32, np.dtype("<f4")),
    "FP64": _Home(7, "fp64_contents", FIXED64, np.dtype("<f8")),
    "BYTES": _Home(8, "bytes_contents", LENGTH, np.dtype(np.object_)),
}
"""The protocol, "Tensor Data". FP16 and BF16 have no field."""

_NAMES = {home.number: home.name for home in _HOMES.values()}

_FLOAT_TAGS = frozenset(_HOMES[datatype].number << 3 | LENGTH for datatype in ("FP32", "FP64"))


def has_contents(datatype: str) -> bool:
    """False for datatypes that travel raw alone."""
    return datatype in _HOMES


def is_light(contents: memoryview) -> bool:
    """True when they are one run of floating-point numbers, which cost nothing to decode whatever their size."""
    if not contents or contents[0] not in _FLOAT_TAGS:
        return False
    try:
        return len(list(protowire.walk(contents, 1))) == 1
    except WireError:
        return False


def decode_contents(
    where: str, contents: Sequence[memoryview], spec: TensorSpec, shape: list[int], limits: Limits
) -> np.ndarray:
    """The elements as an array of this shape, read-only where they were not copied. RequestError 400 for what does not fit."""
    check_shape(where, shape, spec)
    home = _HOMES.get(spec.datatype)
    if home is None:
        raise invalid(f"{where}: {spec.datatype} has no typed contents in this protocol; send raw_input_contents")
    elements = math.prod(shape)
    try:
        if home.kind == LENGTH:
            values = [bytes(element) for element in _elements(where, contents, spec.datatype, limits)]
            _check_count(where, len(values), elements, shape)
            return bytes_tensor(values).reshape(shape)
        packed = _join(where, contents, spec.datatype, limits)
        if home.kind != VARINT:
            count, rest = divmod(len(packed), home.wire.itemsize)
            _check_count(where, f"{count} and a part of one" if rest else count, elements, shape)
            return np.frombuffer(packed, home.wire).reshape(shape)
        _check_count(where, protowire.count_numbers(packed), elements, shape)
        numbers = protowire.decode_numbers(packed, elements)
    except TooManyFieldsError:
        raise too_large(
            f"{where}: more than {limits.max_json_elements} elements in fields of their own (serving.limits.maxJsonElements); "
            "send raw_input_contents"
        ) from None
    except WireError as error:
        raise invalid(f"{where}: contents: {error}") from None
    return _narrow(where, numbers, home.wire, spec.datatype).reshape(shape)


def add_contents(contents: InferTensorContents, array: np.ndarray, datatype: str) -> None:
    """Fill a message with the elements; text in a BYTES tensor as UTF-8. KeyError for a datatype that travels raw alone."""
    elements = array.ravel().tolist()
    if datatype == "BYTES":
        elements = [element.encode() if isinstance(element, str) else element for element in elements]
    getattr(contents, _HOMES[datatype].name).extend(elements)


def _elements(where: str, contents: Sequence[memoryview], datatype: str, limits: Limits) -> Iterator[memoryview]:
    """The content of each field, be it one element or a run of them; RequestError 400 for a field of another datatype."""
    home = _HOMES[datatype]
    kinds = (home.kind, LENGTH)
    left = limits.max_json_elements
    for message in contents:
        for number, kind, start, content_from, end in protowire.walk(message, left):
            left -= 1
            if number == home.number:
                if kind not in kinds:
                    raise WireError(f"{home.name} at byte {start} is of another kind")
                yield message[content_from:end]
            elif number in _NAMES:
                raise invalid(f"{where}: has {_NAMES[number]}, {datatype} is sent in {home.name}")


def _join(where: str, contents: Sequence[memoryview], datatype: str, limits: Limits) -> memoryview | bytearray:
    """All numbers as one run; without a copy where they came as one."""
    first: memoryview | None = None
    more = bytearray()
    for run in _elements(where, contents, datatype, limits):
        if first is None:
            first = run
            continue
        if not more:
            more += first
        more += run
    return more or first or memoryview(b"")


def _check_count(where: str, count: int | str, elements: int, shape: list[int]) -> None:
    if count != elements:
        raise invalid(f"{where}: shape {shape} means {elements} elements, contents have {count}")


def _narrow(where: str, numbers: np.ndarray, wire: np.dtype, datatype: str) -> np.ndarray:
    """The numbers as the field holds them, then as the datatype has them."""
    if datatype == "BOOL":
        return np.asarray(numbers, np.bool_)
    values = numbers.view(np.int64) if wire == np.int64 else numbers.astype(wire)
    dtype = NUMPY_DTYPES[datatype]
    if dtype == wire:
        return values
    bounds = np.iinfo(dtype)
    if values.size and (values.min() < bounds.min or values.max() > bounds.max):
        raise invalid(f"{where}: a value is out of the range of {datatype}")
    return values.astype(dtype)
