"""One tensor as the bytes that travel, of HTTP's binary tensor data extension and of gRPC's raw contents.

Little-endian, row-major, no padding; BOOL one byte, 0 or 1; BYTES elements each after their length in four bytes (Open
Inference Protocol, "Tensor Data" and the binary tensor data extension). Sizes are compared before anything is allocated.
Called by `v2` and by the gRPC port. Knows no document.
"""

from __future__ import annotations

import math
import struct

import numpy as np

from torchmodel_runtime.codec.shapes import check_shape
from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.errors import invalid
from torchmodel_runtime.tensors import NUMPY_DTYPES, bytes_tensor

_LENGTH = struct.Struct("<I")


def decode_raw(where: str, data: bytes | memoryview, spec: TensorSpec, shape: list[int]) -> np.ndarray:
    """The bytes as an array of this shape, without a copy: read-only, and aligned only if the bytes are.

    BYTES become an object array of bytes. RequestError 400 when shape or size do not fit.
    """
    check_shape(where, shape, spec)
    elements = math.prod(shape)
    if spec.datatype == "BYTES":
        return bytes_tensor(_split_bytes(where, data, elements)).reshape(shape)
    dtype = NUMPY_DTYPES[spec.datatype]
    if len(data) != elements * dtype.itemsize:
        raise invalid(
            f"{where}: {len(data)} bytes, but shape {shape} of {spec.datatype} takes {elements * dtype.itemsize}"
        )
    if spec.datatype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise invalid(f"{where}: a BOOL is one byte, 0 or 1")
    return np.frombuffer(data, dtype).reshape(shape)


def encode_raw(array: np.ndarray, datatype: str) -> bytes:
    """The bytes of an array; text in a BYTES tensor as UTF-8."""
    if datatype != "BYTES":
        return array.tobytes()
    pieces: list[bytes] = []
    for element in array.ravel().tolist():
        content = element.encode() if isinstance(element, str) else element
        pieces += (_LENGTH.pack(len(content)), content)
    return b"".join(pieces)


def _split_bytes(where: str, data: bytes | memoryview, elements: int) -> list[bytes]:
    """The elements of a BYTES tensor; the lengths must use up the data exactly."""
    if elements * _LENGTH.size > len(data):
        raise invalid(
            f"{where}: {len(data)} bytes hold no {elements} elements, each of which begins with 4 bytes of length"
        )
    split: list[bytes] = []
    position = 0
    for index in range(elements):
        start = position + _LENGTH.size
        if start > len(data):
            raise invalid(f"{where}[{index}]: the data ends inside the length of the element")
        position = start + int(_LENGTH.unpack_from(data, position)[0])
        if position > len(data):
            raise invalid(f"{where}[{index}]: {position - start} bytes are announced, {len(data) - start} are left")
        split.append(bytes(data[start:position]))
    if position != len(data):
        raise invalid(f"{where}: {len(data) - position} bytes are left after {elements} elements")
    return split
