"""What the codec knows of the served model, worked out once: made by `server.serve`, read by every decoder and encoder.

Plain values only, so that the process that decodes large bodies (`decodepool`) can be sent one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from torchmodel_runtime.config import Limits, Serving, Signature, TensorSpec
from torchmodel_runtime.tensors import NUMPY_DTYPES

FLAT_BYTES = 16384
"""A JSON body up to this size is tried as `Flat` first: what it costs when it is another is then some microseconds."""


@dataclass(frozen=True)
class Flat:
    """One row of a model with one FP32 input of fixed shape, as most requests for a small model send it: what can be worked out
    before they come."""

    name: str
    datatype: str
    shape: list[int]
    """Of the one row: (1, *features)."""
    dtype: np.dtype[Any]
    layout: str
    """Of `struct`: little-endian float32."""
    max_bytes: int
    """Of the body; within `limits.max_json_elements` too, whatever it holds."""


@dataclass(frozen=True)
class Plan:
    """One model's tensors, media and limits."""

    model: str
    version: str
    signature: Signature
    media: tuple[str, ...]
    """As `Task.media`: content types that are taken as the body itself."""
    limits: Limits
    max_bytes: int
    """Of a request body, compressed and inflated (serving.maxRequestBytes)."""
    max_rows: int
    """Of a request (serving.queue.maxRows)."""
    inputs: dict[str, TensorSpec] = field(init=False)
    """By name, in the signature's order."""
    outputs: dict[str, TensorSpec] = field(init=False)
    only: TensorSpec | None = field(init=False)
    """The input of a model that has one; None: it has several."""
    flat: Flat | None = field(init=False)
    """None: not a model of one FP32 input of fixed, small rows."""

    def __post_init__(self) -> None:
        specs = self.signature.inputs
        object.__setattr__(self, "inputs", {spec.name: spec for spec in specs})
        object.__setattr__(self, "outputs", {spec.name: spec for spec in self.signature.outputs})
        object.__setattr__(self, "only", specs[0] if len(specs) == 1 else None)
        object.__setattr__(self, "flat", None if self.only is None else _make_flat(self.only, self.limits))


def make_plan(model: str, version: str, signature: Signature, media: tuple[str, ...], serving: Serving) -> Plan:
    """The plan of a loaded model."""
    return Plan(model, version, signature, media, serving.limits, serving.max_request_bytes, serving.queue.max_rows)


def _make_flat(spec: TensorSpec, limits: Limits) -> Flat | None:
    shape = [1, *spec.shape[1:]]
    elements = math.prod(shape)
    if spec.datatype != "FP32" or -1 in shape or not 1 <= elements <= min(FLAT_BYTES // 2, limits.max_elements):
        return None
    max_bytes = min(FLAT_BYTES, limits.max_json_elements)
    return Flat(spec.name, spec.datatype, shape, NUMPY_DTYPES[spec.datatype], f"<{elements}f", max_bytes)
