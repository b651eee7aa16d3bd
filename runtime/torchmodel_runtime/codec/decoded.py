"""What every dialect's request comes down to, and the checks of the signature that all of them share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import invalid, quote
from torchmodel_runtime.tensors import Arrays

Form = Literal["json", "binary", "npy", "safetensors"]
"""Of an answer: the dialect's own JSON, V2 with binary tensors, or a file of arrays."""


class Decoded(msgspec.Struct):
    """A request of any dialect: the inputs in the signature's order, and what the answer must repeat.

    A msgspec struct, never encoded: it is made for each request, in a third of the time of a dataclass.
    """

    inputs: Arrays
    id: str | None = None
    outputs: list[str] | None = None
    """Names of the outputs asked for; None: all."""
    is_medium: bool = False
    """The body was the one element itself: an image, a recording, a text."""
    parameters: dict[str, Any] = {}
    """Request parameters of V2, as given."""
    form: Form = "json"
    """What the answer is to be written as."""
    has_own_form: bool = False
    """The body itself says so, and the `Accept` header is not asked: V2's `binary_data_output` and `binary_data`."""
    binary_by_output: dict[str, bool] = {}
    """V2's `binary_data` of each output asked for, where it differs from what `form` says."""


def select_outputs(decoded: Decoded, signature: Signature, outputs: Arrays) -> list[tuple[TensorSpec, np.ndarray]]:
    """Those asked for, in the signature's order."""
    pairs = list(zip(signature.outputs, outputs, strict=True))
    wanted = decoded.outputs
    return pairs if wanted is None else [pair for pair in pairs if pair[0].name in wanted]


def check_names(where: str, given: Mapping[str, Any], specs: Sequence[TensorSpec]) -> None:
    """All declared names and no other."""
    if len(given) == len(specs) and all(spec.name in given for spec in specs):
        return
    expected = [spec.name for spec in specs]
    missing = [name for name in expected if name not in given]
    unknown = [name for name in given if name not in expected]
    raise invalid(f"{where}: missing {missing}, unknown {quote(unknown)}; this model has {expected}")


def check_requested(count: int, outputs: Collection[str]) -> None:
    """RequestError 400 for more outputs asked for than there are: each is answered once."""
    if count > len(outputs):
        raise invalid(f"outputs: {count} are asked for, this model has {len(outputs)}: {list(outputs)}")


def check_rows(inputs: Arrays, signature: Signature) -> None:
    """The same number of rows in each input, at least one, and no empty dimension."""
    rows = len(inputs[0])
    if rows == 0 or (len(inputs) > 1 and any(len(array) != rows for array in inputs)):
        named = {spec.name: len(array) for spec, array in zip(signature.inputs, inputs, strict=True)}
        raise invalid(f"inputs: all must have the same number of rows, at least 1; got {named}")
    for index, array in enumerate(inputs):
        if array.size == 0:
            spec = signature.inputs[index]
            raise invalid(f"input {spec.name!r}: shape {list(array.shape)} holds no elements")
