"""A GPU's side of a batch: inputs by pinned memory on a stream of their own, so that they travel while the batch before computes.

Two threads share one engine on a GPU. Each prepares its batch on its own (`send`), then waits for its turn at the module
(`turn`), then for its own answers (`fetch`), in which time the other computes.

What torch promises and this relies on (docs.pytorch.org, "CUDA semantics"): a copy from pinned memory with non_blocking=True
does not wait; the caching host allocator does not hand out a pinned block again before the copies from it are done; a tensor
that is used on another stream than the one it was allocated on must be told so by record_stream; `.to("cpu",
non_blocking=True)` of a CUDA tensor lands in pinned memory and may be read once an event behind it is reached.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch


class CudaLane:
    """One engine's way to its GPU and back."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._turn = threading.Lock()

    def send(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.cuda.Event]:
        """The tensors on the device, once the event is reached."""
        with torch.cuda.stream(self._copies):
            sent = [tensor.pin_memory().to(self._device, non_blocking=True) for tensor in tensors]
            return sent, self._copies.record_event()

    @contextmanager
    def turn(self, sent: Sequence[torch.Tensor], ready: torch.cuda.Event) -> Iterator[None]:
        """Alone at the module; its kernels start when the inputs have arrived."""
        with self._turn:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(ready)
            for tensor in sent:
                tensor.record_stream(stream)
            yield

    def fetch(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], torch.cuda.Event]:
        """The tensors on the host, to be read after `event.synchronize()`; called inside the turn."""
        fetched = [tensor.detach().to("cpu", non_blocking=True) for tensor in tensors]
        return fetched, torch.cuda.current_stream(self._device).record_event()
