"""How much memory a batch takes, and how large a batch may therefore be.

`proof` measures while it tries the sizes; `startup` asks for the bound. What a batch needs beside its inputs is taken as
proportional to them: true of layers, too little for attention over longer rows than were measured, for which running out of
memory is handled where it happens (`forward.Engine`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from torchmodel_runtime.batchrules import fit_rows
from torchmodel_runtime.quota import read_memory_room
from torchmodel_runtime.tensors import Arrays

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")

NOISE_BYTES = 8 << 20
"""Growth below this is the allocator's and the libraries' own, and says nothing about the batch."""

SHARE = 0.5
"""Of the free memory for batches; the rest is for requests being decoded and answers being encoded. A guess."""


@dataclass(slots=True)
class Bounds:
    """What one call of the module may be; engines over the same weights share one, as they share the memory."""

    max_rows: int
    sizes: tuple[int, ...] = ()
    """Numbers of rows that were proven, ascending, from 1; no call has another. Empty: every one will do."""
    max_bytes: int = 0
    """Of all inputs of a call; 0: no bound."""
    usual_row_bytes: int = 0
    """Of one row at warm-up: running out of memory on larger rows says nothing about how many of these fit."""

    growth_per_byte: float = 0.0
    """Bytes of memory that a batch takes for each byte of its inputs, measured at warm-up; 0: not known."""

    def learn(self, inputs: Arrays, growth_bytes: int) -> None:
        """What the largest batch of warm-up was and took."""
        self.usual_row_bytes = bytes_per_row(inputs)
        self.growth_per_byte = growth_bytes / max(1, self.usual_row_bytes * len(inputs[0]))

    def rows_of(self, row_bytes: int) -> int:
        """Most rows of that size in one call; a single one is always tried."""
        if not self.max_bytes:
            return self.max_rows
        return max(1, min(self.max_rows, self.max_bytes // max(1, row_bytes)))

    def lower(self, rows: int, row_bytes: int) -> None:
        """So many rows fit where more did not: for rows as usual that bounds their number, for larger ones the bytes."""
        if row_bytes <= self.usual_row_bytes:
            self.max_rows = min(self.max_rows, fit_rows(rows, self.sizes))
        else:
            self.max_bytes = min(self.max_bytes or rows * row_bytes, rows * row_bytes)


class PeakMeter:
    """The most memory used since it was made, beyond what was used then."""

    def __init__(self, device: torch.device) -> None:
        self._is_gpu = device.type == "cuda"
        self._base_bytes = -1
        if self._is_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._base_bytes = torch.cuda.memory_allocated()
            return
        try:
            CLEAR_REFS.write_text("5")  # sets VmHWM back to VmRSS (kernel docs: filesystems/proc.rst)
        except OSError:  # another kernel, or a sandbox: nothing is measured then
            return
        self._base_bytes = _read_status("VmRSS")

    def growth_bytes(self) -> int:
        """Bytes; 0 when it cannot be measured or is lost in the noise."""
        if self._base_bytes < 0:
            return 0
        peak = torch.cuda.max_memory_allocated() if self._is_gpu else _read_status("VmHWM")
        growth = peak - self._base_bytes
        return growth if growth >= NOISE_BYTES else 0


def room_bytes(device: torch.device) -> int:
    """What may still be allocated on the device: of a GPU what is free and what torch's cache holds unused."""
    if device.type != "cuda":
        return read_memory_room()
    free, _ = torch.cuda.mem_get_info()
    return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()


def max_batch_bytes(room_bytes: int, growth_per_byte: float, batches: int) -> int:
    """Most bytes of inputs in a batch, when so many batches are computed at the same time; 0: no bound.

    growth_per_byte: bytes of memory that a batch takes for each byte of its inputs; 0: not known.
    """
    if growth_per_byte <= 0 or room_bytes <= 0:
        return 0
    return max(1, int(room_bytes * SHARE / max(1, batches) / growth_per_byte))


def bytes_per_row(inputs: Arrays) -> int:
    """Of one row of all inputs."""
    return sum(array.nbytes for array in inputs) // max(1, len(inputs[0]))


def _read_status(field: str) -> int:
    """A field of /proc/self/status, in bytes; -1 when it is not there."""
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else -1
