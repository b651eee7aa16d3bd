"""The operator's processes and a real control plane, as the api tests use them: started, asked, killed, waited for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from testkit.control_plane import Api, ApiError, ControlPlane
from testkit.fake_kubelet import FakeKubelet, Fate
from testkit.manifests import a_model

SYSTEM = "torchmodel-system"
ACCOUNT = "models-torchmodel-operator"
MODELS = "/apis/serving.torchmodel.dev/v1alpha1/namespaces/{}/torchmodels"
LABEL = "serving.torchmodel.dev/model"
Json = dict[str, Any]


class Operator:
    """One operator process."""

    def __init__(self, kubeconfig: Path, log: Path, name: str, settings: Mapping[str, str]) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = log
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("TORCHMODEL", "KUBE"))}
        environment |= {
            "KUBECONFIG": str(kubeconfig),
            "POD_NAME": name,
            "TORCHMODEL_RUNTIME_IMAGE": "registry/torchmodel-runtime:1",
            "TORCHMODEL_LEASE_NAMESPACE": SYSTEM,
            "TORCHMODEL_PROBE_PORT": str(self.port),
            **settings,
        }
        with log.open("ab") as output:
            argv = [sys.executable, "-m", "torchmodel_operator"]
            self.process = subprocess.Popen(argv, env=environment, stdout=output, stderr=output)

    def metric(self, name: str) -> float:
        for line in self._read("/metrics").splitlines():
            if line.startswith(f"torchmodel_operator_{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the operator ended with {self.process.returncode}:\n{self.log.read_text()[-4000:]}")
        return self._read("/readyz") == "ok\n"

    def is_leading(self) -> bool:
        return self.metric("leading") == 1.0

    def kill(self, number: int = signal.SIGKILL) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)

    def _read(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""


class Cluster:
    """The control plane as the tests use it."""

    def __init__(self, plane: ControlPlane, kubeconfig: Path, folder: Path) -> None:
        self.plane, self.kubeconfig, self.folder = plane, kubeconfig, folder
        self.api: Api = plane.api
        self.fates: dict[str, Fate] = {}
        self._kubelet: FakeKubelet | None = None
        self._names = 0
        self._operators: list[Operator] = []

    def start_kubelet(self) -> None:
        """Play the nodes: each pod's fate is that of its model in `fates`."""
        self._kubelet = FakeKubelet(
            self.api,
            lambda pod: self.fates.get(pod["metadata"].get("labels", {}).get(LABEL, ""), Fate(0.2)),
            period_s=0.2,
        )
        self._kubelet.start()

    def stop_kubelet(self) -> None:
        if self._kubelet is not None:
            self._kubelet.stop()
            self._kubelet = None

    @contextlib.contextmanager
    def without_kubelet(self) -> Iterator[None]:
        """The test plays the kubelet itself."""
        self.stop_kubelet()
        try:
            yield
        finally:
            self.start_kubelet()

    def start_operator(self, name: str = "", **settings: str) -> Operator:
        """An operator process that is ready."""
        self._names += 1
        name = name or f"operator-{self._names}"
        operator = Operator(self.kubeconfig, self.folder / f"{name}.log", name, settings)
        self._operators.append(operator)
        wait_for(operator.is_ready, "the operator to be ready")
        return operator

    def stop_operators(self) -> None:
        for operator in self._operators:
            operator.kill(signal.SIGTERM)
        self._operators.clear()

    def make_namespace(self, name: str, **labels: str) -> str:
        self.api.request("POST", "/api/v1/namespaces", {"metadata": {"name": name, "labels": labels}})
        return name

    def create(self, name: str, namespace: str = "default", **spec: Any) -> Json:
        created: Json = self.api.request("POST", MODELS.format(namespace), a_model(name, namespace, **spec))
        return created

    def model(self, name: str, namespace: str = "default") -> Json:
        found: Json = self.api.request("GET", f"{MODELS.format(namespace)}/{name}")
        return found

    def patch(self, name: str, spec: Json, namespace: str = "default") -> Json:
        patched: Json = self.api.request("PATCH", f"{MODELS.format(namespace)}/{name}", {"spec": spec})
        return patched

    def delete(self, name: str, namespace: str = "default") -> None:
        self.api.request("DELETE", f"{MODELS.format(namespace)}/{name}")

    def condition(self, name: str, kind: str = "Ready", namespace: str = "default") -> Json:
        """The condition, if it was judged from the newest generation; else nothing."""
        body = self.model(name, namespace)
        for condition in body.get("status", {}).get("conditions", []):
            if condition["type"] == kind and condition["observedGeneration"] == body["metadata"]["generation"]:
                return dict(condition)
        return {"status": "", "reason": "", "message": ""}

    def wait_for_reason(self, name: str, reason: str, namespace: str = "default") -> Json:
        wait_for(
            lambda: self.condition(name, namespace=namespace)["reason"] == reason,
            lambda: f"{name} to be {reason}: {self.model(name, namespace).get('status')}",
        )
        return self.condition(name, namespace=namespace)

    def exists(self, path: str) -> bool:
        try:
            self.api.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def operator_writes(self) -> list[str]:
        """Every write of the operator's account so far, but for its Lease, as the API server's audit log has them."""
        entries = [json.loads(line) for line in (self.folder / "audit.log").read_text().splitlines()]
        return [f"{entry['verb']} {entry['requestURI']}" for entry in entries if entry["responseStatus"]["code"] < 300]


def wait_for(is_true: Callable[[], object], what: str | Callable[[], str] = "it", timeout_s: float = 60.0) -> None:
    """Poll until true; fails naming what was waited for."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s:.0f} s for {what if isinstance(what, str) else what()}")
        time.sleep(0.1)
