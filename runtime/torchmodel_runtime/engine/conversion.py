"""Between numpy and torch: inputs as tensors, and what the module returned as the arrays that the signature declares.

`forward.Engine` calls it for every batch, so it says no more to torch than it must. BF16 crosses as the uint16 that both
sides store it in, because `torch.from_numpy` does not know ml_dtypes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.tasks import ModuleCall
from torchmodel_runtime.tensors import NUMPY_DTYPES

_BFLOAT16 = NUMPY_DTYPES["BF16"]

TORCH_DTYPES = {
    name: torch.bfloat16 if dtype == _BFLOAT16 else torch.from_numpy(np.empty(0, dtype)).dtype
    for name, dtype in NUMPY_DTYPES.items()
    if dtype.kind != "O"
}


class OutputError(Exception):
    """The module returned what the signature does not declare; the message says declared and returned."""


def to_tensor(array: np.ndarray, float_dtype: torch.dtype | None, copy: bool = False) -> torch.Tensor:
    """An array as a tensor on the CPU; floats as float_dtype, if given.

    Shares the array's memory where it is writable, aligned and contiguous, and copies it where not: a body's own bytes are
    read-only and lie anywhere, and no module may write into them. copy: for a module that writes into its inputs.
    """
    if copy or not array.flags.carray:
        array = array.copy()
    is_bfloat16 = array.dtype == _BFLOAT16
    tensor = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16) if is_bfloat16 else torch.from_numpy(array)
    if float_dtype is not None and tensor.dtype != float_dtype and tensor.is_floating_point():
        return tensor.to(float_dtype)
    return tensor


def select_outputs(returned: object, call: ModuleCall) -> list[torch.Tensor]:
    """The declared outputs of what the module returned: a tensor, a sequence in order, or a mapping by name."""
    if isinstance(returned, torch.Tensor) and len(call.outputs) == 1:
        return [returned]
    declared = [spec.name for spec in call.outputs]
    found: list[object]
    if isinstance(returned, torch.Tensor):
        found = [returned]
    elif isinstance(returned, Mapping):
        if all(name in returned for name in declared):
            found = [returned[name] for name in declared]
        elif len(declared) == 1 and (len(returned) == 1 or call.more_outputs):
            found = [next(iter(returned.values()))]
        else:
            raise OutputError(f"the module returned names {list(returned)}, declared outputs are {declared}")
    elif isinstance(returned, (tuple, list)):
        found = list(returned)
    else:
        raise OutputError(f"the module returned {type(returned).__name__}, must be tensors ({declared} declared)")
    if len(found) != len(declared):
        if len(found) < len(declared) or not call.more_outputs:
            raise OutputError(f"the module returned {len(found)} outputs, {len(declared)} are declared: {declared}")
        found = found[: len(declared)]
    tensors = [item for item in found if isinstance(item, torch.Tensor)]
    if len(tensors) != len(found):
        kinds = [type(item).__name__ for item in found]
        raise OutputError(f"the module returned {kinds} for outputs {declared}, must be tensors")
    return tensors


def check_output(tensor: torch.Tensor, spec: TensorSpec, rows: int) -> torch.Tensor:
    """A returned tensor in the declared datatype, its shape checked; only widening between floats is silent."""
    wanted = TORCH_DTYPES[spec.datatype]
    if tensor.dtype != wanted:
        widens = tensor.is_floating_point() and wanted.is_floating_point and tensor.element_size() < wanted.itemsize
        if not widens:
            raise OutputError(
                f"output {spec.name!r}: declared {spec.datatype}, the module returned {str(tensor.dtype).removeprefix('torch.')}"
            )
        tensor = tensor.to(wanted)
    shape = tensor.shape
    if len(shape) != len(spec.shape) or any(
        allowed not in (-1, given) for given, allowed in zip(shape[1:], spec.shape[1:], strict=True)
    ):
        raise OutputError(f"output {spec.name!r}: declared shape {spec.shape}, the module returned {list(shape)}")
    if shape[0] != rows:
        raise OutputError(f"output {spec.name!r}: {rows} rows went in, {shape[0]} came out")
    return tensor


def to_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor on any device as an array; on the CPU the two share memory."""
    array: np.ndarray
    if tensor.dtype == torch.bfloat16:
        array = tensor.detach().cpu().view(torch.uint16).numpy().view(_BFLOAT16)
    else:
        array = tensor.numpy(force=True)  # as .detach().cpu().resolve_conj().resolve_neg().numpy(), in one call
    return array
