"""`torchmodel run` as a process of its own, as a person starts it: wait for its address, interrupt it, read what it said.

with LocalRun(manifest, tmp_path) as served:
    served.wait_url()
    ...
    assert served.interrupt() == 0
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

BIN = Path(sys.executable).parent


def command_environment(home: Path) -> dict[str, str]:
    """This environment with the command on PATH and a cache of its own."""
    return os.environ | {"XDG_CACHE_HOME": str(home / "cache"), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}


class LocalRun:
    """One `torchmodel run`, its output in a file."""

    def __init__(self, manifest: Path | str, home: Path, *options: str, cwd: Path | None = None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._output = home / f"run-{time.monotonic_ns()}.log"
        arguments = [
            "torchmodel",
            "run",
            str(manifest),
            *(options if "--port" in options else ("--port", "0", *options)),
        ]
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                arguments,
                env=command_environment(home),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> LocalRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.interrupt()

    @property
    def output(self) -> str:
        """All that was printed so far."""
        return self._output.read_text(errors="replace")

    def wait_url(self, timeout_s: float = 180) -> str:
        """The address, once the model serves. Raises RuntimeError with the output when it ended or the time is over."""
        limit_s = time.monotonic() + timeout_s
        while time.monotonic() < limit_s:
            if "Ctrl-C ends it" in self.output:
                return re.findall(r"serving at (\S+)", self.output)[0]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError(f"not serving (exit code {self.process.poll()}):\n{self.output}")

    def wait_end(self, timeout_s: float = 180) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def interrupt(self) -> int:
        """Ctrl-C, and the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
