"""Task type tensor: what the client sends goes to the module as it is, in the signature's order."""

from __future__ import annotations

from typing import Any

import numpy as np

from torchmodel_runtime.config import Signature
from torchmodel_runtime.tasks import ModuleCall, Work
from torchmodel_runtime.tensors import FLOATS, NUMPY_DTYPES, Arrays

SYNTHETIC_LENGTH = 8
"""What a variable dimension is in warm-up: a guess, small enough to be quick and large enough for most kernels."""


class TensorTask:
    """Tensors in, tensors out."""

    media: tuple[str, ...] = ()

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.call = ModuleCall(outputs=tuple(signature.outputs))

    def is_heavy(self, inputs: Arrays) -> bool:  # noqa: ARG002 - part of the Task protocol
        """Never: there is nothing to decode."""
        return False

    def prepare(self, inputs: Arrays) -> Work:
        """One part with all rows."""
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

    def synthetic(self, rows: int, generator: np.random.Generator) -> Arrays:
        """Normal floats; integers and booleans are 0 or 1, which also an index into a table of two bears."""
        arrays = []
        for spec in self.signature.inputs:
            shape = [rows, *(SYNTHETIC_LENGTH if size == -1 else size for size in spec.shape[1:])]
            dtype = NUMPY_DTYPES[spec.datatype]
            if spec.datatype in FLOATS:
                arrays.append(generator.standard_normal(shape).astype(dtype))
            else:
                arrays.append(generator.integers(0, 2, shape).astype(dtype))
        return arrays
