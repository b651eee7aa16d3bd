"""What a tensor is on its way from codec to task to batcher to engine and back: a numpy array, axis 0 its rows.

Called by all of them, so that none needs another for a word. A BYTES tensor is a one-axis object array of str (from JSON)
or bytes (from a raw body). Knows neither torch nor JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np

Arrays = list[np.ndarray]
"""One array for each input (or output) of the module; axis 0 is rows."""

NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
"""V2 datatype to numpy (Open Inference Protocol, "Tensor Data Types"), and Triton's BF16, which numpy has from ml_dtypes."""

FLOATS = frozenset({"FP16", "BF16", "FP32", "FP64"})
"""Datatypes that hold NaN and infinities. Ask these, not `dtype.kind`: that of bfloat16 is V."""


ELEMENT_BYTES = 64
"""Of a short str or bytes of Python's, beside its characters: 49 or 33, and the 8 of its place in the array."""


def held_bytes(arrays: Arrays) -> int:
    """Of memory that the arrays take, the elements of BYTES tensors included."""
    size_bytes = 0
    for array in arrays:
        size_bytes += array.nbytes
        if array.dtype == np.object_:
            size_bytes += ELEMENT_BYTES * len(array) + sum(map(len, array.tolist()))
    return size_bytes


def bytes_tensor(elements: Sequence[str | bytes]) -> np.ndarray:
    """A BYTES tensor of one axis."""
    tensor = np.empty(len(elements), dtype=np.object_)
    tensor[:] = elements
    return tensor
