"""The server as a child process: started like in a pod, watched, asked to drain, never left behind. Called by `localrun`."""

from __future__ import annotations

import collections
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

import msgspec
from torchmodel_runtime.config import SERVER_CONFIG_VARIABLE, TERMINATION_LOG_VARIABLE, Failure, ServerConfig

KEPT_LINES = 20
"""Last lines of a server that died without a Failure; a traceback's end is what one needs."""

LOUD_LEVELS = ("warning", "error", "critical")

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal a process gets when its parent dies."""


class ServerProcess:
    """A running server."""

    def __init__(self, config: ServerConfig, folder: Path, state: Path, is_verbose: bool) -> None:
        """Start it. `folder` is its working folder, so that a class beside the manifest can be imported."""
        self._failure_file = state / "termination.json"
        self._is_verbose = is_verbose
        self._tail: collections.deque[str] = collections.deque(maxlen=KEPT_LINES)
        environment = os.environ | {
            SERVER_CONFIG_VARIABLE: msgspec.json.encode(config).decode(),
            TERMINATION_LOG_VARIABLE: str(self._failure_file),
        }
        # a session of its own: Ctrl-C reaches only us, and we pass on a SIGTERM, as the kubelet does
        self._process = subprocess.Popen(
            [sys.executable, "-m", "torchmodel_runtime"],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        assert self._process.stderr is not None  # noqa: S101 - PIPE was asked for above
        self._reader = threading.Thread(target=self._read_logs, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The exit code, None when it still runs after the time."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def drain(self) -> None:
        """Ask it to finish what is queued and exit."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def failure(self) -> Failure | None:
        """Why the start failed, as the server wrote it down; None when it wrote nothing."""
        try:
            return msgspec.json.decode(self._failure_file.read_bytes(), type=Failure)
        except (OSError, msgspec.MsgspecError):
            return None

    def last_lines(self) -> list[str]:
        """The end of its log."""
        self._reader.join(timeout=2)
        return list(self._tail)

    def _read_logs(self, stream: IO[str]) -> None:
        for line in stream:
            line = line.rstrip("\n")
            self._tail.append(line)
            text = line if self._is_verbose else loud_text(line)
            if text:
                print(text, file=sys.stderr, flush=True)


def _end_with_parent() -> None:
    """Runs in the child before the server does: when `torchmodel run` is killed, the server drains and goes with it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def loud_text(line: str) -> str:
    """A log line as a person sees it: warnings and worse, the rest is empty; a Failure is shown once, at the end."""
    try:
        record = json.loads(line)
        level = record["level"]
    except (ValueError, KeyError, TypeError):
        return ""
    is_loud = level in LOUD_LEVELS and "nextStep" not in record
    return f"{level}: {record.get('message', '')}" if is_loud else ""
