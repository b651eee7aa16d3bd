"""What every dialect's request comes down to, and the checks of the signature that all of them share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import invalid
from torchmodel_runtime.tensors import Arrays


@dataclass(slots=True)
class Decoded:
    """A request of any dialect: the inputs in the signature's order, and what the answer must repeat."""

    inputs: Arrays
    id: str | None = None
    outputs: list[str] | None = None
    """Names of the outputs asked for; None: all."""
    is_medium: bool = False
    """The body was the one element itself: an image, a recording, a text."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Request parameters of V2, as given."""


def check_names(where: str, given: dict[str, Any], specs: Sequence[TensorSpec]) -> None:
    """All declared names and no other."""
    expected = [spec.name for spec in specs]
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    if missing or unknown:
        raise invalid(f"{where}: missing {missing}, unknown {unknown}; this model has {expected}")


def check_rows(inputs: Arrays, signature: Signature) -> None:
    """The same number of rows in each input, at least one, and no empty dimension."""
    rows = [len(array) for array in inputs]
    if rows[0] == 0 or any(count != rows[0] for count in rows):
        named = {spec.name: count for spec, count in zip(signature.inputs, rows, strict=True)}
        raise invalid(f"inputs: all must have the same number of rows, at least 1; got {named}")
    for spec, array in zip(signature.inputs, inputs, strict=True):
        if array.size == 0:
            raise invalid(f"input {spec.name!r}: shape {list(array.shape)} holds no elements")
