"""The device and this thread's way of using it: which one, torch's settings, and what running out of memory looks like.

`startup` chooses and sets; `forward` and the proofs ask what an error was.
"""

from __future__ import annotations

import torch

from torchmodel_runtime.config import DEVICE_UNAVAILABLE, OUT_OF_MEMORY
from torchmodel_runtime.errors import StartError

_NO_MEMORY = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""What torch's CPU allocator (c10/core/impl/alloc_cpu.cpp), cuBLAS and cuDNN say when memory runs out."""


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
    """torch's own error on a GPU, RuntimeErrors of its CPU allocator and of NVIDIA's libraries, Python's for arrays."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def out_of_memory(what: str, error: BaseException) -> StartError:
    """A start that ran out of memory."""
    return StartError(
        OUT_OF_MEMORY,
        f"out of memory during {what}: {error}",
        "Raise spec.resources.limits.memory (or take a larger GPU), or lower spec.serving.batching.maxSize.",
    )
