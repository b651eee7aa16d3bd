"""Runs the module on batches of numpy arrays, in one thread: concatenate, call, check, split.

`batcher.Worker` calls `Engine.run`. Rows out are checked against rows in before they are split. A batch the module fails on
is halved until the failing requests stand alone, so that a request fails for its own input only.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from torchmodel_runtime.config import DEVICE_UNAVAILABLE, OUT_OF_MEMORY, TensorSpec
from torchmodel_runtime.errors import StartError, model_failed
from torchmodel_runtime.tasks import ModuleCall
from torchmodel_runtime.tensors import NUMPY_DTYPES, Arrays

logger = logging.getLogger(__name__)

_BFLOAT16 = NUMPY_DTYPES["BF16"]
"""torch and numpy pass it to each other as the uint16 it is stored in."""

TORCH_DTYPES = {
    name: torch.bfloat16 if dtype == _BFLOAT16 else torch.from_numpy(np.empty(0, dtype)).dtype
    for name, dtype in NUMPY_DTYPES.items()
    if dtype.kind != "O"
}


class OutputError(Exception):
    """The module returned what the signature does not declare; the message says declared and returned."""


class Engine:
    """One loaded module on one device."""

    def __init__(self, module: torch.nn.Module, device: torch.device, call: ModuleCall, max_rows: int) -> None:
        self._module = module
        self.device = device
        self._call = call
        self.max_rows = max_rows
        """Most rows in one call of the module; 1 once the proof has failed."""
        self._keywords = _accepted_keywords(module, call.keywords)
        self._float_dtype = _only_float_dtype(module)
        self.float_dtype = self._float_dtype or torch.float32
        """The precision to expect of the answers."""
        self.output_names = [spec.name for spec in call.outputs]

    def run(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        """Outputs for each request, its rows first; the exception for a request that the module fails on."""
        try:
            if len(requests) == 1:
                return [self.forward(requests[0])]
            joined = [np.concatenate(columns) for columns in zip(*requests, strict=True)]
            outputs = self.forward(joined)
        except Exception as error:
            if len(requests) == 1:
                logger.error("the model failed on a request", exc_info=error)
                return [model_failed()]
            half = len(requests) // 2
            return self.run(requests[:half]) + self.run(requests[half:])
        ends = np.cumsum([len(request[0]) for request in requests])[:-1]
        return [list(parts) for parts in zip(*(np.split(output, ends) for output in outputs), strict=True)]

    def forward(self, inputs: Arrays) -> Arrays:
        """Outputs in declared order, axis 0 rows; more rows than max_rows are computed in slices."""
        rows = len(inputs[0])
        if rows <= self.max_rows:
            return self._call_module(inputs)
        slices = [
            self._call_module([array[start : start + self.max_rows] for array in inputs])
            for start in range(0, rows, self.max_rows)
        ]
        return [np.concatenate(pieces) for pieces in zip(*slices, strict=True)]

    @torch.inference_mode()
    def _call_module(self, inputs: Arrays) -> Arrays:
        tensors = [self._to_tensor(array) for array in inputs]
        if self._call.keywords:
            named = dict(zip(self._call.keywords, tensors, strict=True))
            returned = self._module(**{name: named[name] for name in self._keywords})
        else:
            returned = self._module(*tensors)
        rows = len(inputs[0])
        outputs = select_outputs(returned, self._call)
        return [to_array(tensor, spec, rows) for tensor, spec in zip(outputs, self._call.outputs, strict=True)]

    def _to_tensor(self, array: np.ndarray) -> torch.Tensor:
        """Zero-copy on the CPU; floats take the width of a module that has only one."""
        if not array.flags.writeable:
            array = array.copy()
        if array.dtype == _BFLOAT16:
            tensor = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(array)
        if self._float_dtype is not None and tensor.is_floating_point() and tensor.dtype != self._float_dtype:
            tensor = tensor.to(self._float_dtype)
        return tensor if self.device.type == "cpu" else tensor.to(self.device)


def select_outputs(returned: object, call: ModuleCall) -> list[torch.Tensor]:
    """The declared outputs of what the module returned: a tensor, a sequence in order, or a mapping by name."""
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


def to_array(tensor: torch.Tensor, spec: TensorSpec, rows: int) -> np.ndarray:
    """A returned tensor as the declared datatype and shape; only widening between floats is silent."""
    wanted = TORCH_DTYPES[spec.datatype]
    if tensor.dtype != wanted:
        widens = tensor.is_floating_point() and wanted.is_floating_point and tensor.element_size() < wanted.itemsize
        if not widens:
            raise OutputError(
                f"output {spec.name!r}: declared {spec.datatype}, the module returned {str(tensor.dtype).removeprefix('torch.')}"
            )
        tensor = tensor.to(wanted)
    shape = list(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(
        allowed in (-1, given) for given, allowed in zip(shape[1:], spec.shape[1:], strict=False)
    )
    if not fits:
        raise OutputError(f"output {spec.name!r}: declared shape {spec.shape}, the module returned {shape}")
    if shape[0] != rows:
        raise OutputError(f"output {spec.name!r}: {rows} rows went in, {shape[0]} came out")
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.uint16).numpy().view(_BFLOAT16))
    array: np.ndarray = tensor.numpy()
    return array


def choose_device(wanted: str) -> torch.device:
    """The device that serving.device asks for. Raises StartError when it is not there."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StartError(
            DEVICE_UNAVAILABLE,
            "serving.device is cuda, but torch sees no GPU"
            + ("" if torch.version.cuda else " (this torch is built for CPUs only)"),
            "Ask for one by spec.resources.gpu and use an image with a CUDA build of torch, or set serving.device: cpu.",
        )
    name = "cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu"
    return torch.device(name)


def configure_thread(threads: int) -> None:
    """Settings of torch that hold for the calling thread; the engine's own, before anything else runs."""
    torch.set_num_threads(threads)
    if torch.get_num_interop_threads() != 1:  # of the process; may be set once only
        torch.set_num_interop_threads(1)
    torch.set_flush_denormal(True)  # denormals slow element-wise kernels five times


def is_out_of_memory(error: BaseException) -> bool:
    """torch's own error on a GPU, its allocator's RuntimeError on a CPU, Python's for arrays."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def out_of_memory(what: str, error: BaseException) -> StartError:
    """A start that ran out of memory."""
    return StartError(
        OUT_OF_MEMORY,
        f"out of memory during {what}: {error}",
        "Raise spec.resources.limits.memory (or take a larger GPU), or lower spec.serving.batching.maxSize.",
    )


def _accepted_keywords(module: torch.nn.Module, keywords: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the keywords that forward takes."""
    parameters = inspect.signature(module.forward).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return keywords
    return tuple(name for name in keywords if name in parameters)


def _only_float_dtype(module: torch.nn.Module) -> torch.dtype | None:
    """The one dtype of all floating parameters; None where there are several or none."""
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None
