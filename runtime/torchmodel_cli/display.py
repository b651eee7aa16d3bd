"""What `torchmodel run` shows while it works: a moving line on a terminal, a line every few seconds elsewhere.

Formatting is pure; `StatusLine` writes to standard error, so that standard output holds only answers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from torchmodel_operator.status import describe_batching, describe_parallelism
from torchmodel_runtime.config import Failure, ModelReport

QUIET_INTERVAL_S = 5.0
"""Between two lines where nobody can see a line move: a log file, CI."""

BAR_CHARACTERS = 24

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class StatusLine:
    """One line that changes in place on a terminal, or is repeated every few seconds elsewhere."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._is_terminal = self._stream.isatty()
        self._is_open = False
        self._next_s = clock() + QUIET_INTERVAL_S

    def show(self, text: str) -> None:
        """Replace the line, or print it when it is time."""
        if self._is_terminal:
            self._stream.write(f"\r\x1b[2K{text}")
            self._is_open = True
        elif self._clock() >= self._next_s:
            self._stream.write(f"{text}\n")
            self._next_s = self._clock() + QUIET_INTERVAL_S
        self._stream.flush()

    def end(self, text: str = "") -> None:
        """Close the moving line, with a last text that stays."""
        if self._is_open:
            self._stream.write("\r\x1b[2K")
            self._is_open = False
        if text:
            self._stream.write(f"{text}\n")
        self._stream.flush()


def format_size(size_bytes: float) -> str:
    """1536 → 1.5 KiB."""
    index = 0
    while size_bytes >= 1024 and index < len(UNITS) - 1:
        size_bytes /= 1024
        index += 1
    return f"{size_bytes:.0f} B" if index == 0 else f"{size_bytes:.1f} {UNITS[index]}"


def format_download(done_bytes: int, total_bytes: int | None, megabytes_per_s: float) -> str:
    """`fetching [######------]  50%  10.0 MiB of 20.0 MiB, 5.0 MB/s`; the rate is in 10^6 bytes, as the fetcher says it."""
    rate = f", {megabytes_per_s:.1f} MB/s" if megabytes_per_s else ""
    if not total_bytes:
        return f"fetching {format_size(done_bytes)}{rate}"
    share = min(done_bytes / total_bytes, 1.0)
    bar = ("#" * round(share * BAR_CHARACTERS)).ljust(BAR_CHARACTERS, "-")
    return f"fetching [{bar}] {share:4.0%}  {format_size(done_bytes)} of {format_size(total_bytes)}{rate}"


def format_ledger(report: ModelReport) -> list[str]:
    """What is loaded and where the time of the start went."""
    start = report.cold_start
    return [
        f"checkpoint  sha256:{report.sha256[:12]}, {format_size(report.size_bytes)}, {report.format}",
        f"safety      {report.load_safety}",
        f"device      {report.device}, {describe_parallelism(report.parallelism)}",
        f"batching    {describe_batching(report.batching)}",
        f"start       fetch {start.fetch_seconds:.2f} s, import {start.import_seconds:.2f} s, "
        f"load {start.load_seconds:.2f} s, warm-up {start.warm_up_seconds:.2f} s",
    ]


def format_failure(failure: Failure) -> str:
    """A Failure as two lines: what is wrong, and what to do."""
    return f"{failure.reason}: {failure.message}\nnext step: {failure.next_step}"
