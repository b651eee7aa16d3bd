"""Shapes against the signature and against `serving.limits`, before anything of their size is allocated. Called by `codec`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torchmodel_runtime.config import Limits, TensorSpec
from torchmodel_runtime.errors import invalid, quote, too_large, too_many_rows


def check_shape(where: str, shape: Sequence[int], spec: TensorSpec) -> None:
    """Compare a shape that was given, or that the data has, with the declared one; -1 there is any size."""
    declared = spec.shape
    if len(shape) == len(declared):
        for given, allowed in zip(shape, declared):  # noqa: B905 - the lengths were compared; strict costs on the hot path
            if given != allowed if allowed != -1 else given < 0:
                break
        else:
            return
    raise invalid(f"{where}: shape {list(shape)}, must be {declared} (-1 is any){_hint(shape, declared)}")


def check_elements_of_bytes(where: str, shape: Sequence[int], spec: TensorSpec, max_rows: int) -> None:
    """RequestError 413 for more BYTES than the queue takes rows; told later of other tensors, but these are read one by one."""
    check_shape(where, shape, spec)
    if shape[0] > max_rows:
        raise too_many_rows(shape[0], max_rows)


def check_rank(where: str, rank: int, limits: Limits) -> None:
    """RequestError 400 for more dimensions than are read."""
    if rank > limits.max_rank:
        raise invalid(f"{where}: {rank} dimensions, at most {limits.max_rank} are taken (serving.limits.maxRank)")


def check_tensors(count: int, limits: Limits) -> None:
    """RequestError 400 for more tensors than are read."""
    if count > limits.max_tensors:
        raise invalid(f"inputs: {count} tensors, at most {limits.max_tensors} are taken (serving.limits.maxTensors)")


def check_elements(shapes: Sequence[Sequence[int]], limits: Limits) -> None:
    """RequestError 413 for shapes that together hold more elements than are taken; Python's integers do not overflow.

    400 for a shape of more dimensions than are read: the product of a hundred thousand takes half a minute.
    """
    elements = 0
    for shape in shapes:
        if len(shape) > limits.max_rank:
            check_rank("inputs", len(shape), limits)
        elements += math.prod(shape)
    if elements > limits.max_elements:
        raise too_large(
            f"inputs: {quote(elements)} elements, at most {limits.max_elements} are taken (serving.limits.maxElements)"
        )


def _hint(shape: Sequence[int], declared: list[int]) -> str:
    """What was most likely meant, where it is known."""
    row = declared[1:]
    if len(shape) != len(row) or not all(allowed in (-1, given) for given, allowed in zip(shape, row, strict=True)):
        return ""
    return f"; this is one row: put one more list around it, and give {[1, *shape]} where a shape is given"
