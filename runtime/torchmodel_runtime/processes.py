"""More processes on the one port: the first one starts them once it is ready, restarts them, and ends them with itself.

Theory. The kernel spreads connections over all sockets bound to the port (SO_REUSEPORT), so a process serves from `listen` on
and nothing stands between client and process. Each maps the same weights file, so the page cache holds it once. Siblings
take over what the first one decided and reported (`Handover`), so that all answer alike. They hold the reading end of a pipe:
when the first one is gone, however it went, they drain and end.

`__main__` makes a `Siblings` in the first process; what all of them say together is `circle`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from torchmodel_runtime.config import SERVER_CONFIG_VARIABLE, TERMINATION_LOG_VARIABLE, ModelReport
from torchmodel_runtime.parallelism import Plan

logger = logging.getLogger(__name__)

SIBLING_VARIABLE = "TORCHMODEL_SIBLING"
"""`<folder>:<index>` in the environment of every process but the first."""

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
"""A sibling that ends is started again, after twice as long each time."""
STEADY_S = 60.0
"""One that lived so long starts again with the first pause."""
_ENDED_WELL = (0, -signal.SIGTERM)
"""Drained; or told to end before it had a handler for that, which is long before it opens the port and has anything to lose."""


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What the first process found out and the others take over."""

    plan: Plan
    report: ModelReport


class Membership(msgspec.Struct, frozen=True):
    """Which of the processes this one is; 0 is the first."""

    folder: Path
    index: int

    @property
    def is_first(self) -> bool:
        """True for the process that was started from outside."""
        return self.index == 0

    def life_of(self, pid: int) -> str:
        """A name for what this process is from its start to its end: the next in its place has another."""
        return f"{self.index}-{pid}"


def read_membership(environment: Mapping[str, str]) -> Membership | None:
    """None in the first process."""
    folder, _, index = environment.get(SIBLING_VARIABLE, "").rpartition(":")
    return Membership(Path(folder), int(index)) if folder else None


def read_handover(folder: Path) -> Handover | None:
    """What the first process wrote; None when it is gone, and its folder with it."""
    try:
        return msgspec.json.decode((folder / "handover.json").read_bytes(), type=Handover)
    except FileNotFoundError:
        return None


class Siblings:
    """The other processes, seen from the first."""

    def __init__(
        self, folder: Path, config_text: bytes, handover: Handover, on_end: Callable[[str], None] = lambda _: None
    ) -> None:
        """on_end: told the name of each life that ended (`Membership.life_of`)."""
        self._on_end = on_end
        self._folder = folder
        self._config_text = config_text
        (folder / "handover.json").write_bytes(msgspec.json.encode(handover))
        self._tasks: list[asyncio.Task[None]] = []
        self._running: dict[int, Process] = {}
        self._stopping = False

    def start(self, count: int) -> None:
        """Start that many and keep them running."""
        self._tasks = [asyncio.create_task(self._keep(index)) for index in range(1, count + 1)]

    def terminate(self) -> None:
        """Let them drain; returns at once. None is started again."""
        self._stopping = True
        for process in self._running.values():
            _signal(process, signal.SIGTERM)

    async def wait(self, timeout_s: float) -> bool:
        """After `terminate`, until all have ended; False when some had to be killed or ended badly."""
        running = list(self._running.values())
        try:
            async with asyncio.timeout(timeout_s):
                codes = [await process.wait() for process in running]
        except TimeoutError:
            for process in running:
                _signal(process, signal.SIGKILL)
            return False
        finally:
            for task in self._tasks:
                task.cancel()
        return all(code in _ENDED_WELL for code in codes)

    async def _keep(self, index: int) -> None:
        pause_s = FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while not self._stopping:
            began_s = loop.time()
            code = await self._run(index)
            if self._stopping:
                return
            pause_s = FIRST_PAUSE_S if loop.time() - began_s > STEADY_S else min(2 * pause_s, LONGEST_PAUSE_S)
            logger.error(
                "a process ended", extra={"fields": {"index": index, "code": code, "again_in_seconds": pause_s}}
            )
            await asyncio.sleep(pause_s)

    async def _run(self, index: int) -> int:
        """One life of a sibling; its exit code."""
        lifeline, held = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "torchmodel_runtime",
                stdin=lifeline,
                env={
                    **os.environ,
                    SERVER_CONFIG_VARIABLE: self._config_text.decode(),
                    SIBLING_VARIABLE: f"{self._folder}:{index}",
                    TERMINATION_LOG_VARIABLE: str(self._folder / f"termination-{index}"),
                },
            )
            os.close(lifeline)
            lifeline = -1
            self._running[index] = process
            if self._stopping:  # `terminate` came while it was being made
                _signal(process, signal.SIGTERM)
            code = await process.wait()
            self._on_end(Membership(self._folder, index).life_of(process.pid))
            return code
        finally:
            self._running.pop(index, None)
            for end in (lifeline, held):
                if end >= 0:
                    os.close(end)


async def watch_lifeline(stop: asyncio.Event) -> None:
    """Set stop when the first process is gone: standard input, the pipe it holds, ends."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()
    stop.set()


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)
