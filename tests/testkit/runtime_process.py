"""The real runtime process on a free loopback port: start, wait, talk, stop.

    with RuntimeProcess(linear_config(folder)) as server:
        server.wait_ready()
        status, answer = server.post("/v2/models/linear/infer", {...})

`port` and `grpcPort` of the configuration are replaced. `failure()` reads what a failed start left in the termination log.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
from torchmodel_runtime.config import SERVER_CONFIG_VARIABLE, Failure, ServerConfig


def find_free_port(besides: int = 0) -> int:
    """A loopback port that was free a moment ago, and is another than `besides`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port if port != besides else find_free_port(besides)


class RuntimeProcess:
    """One `python -m torchmodel_runtime`, with its log and termination log in files."""

    def __init__(
        self,
        config: ServerConfig,
        environment: dict[str, str] | None = None,
        port: int | None = None,
        grpc_port: int | None = None,
    ) -> None:
        self.port = port or find_free_port()
        self.grpc_port = grpc_port or find_free_port(besides=self.port)
        self.config = msgspec.structs.replace(config, host="127.0.0.1", port=self.port, grpc_port=self.grpc_port)
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = tempfile.TemporaryDirectory(prefix="torchmodel-runtime-")
        self._log_path = Path(self._folder.name) / "log"
        self._termination_log = Path(self._folder.name) / "termination-log"
        variables = {
            **os.environ,
            SERVER_CONFIG_VARIABLE: msgspec.json.encode(self.config).decode(),
            "TORCHMODEL_TERMINATION_LOG": str(self._termination_log),
            **(environment or {}),
        }
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "torchmodel_runtime"], env=variables, stdout=log, stderr=subprocess.STDOUT
            )

    def __enter__(self) -> RuntimeProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    @property
    def log(self) -> str:
        """All that the process has written."""
        return self._log_path.read_text(errors="replace")

    def failure(self) -> Failure | None:
        """What a failed start left; None when it left nothing."""
        if not self._termination_log.exists():
            return None
        return msgspec.json.decode(self._termination_log.read_bytes(), type=Failure)

    def wait_ready(self, timeout_s: float = 60) -> RuntimeProcess:
        """Until readiness answers 200; RuntimeError with the log when the process ends or the time is over."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the runtime ended with {self.process.returncode}:\n{self.log}")
            try:
                if self.get("/v2/health/ready")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"not ready after {timeout_s} s:\n{self.log}")

    def wait_exit(self, timeout_s: float = 60) -> int:
        """Until the process ends by itself; its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"still running after {timeout_s} s:\n{self.log}") from None

    def terminate(self) -> None:
        """Send SIGTERM and return at once."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self, timeout_s: float = 15) -> int:
        """Send SIGTERM, wait, kill what does not end; the exit code."""
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.process.returncode

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body; JSON parsed."""
        status, _, body = self.request("GET", path)
        return status, body

    def post(self, path: str, body: Any, content_type: str = "application/json") -> tuple[int, Any]:
        """Status and body of a POST; bytes are sent as they are, anything else as JSON."""
        status, _, answer = self.request("POST", path, body, {"Content-Type": content_type})
        return status, answer

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout_s: float = 60
    ) -> tuple[int, http.client.HTTPMessage, Any]:
        """Status, headers and body of any request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            payload = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, payload, headers or {})
            response = connection.getresponse()
            data = response.read()
            is_json = (response.getheader("Content-Type") or "").startswith("application/json")
            return response.status, response.headers, json.loads(data) if is_json else data
        finally:
            connection.close()
