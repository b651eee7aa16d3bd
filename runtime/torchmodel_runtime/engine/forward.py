"""Runs the module on batches of numpy arrays, one at a time: join, call, check, split.

A worker calls `Engine.run`. Rows out are checked against rows in before they are split. A batch the module fails on is
halved until the failing requests stand alone (`failures.isolate`), so that a request fails for its own input only. A batch
that does not fit the memory is computed in halves, and the bound is lowered to what did fit.
"""

from __future__ import annotations

import copy
import inspect
import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from torchmodel_runtime import errors
from torchmodel_runtime.batchrules import fit_rows
from torchmodel_runtime.config import CONFIG_INVALID
from torchmodel_runtime.engine.collation import join, split
from torchmodel_runtime.engine.conversion import check_output, select_outputs, to_array, to_tensor
from torchmodel_runtime.engine.devices import is_out_of_memory
from torchmodel_runtime.engine.failures import FailureLog, isolate
from torchmodel_runtime.engine.memory import Bounds, bytes_per_row
from torchmodel_runtime.engine.pulse import Pulse
from torchmodel_runtime.engine.transfer import CudaLane
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.tasks import ModuleCall
from torchmodel_runtime.tensors import Arrays

logger = logging.getLogger(__name__)


class Engine:
    """One loaded module on one device. Used by one thread at a time on a CPU; on a GPU two may take turns."""

    def __init__(self, module: torch.nn.Module, device: torch.device, call: ModuleCall, max_rows: int) -> None:
        self._module = module
        self.device = device
        self.call = call
        self.bounds = Bounds(max_rows)
        self.pads = False
        """Rows of different length share a call: set once the proof has shown that they may."""
        self.cut_outputs: tuple[int, ...] = ()
        """Outputs that are as long as their row: padding is cut off them."""
        self._keywords = _accepted_keywords(module, call.keywords)
        self._mask, self._needs_mask = _mask_keyword(module, call)
        self._float_dtype = _only_float_dtype(module)
        self._copies_inputs = self._copies_outputs = False
        self._log = FailureLog()
        self._pulse = Pulse()
        self._lane = CudaLane(device) if device.type == "cuda" else None

    @property
    def max_rows(self) -> int:
        """Most rows in one call of the module; 1 once the proof has failed, less once memory ran out."""
        return self.bounds.max_rows

    @max_rows.setter
    def max_rows(self, rows: int) -> None:
        self.bounds.max_rows = rows

    @property
    def max_bytes(self) -> int:
        """Most bytes of inputs in one call, 0: no bound; less once memory ran out on rows larger than usual."""
        return self.bounds.max_bytes

    @property
    def is_broken(self) -> bool:
        """True once the module has failed for good: this process can answer nothing any more."""
        return self._pulse.is_gone

    def run(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        """Outputs for each request, its rows first; a RequestError for one that the module fails on.

        Requests have equal tail shapes and dtypes, but for axis 1 of the inputs that are padded, where `pads` is set.
        """
        if len(requests) == 1:
            return [self._run_one(requests[0])]
        try:
            return [*self.run_together(requests)]
        except Exception as error:  # noqa: BLE001 - whatever the model raised, the requests are tried apart
            cause = f"{type(error).__name__}: {str(error)[:300]}"
        answers = isolate(requests, self._try_together, self._run_one)
        if not any(isinstance(answer, Exception) for answer in answers):
            logger.warning(
                "a batch failed, its requests apart did not",
                extra={"fields": {"requests": len(requests), "cause": cause}},
            )
        return answers

    def run_together(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """The requests in one call, padded where they differ in length; raises what the model does."""
        joined = join(requests, self.call.padding if self.pads else None)
        outputs = self.forward(joined.inputs, joined.mask)
        return split(requests, outputs, joined.lengths, self.cut_outputs)

    def forward(self, inputs: Arrays, mask: np.ndarray | None = None) -> Arrays:
        """Outputs in declared order, axis 0 rows; what the bounds do not allow in one call is computed in slices."""
        rows, bounds = len(inputs[0]), self.bounds
        limit = bounds.rows_of(bytes_per_row(inputs)) if bounds.max_bytes else bounds.max_rows
        if rows > limit or (bounds.sizes and rows not in bounds.sizes):
            return self._forward_in_slices(inputs, mask, limit)
        try:
            return self._call_module(inputs, mask)
        except Exception as error:
            if rows == 1 or not is_out_of_memory(error):
                raise
        return self._forward_in_slices(inputs, mask, rows // 2, lowered=True)

    def watch(self, inputs: Arrays) -> Arrays:
        """The outputs, after two calls that learn the module's habits: one that writes into its inputs gets copies, and the
        outputs of one that gives the same memory again are copied."""
        float_dtype, rows = self._float_dtype, len(inputs[0])
        tensors = [to_tensor(array, float_dtype, copy=True).to(self.device) for array in inputs]
        versions = [tensor._version for tensor in tensors]
        mask = self._full_mask(inputs)
        mask = mask if mask is None else mask.to(self.device)
        with torch.inference_mode():
            first = self._call_tensors(tensors, mask, rows)
            self._copies_inputs = [tensor._version for tensor in tensors] != versions
            again = [to_tensor(array, float_dtype, copy=True).to(self.device) for array in inputs]
            second = self._call_tensors(again, mask, rows)
            places = {tensor.untyped_storage().data_ptr() for tensor in first} - {0}
            self._copies_outputs = any(tensor.untyped_storage().data_ptr() in places for tensor in second)
            self._pulse.row = [array.copy() for array in inputs] if rows == 1 else []
            return [to_array(tensor.clone()) for tensor in second]

    def replicate(self) -> Engine:
        """A second engine, for another thread, over the same parameters and buffers.

        The module's Python attributes are its own, so that a forward may set them, and so is what forward made. Raises what
        `copy.deepcopy` does for a module that cannot be copied.
        """
        loaded = (*self._module.parameters(), *self._module.buffers())
        shared = {id(tensor): tensor for tensor in loaded if not tensor.is_inference()}
        twin = copy.copy(self)
        with torch.inference_mode():  # what forward left on the module was made in it
            twin._module = copy.deepcopy(self._module, shared)
        twin._pulse = Pulse()
        twin._pulse.row = self._pulse.row
        return twin

    def state_versions(self) -> dict[str, int]:
        """How often each parameter and buffer was written to, by name: what a call changes, replicas would fight over.

        A buffer that forward itself made has no such count (it is an inference tensor), and is replaced rather than written to.
        """
        named = (*self._module.named_parameters(), *self._module.named_buffers())
        return {name: 0 if tensor.is_inference() else tensor._version for name, tensor in named}

    def precision(self) -> torch.dtype:
        """The coarsest of the module's float dtypes: what to expect of its answers."""
        dtypes = {parameter.dtype for parameter in self._module.parameters() if parameter.is_floating_point()}
        coarsest = max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)
        if self.device.type == "cuda" and coarsest == torch.float32 and _uses_tf32(self._module):
            return torch.float16  # TF32 has its ten bits of mantissa
        return coarsest

    def _try_together(self, requests: Sequence[Arrays]) -> list[Arrays] | None:
        try:
            return self.run_together(requests)
        except Exception:  # noqa: BLE001 - told by the one request that fails alone
            return None

    def _run_one(self, request: Arrays) -> Arrays | Exception:
        try:
            return self.forward(request)
        except Exception as error:  # noqa: BLE001 - whatever the model raises belongs to this request
            self._log.record(error, time.monotonic())
            self._pulse.feel(error, self.forward)
            return errors.model_out_of_memory() if is_out_of_memory(error) else errors.model_failed()

    def _forward_in_slices(self, inputs: Arrays, mask: np.ndarray | None, limit: int, lowered: bool = False) -> Arrays:
        """In calls of proven sizes of at most limit rows, halved whenever memory runs out; what fits at last becomes the bound.

        lowered: memory ran out already, in a larger call.
        """
        if lowered:
            self._free_cache()
        pieces, start, rows = [], 0, len(inputs[0])
        while start < rows:
            end = start + fit_rows(min(limit, rows - start), self.bounds.sizes)
            try:
                part = [array[start:end] for array in inputs]
                pieces.append(self._call_module(part, None if mask is None else mask[start:end]))
            except Exception as error:
                if end - start == 1 or not is_out_of_memory(error):
                    raise
            else:
                start = end
                continue
            # only here is the error gone, and with its traceback the tensors of the call that failed
            self._free_cache()
            limit, lowered = (end - start) // 2, True
        if lowered:
            self._lower(limit, inputs)
        return [np.concatenate(outputs) for outputs in zip(*pieces, strict=True)]

    def _free_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _lower(self, rows: int, inputs: Arrays) -> None:
        self.bounds.lower(rows, bytes_per_row(inputs))
        logger.warning(
            "out of memory in a batch: computed in smaller ones, bound lowered",
            extra={"fields": {"max_rows": self.bounds.max_rows, "max_bytes": self.bounds.max_bytes}},
        )

    def _call_module(self, inputs: Arrays, mask: np.ndarray | None) -> Arrays:
        rows = len(inputs[0])
        tensors = [to_tensor(array, self._float_dtype, self._copies_inputs) for array in inputs]
        masked = self._full_mask(inputs) if mask is None else to_tensor(mask, None)
        if self._lane is not None:
            return self._call_on_gpu(self._lane, tensors, masked, rows)
        with torch.inference_mode():
            outputs = self._call_tensors(tensors, masked, rows)
            if self._copies_outputs:
                outputs = [tensor.clone() for tensor in outputs]
            return [to_array(tensor) for tensor in outputs]

    def _call_on_gpu(self, lane: CudaLane, tensors: list[torch.Tensor], mask: torch.Tensor | None, rows: int) -> Arrays:
        """The turn at the module ends when its kernels are queued; then this thread waits for its own answers."""
        with torch.inference_mode():
            sent, ready = lane.send(tensors if mask is None else [*tensors, mask])
            with lane.turn(sent, ready):
                inputs, masked = (sent, None) if mask is None else (sent[:-1], sent[-1])
                outputs, done = lane.fetch(self._call_tensors(inputs, masked, rows))
            done.synchronize()
            return [to_array(tensor) for tensor in outputs]

    def _call_tensors(self, tensors: list[torch.Tensor], mask: torch.Tensor | None, rows: int) -> list[torch.Tensor]:
        """The module's outputs, checked. mask: bool (rows, length), or None where it may be left out."""
        named: dict[str, Any] = {}
        if self.call.keywords:
            given = dict(zip(self.call.keywords, tensors, strict=True))
            named = {name: given[name] for name in self._keywords}
            tensors = []
        if mask is not None and self._mask:
            named[self._mask] = mask
        try:
            returned = self._module(*tensors, **named)
        except SystemExit as error:  # no Exception, so that whoever isolates failing rows would let it through
            raise RuntimeError(f"forward called sys.exit({error.code!r})") from error
        outputs = select_outputs(returned, self.call)
        return [check_output(tensor, spec, rows) for tensor, spec in zip(outputs, self.call.outputs, strict=True)]

    def _full_mask(self, inputs: Arrays) -> torch.Tensor | None:
        """All true, for a module that cannot do without a mask; None for others, which are quicker without."""
        if not self._needs_mask or self.call.padding is None:
            return None
        first = inputs[self.call.padding.first]
        return torch.ones(first.shape[:2], dtype=torch.bool)


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


def _mask_keyword(module: torch.nn.Module, call: ModuleCall) -> tuple[str, bool]:
    """The keyword that takes a mask, and whether forward requires it. Raises StartError when forward does not take it."""
    padding = call.padding
    if padding is None or not padding.mask:
        return "", False
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*padding.values, **{padding.mask: None})
    except TypeError as error:
        raise StartError(
            CONFIG_INVALID,
            f"serving.batching.padding.mask: got {padding.mask!r}, but forward{signature} cannot be called with "
            f"{len(padding.values)} tensors and {padding.mask}=: {error}",
            "Name the keyword of forward that takes the mask (BOOL, true on real positions), or leave padding out.",
        ) from None
    parameter = signature.parameters.get(padding.mask)
    return padding.mask, parameter is not None and parameter.default is inspect.Parameter.empty


def _uses_tf32(module: torch.nn.Module) -> bool:
    """True where a GPU computes float32 with ten bits of mantissa: cuDNN's convolutions and RNNs do unless told otherwise."""
    if torch.backends.cuda.matmul.allow_tf32:
        return True
    kinds = (torch.nn.modules.conv._ConvNd, torch.nn.RNNBase)
    return torch.backends.cudnn.allow_tf32 and any(isinstance(part, kinds) for part in module.modules())
