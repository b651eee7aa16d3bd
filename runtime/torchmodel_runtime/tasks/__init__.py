"""What an endpoint does beyond tensors: media in, readable answers out, on numpy arrays.

A task turns a request's inputs into parts for the module (`prepare`, before the queue) and the module's outputs into the
answer (`finish`, after it). `startup.py` makes one with `make_task`; `server.infer` calls it; `engine` reads its `call`.
Knows neither torch nor HTTP nor JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from torchmodel_runtime import config
from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.tensors import Arrays


@dataclass(frozen=True)
class PaddingRule:
    """How rows of different length may share a call of the module: padded at the end of axis 1."""

    values: tuple[float | None, ...]
    """What fills the padding of each module input; None for an input that has no length."""
    mask: str = ""
    """Keyword of forward that takes a mask, bool (rows, length), true on real positions; empty where an input is one."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the module inputs that have a length."""
        return tuple(index for index, value in enumerate(self.values) if value is not None)

    @property
    def first(self) -> int:
        """Index of the first of them; all of one request have the same length."""
        return self.inputs[0]


@dataclass(frozen=True)
class ModuleCall:
    """How the module is called and what it must return."""

    outputs: tuple[TensorSpec, ...]
    keywords: tuple[str, ...] = ()
    """Pass the inputs under these names, leaving out those that forward does not take; empty: by position."""
    more_outputs: bool = False
    """The module may return more than `outputs`; the rest is dropped."""
    padding: PaddingRule | None = None
    """None: only equal shapes share a call. Outputs declared with -1 at axis 1 are cut back to each row's own length."""


@dataclass(slots=True)
class Work:
    """One request on its way through the module: each part is computed by itself, its rows may share a batch."""

    parts: list[Arrays]
    notes: Any = None
    """What `finish` needs of `prepare`: durations, masks."""


class Allowance(Protocol):
    """Memory for `prepare`, which asks before it takes. All methods raise RequestError 413 for what never fits, 429 for what does
    not now; whatever was taken is free again when the request has ended, however it did."""

    def keep(self, size_bytes: int) -> None:
        """For parts of the work."""
        ...

    def borrow(self, size_bytes: int) -> None:
        """For what is needed on the way to them."""
        ...

    def give_back(self, size_bytes: int) -> None:
        """Of what was borrowed."""
        ...


class _Free:
    """Takes note of nothing."""

    def keep(self, size_bytes: int) -> None:
        """Granted."""

    def borrow(self, size_bytes: int) -> None:
        """Granted."""

    def give_back(self, size_bytes: int) -> None:
        """Taken."""


FREE: Allowance = _Free()
"""For inputs that are known to be small."""


class Task(Protocol):
    """One kind of endpoint."""

    signature: Signature
    """Inputs and outputs as V2 clients see them."""
    media: tuple[str, ...]
    """Content types (a trailing slash: the whole family) that are taken as the body itself; empty for tensors."""
    call: ModuleCall
    lengths: tuple[int, int]
    """Shortest and longest row (axis 1) that the proof of padding tries; read only where `call.padding` is set."""

    def is_heavy(self, inputs: Arrays) -> bool:
        """True when prepare takes so long that it must leave the event loop (decoding media releases the GIL)."""
        ...

    def prepare(self, inputs: Arrays, allowance: Allowance = FREE) -> Work:
        """Decode and check; RequestError 400 or 413 names the element that is wrong."""
        ...

    def finish(self, work: Work, results: list[Arrays]) -> Arrays:
        """The module's outputs, one list for each part, as the signature's outputs."""
        ...

    def rows(self, outputs: Arrays) -> list[Any]:
        """V1 predictions: one JSON value a row."""
        ...

    def reply(self, outputs: Arrays, single: bool) -> Any:
        """The TorchServe answer; single: the body was one medium, so the answer is one value, not a list."""
        ...

    def learn(self, outputs: Arrays) -> None:
        """See the module's first outputs at warm-up: take sizes from them, StartError where they cannot serve the task."""
        ...

    def synthetic(self, rows: int, generator: np.random.Generator, length: int = 0) -> Arrays:
        """Module inputs of that many differing rows, for warm-up and for the proof that rows do not mix.

        length: of axis 1 of the inputs that are padded; 0: as the task thinks best.
        """
        ...


def make_task(
    task: config.Task, signature: Signature | None, folder: Path, padding: config.Padding | None = None
) -> Task:
    """The task that the configuration names; folder is the checkpoint's, for tokenizer.json. Raises StartError.

    padding: serving.batching.padding.
    """
    from torchmodel_runtime.tasks.image import ImageTask
    from torchmodel_runtime.tasks.speech import SpeechTask
    from torchmodel_runtime.tasks.tensor import TensorTask
    from torchmodel_runtime.tasks.text import TextTask

    if task.type == "tensor":
        return TensorTask(_require_signature(signature), padding)
    if padding is not None:
        raise StartError(
            config.CONFIG_INVALID,
            f"serving.batching.padding: given for task.type {task.type}, whose rows have "
            + ("a padding of their own" if task.type == "text-embedding" else "nothing to pad"),
            "Remove spec.serving.batching.padding, or set spec.task.type: tensor.",
        )
    if signature is not None:
        raise StartError(
            config.CONFIG_INVALID,
            f"signature: given for task.type {task.type}, which has a signature of its own",
            "Remove spec.signature, or set spec.task.type: tensor.",
        )
    if task.type == "image-classification":
        return ImageTask(task.image_classification or config.ImageClassification())
    if task.type == "text-embedding":
        return TextTask(task.text_embedding or config.TextEmbedding(), folder)
    return SpeechTask(task.speech or config.Speech())


def _require_signature(signature: Signature | None) -> Signature:
    """The signature of a tensor task; torch takes no BYTES and the first dimension is the batch."""
    if signature is None:
        raise StartError(
            config.CONFIG_INVALID,
            "signature: missing, task.type tensor needs the names, datatypes and shapes of inputs and outputs",
            "Add spec.signature, for example inputs: [{name: x, datatype: FP32, shape: [-1, 10]}].",
        )
    for kind, tensors in (("inputs", signature.inputs), ("outputs", signature.outputs)):
        for index, tensor in enumerate(tensors):
            where = f"signature.{kind}[{index}] ({tensor.name})"
            if tensor.datatype == "BYTES":
                raise StartError(
                    config.CONFIG_INVALID,
                    f"{where}.datatype: got BYTES, which a torch module cannot take or give",
                    "Use a numeric datatype, or the task type of the medium (spec.task.type).",
                )
            if tensor.shape[0] != -1:
                raise StartError(
                    config.CONFIG_INVALID,
                    f"{where}.shape: got {tensor.shape}, the first dimension is the batch and must be -1",
                    f"Write {[-1, *tensor.shape]} if {tensor.shape} is one row, else {[-1, *tensor.shape[1:]]}.",
                )
    return signature
