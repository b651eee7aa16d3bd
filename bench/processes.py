"""A server under measurement: its whole process tree, started, watched through /proc, and ended.

The tree is found by a mark in its environment, which children inherit; by parents, for those that wrote over it; and
those seen before, for those that lost their parent. Linux only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024
MARK_VARIABLE = "BENCH_MARK"


@dataclass(frozen=True)
class Memory:
    """Of a process tree. RSS counts a shared page once for each process, PSS once in all (shared with others: in part)."""

    rss_mib: float
    pss_mib: float
    processes: int


@dataclass(frozen=True)
class Stat:
    """What /proc/PID/stat says: `started` makes a pid unique."""

    parent: int
    started: int
    is_zombie: bool
    cpu_s: float


def find_free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def read_stat(pid: int) -> Stat | None:
    """None when the process is gone. Fields: proc_pid_stat(5), counted after the name, which may hold anything."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return Stat(int(fields[1]), int(fields[19]), fields[0] == "Z", (int(fields[11]) + int(fields[12])) / TICKS_PER_S)


class ServerProcess:
    """One server and everything it started; a context manager that ends it all."""

    def __init__(self, command: Sequence[str | Path], variables: Mapping[str, str], folder: Path) -> None:
        """Start `command` with the variables over this process's own; folder takes its log and temporary files."""
        mark = uuid.uuid4().hex
        self._mark = f"{MARK_VARIABLE}={mark}".encode()
        self._seen: dict[int, int] = {}  # pid → started
        self._log = folder / "log"
        environment = {**os.environ, "TMPDIR": str(folder), "CUDA_VISIBLE_DEVICES": "", "DO_NOT_TRACK": "1"}
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env={**environment, **variables, MARK_VARIABLE: mark},
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def tree(self) -> dict[int, Stat]:
        """Every live process of the server, by pid."""
        stats = {int(entry.name): read_stat(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")}
        alive = {pid: stat for pid, stat in stats.items() if stat and not stat.is_zombie}
        found = {
            pid for pid, stat in alive.items() if self._seen.get(pid) == stat.started or self._mark in environ_of(pid)
        }
        while more := {pid for pid, stat in alive.items() if stat.parent in found} - found:
            found |= more
        self._seen = {pid: alive[pid].started for pid in found}
        return {pid: alive[pid] for pid in found}

    def cpu_s(self) -> float:
        """CPU time of the live tree, user and system."""
        return sum(stat.cpu_s for stat in self.tree().values())

    def memory(self) -> Memory:
        """Of the live tree, now."""
        rss = pss = processes = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):  # it ended meanwhile
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
                sizes = {name: int(value.split()[0]) * 1024 for name, value in (line.split(":") for line in lines)}
                rss, pss, processes = rss + sizes["Rss"], pss + sizes["Pss"], processes + 1
        return Memory(rss / MIB, pss / MIB, processes)

    def settle(self, limit_s: float = 30) -> None:
        """Wait until the server has worked off the requests that a load generator left behind, or the time is over."""
        end, before = time.monotonic() + limit_s, self.cpu_s()
        while time.monotonic() < end:
            time.sleep(0.25)
            now = self.cpu_s()
            if now - before < 0.05:
                return
            before = now

    def check_alive(self) -> None:
        """RuntimeError with the end of the log when the first process has ended."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log_tail()}")

    def log_tail(self) -> str:
        """The last that the server wrote."""
        return self._log.read_text(errors="replace")[-2000:]

    def stop(self, limit_s: float = 20) -> None:
        """SIGTERM to the first process, then to what is left, then SIGKILL."""
        self.tree()  # who belongs to it is easier to say while the first one lives
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(limit_s)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.tree():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            end = time.monotonic() + 5
            while self.tree() and time.monotonic() < end:
                time.sleep(0.1)
        self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()


def environ_of(pid: int) -> bytes:
    """The variables a process was started with; nothing when it is another user's or gone."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""
