"""Task type tensor: what the client sends goes to the module as it is, in the signature's order.

With `serving.batching.padding` rows of different length may share a batch: `make_padding` checks that this can work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from torchmodel_runtime.config import CONFIG_INVALID, Padding, Signature, TensorSpec
from torchmodel_runtime.errors import StartError, invalid
from torchmodel_runtime.tasks import FREE, Allowance, ModuleCall, PaddingRule, Work
from torchmodel_runtime.tensors import FLOATS, NUMPY_DTYPES, Arrays

SYNTHETIC_LENGTH = 8
"""What a variable dimension is in warm-up: a guess, small enough to be quick and large enough for most kernels."""


class TensorTask:
    """Tensors in, tensors out."""

    media: tuple[str, ...] = ()
    lengths = (2, 40)
    """A guess, as SYNTHETIC_LENGTH: short ones that a module cannot take are left out of the proof."""

    def __init__(self, signature: Signature, padding: Padding | None = None) -> None:
        self.signature = signature
        rule = None if padding is None else make_padding(signature, padding)
        self.call = ModuleCall(outputs=tuple(signature.outputs), padding=rule)
        self._same_length = rule.inputs if rule is not None and len(rule.inputs) > 1 else ()

    def is_heavy(self, inputs: Arrays) -> bool:  # noqa: ARG002 - part of the Task protocol
        """Never: there is nothing to decode."""
        return False

    def prepare(self, inputs: Arrays, allowance: Allowance = FREE) -> Work:  # noqa: ARG002 - it takes no memory
        """One part with all rows; RequestError 400 where inputs that are padded together differ in length."""
        if self._same_length:
            self._check_lengths(inputs)
        return Work([inputs])

    def finish(self, work: Work, results: list[Arrays]) -> Arrays:  # noqa: ARG002
        """The module's outputs are the answer."""
        return results[0]

    def rows(self, outputs: Arrays) -> list[Any]:
        """The row itself for one output, an object by output name for several."""
        if len(outputs) == 1:
            rows: list[Any] = outputs[0].tolist()
            return rows
        names = [spec.name for spec in self.signature.outputs]
        columns = [output.tolist() for output in outputs]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def reply(self, outputs: Arrays, single: bool) -> Any:  # noqa: ARG002
        """The list of rows."""
        return self.rows(outputs)

    def learn(self, outputs: Arrays) -> None:
        """Nothing: the signature says it all, and the engine checks the outputs by it."""

    def synthetic(self, rows: int, generator: np.random.Generator, length: int = 0) -> Arrays:
        """Normal floats; integers and booleans are 0 or 1, which also an index into a table of two bears."""
        arrays = []
        for spec in self.signature.inputs:
            shape = [rows, *((length or SYNTHETIC_LENGTH) if size == -1 else size for size in spec.shape[1:])]
            dtype = NUMPY_DTYPES[spec.datatype]
            if spec.datatype in FLOATS:
                arrays.append(generator.standard_normal(shape).astype(dtype))
            else:
                arrays.append(generator.integers(0, 2, shape).astype(dtype))
        return arrays

    def _check_lengths(self, inputs: Arrays) -> None:
        lengths = {self.signature.inputs[index].name: inputs[index].shape[1] for index in self._same_length}
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise invalid(f"inputs of one request must be equally long in their second dimension, got {given}")


def make_padding(signature: Signature, padding: Padding) -> PaddingRule:
    """How the signature's inputs are padded: all whose second dimension is -1. Raises StartError where that cannot work."""
    values = []
    for index, spec in enumerate(signature.inputs):
        if -1 in spec.shape[2:]:
            raise StartError(
                CONFIG_INVALID,
                f"serving.batching.padding: signature.inputs[{index}] ({spec.name}) has shape {spec.shape}; only the second "
                "dimension can be padded, so beside the batch no other may be -1",
                "Give the other dimensions their sizes, or leave serving.batching.padding out.",
            )
        has_length = len(spec.shape) > 1 and spec.shape[1] == -1
        if has_length and not _holds(spec, padding.value):
            raise StartError(
                CONFIG_INVALID,
                f"serving.batching.padding.value: got {padding.value:g}, which input {spec.name!r} ({spec.datatype}) cannot hold",
                "Choose a value within the datatype of every input of variable length; the mask hides it anyway.",
            )
        values.append(padding.value if has_length else None)
    if all(value is None for value in values):
        raise StartError(
            CONFIG_INVALID,
            "serving.batching.padding: no input of the signature has -1 as its second dimension, so there is nothing to pad",
            "Declare the length as -1, for example shape: [-1, -1, 80], or leave serving.batching.padding out.",
        )
    return PaddingRule(tuple(values), padding.mask)


def _holds(spec: TensorSpec, value: float) -> bool:
    """True when the datatype has this value, or for floats one close to it."""
    dtype = NUMPY_DTYPES[spec.datatype]
    if spec.datatype in FLOATS:
        with np.errstate(over="ignore"):
            return bool(np.isfinite(np.array([value]).astype(dtype).astype(np.float64)).all())
    if dtype.kind == "b":
        return value in (0, 1)
    limits = np.iinfo(dtype)
    return value == int(value) and limits.min <= value <= limits.max
