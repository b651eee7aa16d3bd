"""A real Kubernetes API server for tests, without nodes: etcd, kube-apiserver and the controllers our objects need.

Used by the api tests (one ControlPlane for a whole run) and by hand (`python tests/testkit/control_plane.py`).
The programs come from KUBEBUILDER_ASSETS, as with controller-runtime's envtest, or from `tests/cluster/build_tools.sh`.
Everything listens on loopback and lives in one temporary folder. Pods stay Pending unless a `FakeKubelet` plays the
node.
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import yaml

BUILD_TOOLS = Path(__file__).resolve().parents[1] / "cluster" / "build_tools.sh"
PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager")
CONTROLLERS = (
    "deployment-controller",
    "replicaset-controller",
    "garbage-collector-controller",
    "endpointslice-controller",
    "horizontal-pod-autoscaler-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "namespace-controller",
    "root-ca-certificate-publisher-controller",
    "disruption-controller",
    "pod-garbage-collector-controller",
)
START_TIMEOUT_S = 60.0  # generous: a busy two-core machine needs about 8 s
STOP_TIMEOUT_S = 20.0


class ApiError(Exception):
    """An answer of the API server that is not 2xx."""

    def __init__(self, status: int, method: str, path: str, body: Any) -> None:
        self.status = status
        self.body = body
        self.reason = body.get("reason", "") if isinstance(body, dict) else ""
        message = body.get("message", body) if isinstance(body, dict) else body
        super().__init__(f"{method} {path}: {status}: {message}")


@dataclasses.dataclass(frozen=True)
class Api:
    """The client that tests and the fake kubelet need. Each call is one connection, so threads may share it."""

    url: str
    tls: ssl.SSLContext
    token: str | None = None

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content_type: str = "",
        timeout_s: float = 30,
        **query: str,
    ) -> Any:
        """Send one request and return the decoded answer; raises ApiError. A PATCH is a merge patch by default."""
        target = f"{path}?{urlencode(query)}" if query else path
        connection = self.connect(timeout_s)
        try:
            default = "application/merge-patch+json" if method == "PATCH" else "application/json"
            payload = None if body is None else json.dumps(body)
            connection.request(method, target, payload, self.headers(content_type or default))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        is_json = "json" in response.headers.get("Content-Type", "")
        answer = json.loads(data) if is_json else data.decode(errors="replace")
        if response.status >= 300:
            raise ApiError(response.status, method, path, answer)
        return answer

    def connect(self, timeout_s: float) -> http.client.HTTPSConnection:
        parts = urlsplit(self.url)
        return http.client.HTTPSConnection(parts.hostname or "", parts.port, context=self.tls, timeout=timeout_s)

    def headers(self, content_type: str = "application/json") -> dict[str, str]:
        return {"Content-Type": content_type, "Accept": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )


class ControlPlane:
    """etcd, kube-apiserver and kube-controller-manager from `with` (or `start()`) to `stop()`.

    `crds` are YAML files created before the controllers start: the garbage collector learns of kinds made later only
    about every 30 s. The processes end with the thread that called `start()`, so that a killed test run leaves nothing
    behind: start it from a thread that outlives its use.
    """

    def __init__(
        self,
        crds: Iterable[Path] = (),
        apiserver_flags: Sequence[str] = (),
        controllers: Sequence[str] = CONTROLLERS,
    ) -> None:
        self._crds = list(crds)
        self._apiserver_flags = list(apiserver_flags)
        self._controllers = list(controllers)
        self._argv: dict[str, list[str]] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._folder: Path | None = None
        self._port = 0

    @staticmethod
    def unavailable_reason() -> str | None:
        """Why no control plane can be started here, or None when it can."""
        if "KUBEBUILDER_ASSETS" in os.environ:
            assets = Path(os.environ["KUBEBUILDER_ASSETS"])
            missing = [name for name in PROGRAMS[:2] if not (assets / name).exists()]
            return f"KUBEBUILDER_ASSETS={assets} has no {' and no '.join(missing)}" if missing else None
        if shutil.which("openssl") is None:
            return "openssl is not installed: it makes the certificates"
        missing = [name for name in PROGRAMS if not (_cache_folder() / name).exists()]
        if missing and shutil.which("go") is None:
            names = ", ".join(missing)
            return f"{names} not in {_cache_folder()}, no Go to build them, and KUBEBUILDER_ASSETS is not set"
        return None

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def folder(self) -> Path:
        """Where its files and logs (NAME.log) are while it runs."""
        if self._folder is None:
            raise RuntimeError("the control plane is not started")
        return self._folder

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def ca_file(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def client_files(self) -> tuple[Path, Path]:
        """Certificate and key of the administrator (group system:masters)."""
        return self.folder / "admin.crt", self.folder / "admin.key"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.folder / "admin.kubeconfig"

    @property
    def api(self) -> Api:
        """A client with the administrator's rights."""
        return Api(self.url, self._tls(with_client=True))

    def start(self) -> None:
        assets = _assets()
        self._folder = Path(tempfile.mkdtemp(prefix="control-plane-"))
        try:
            self._make_certificates()
            etcd_port, peer_port, self._port = _free_ports(3)
            certificate, key = (base64.b64encode(file.read_bytes()).decode() for file in self.client_files)
            self._write_kubeconfig(self.kubeconfig, {"client-certificate-data": certificate, "client-key-data": key})
            self._start_etcd(assets, etcd_port, peer_port)
            self._start_apiserver(assets, etcd_port)
            if (assets / "kube-controller-manager").exists():
                self._start_controllers(assets)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process, in the reverse order of their start, and remove the folder."""
        for process in reversed(self._processes.values()):
            process.send_signal(signal.SIGKILL)  # nothing of it is kept, so there is nothing to save
            process.wait(STOP_TIMEOUT_S)
        self._processes.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def apply_crds(self, *files: Path) -> None:
        """Create the CustomResourceDefinitions in YAML files and wait until they are served."""
        documents = [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        for document in documents:
            self.api.request("POST", crds, document)
        for document in documents:
            path = f"{crds}/{document['metadata']['name']}"
            self._wait(f"{path} to be established", partial(self._is_established, path))

    def kubeconfig_for_service_account(self, namespace: str, name: str, expiration_s: int = 3600) -> Path:
        """A kubeconfig with a token of an existing ServiceAccount: its user meets the RBAC rules of a real cluster."""
        token = self.token_for_service_account(namespace, name, expiration_s)
        file = self.folder / f"{namespace}.{name}.kubeconfig"
        self._write_kubeconfig(file, {"token": token}, namespace)
        return file

    def token_for_service_account(self, namespace: str, name: str, expiration_s: int = 3600) -> str:
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        answer = self.api.request("POST", path, {"spec": {"expirationSeconds": expiration_s}})
        return str(answer["status"]["token"])

    def api_for_service_account(self, namespace: str, name: str) -> Api:
        """A client with the rights of an existing ServiceAccount."""
        return Api(self.url, self._tls(with_client=False), self.token_for_service_account(namespace, name))

    def pause(self) -> None:
        """Freeze the API server, as an outage that keeps connections open; `resume` ends it."""
        self._processes["kube-apiserver"].send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._processes["kube-apiserver"].send_signal(signal.SIGCONT)

    def restart_apiserver(self) -> None:
        """End the API server and start it again on the same port, as an outage that cuts every watch."""
        process = self._processes["kube-apiserver"]
        process.kill()
        process.wait(STOP_TIMEOUT_S)
        self._spawn("kube-apiserver", self._argv["kube-apiserver"])
        self._wait("kube-apiserver", lambda: self.api.request("GET", "/readyz") == "ok")

    def _make_certificates(self) -> None:
        for key in ("ca", "apiserver", "admin", "sa"):
            self._openssl(f"genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {key}.key")
        self._openssl("pkey -in sa.key -pubout -out sa.pub")
        self._openssl("req -x509 -new -key ca.key -subj /CN=ca -days 30 -out ca.crt")
        for name, subject, san in (
            ("apiserver", "/CN=kube-apiserver", "IP:127.0.0.1,DNS:localhost,DNS:kubernetes.default.svc"),
            ("admin", "/O=system:masters/CN=admin", "DNS:admin"),
        ):
            extensions = f"subjectAltName={san}\nextendedKeyUsage=serverAuth,clientAuth\n"
            (self.folder / f"{name}.ext").write_text(extensions)
            self._openssl(f"req -new -key {name}.key -subj {subject} -out {name}.csr")
            signer = f"-CA ca.crt -CAkey ca.key -CAcreateserial -days 30 -extfile {name}.ext"
            self._openssl(f"x509 -req -in {name}.csr {signer} -out {name}.crt")

    def _start_etcd(self, assets: Path, port: int, peer_port: int) -> None:
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        self._spawn("etcd", [
            str(assets / "etcd"), "--name=n0", f"--data-dir={self.folder}/etcd", "--unsafe-no-fsync",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}", f"--initial-cluster=n0={peer}",
        ])  # fmt: skip

    def _start_apiserver(self, assets: Path, etcd_port: int) -> None:
        self._spawn("kube-apiserver", [
            str(assets / "kube-apiserver"), f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1", f"--secure-port={self._port}", "--client-ca-file=ca.crt",
            "--tls-cert-file=apiserver.crt", "--tls-private-key-file=apiserver.key",
            "--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=sa.pub", "--service-account-signing-key-file=sa.key",
            "--service-cluster-ip-range=10.96.0.0/16", "--allow-privileged=true", "--endpoint-reconciler-type=none",
            "--profiling=false", *self._apiserver_flags,
            *([] if (assets / "kube-controller-manager").exists() else ["--disable-admission-plugins=ServiceAccount"]),
        ])  # fmt: skip
        self._wait("kube-apiserver", lambda: self.api.request("GET", "/readyz") == "ok")
        self.apply_crds(*self._crds)

    def _start_controllers(self, assets: Path) -> None:
        self._spawn("kube-controller-manager", [
            str(assets / "kube-controller-manager"), f"--kubeconfig={self.kubeconfig}", "--leader-elect=false",
            "--bind-address=127.0.0.1", "--secure-port=0", f"--controllers={','.join(self._controllers)}",
            "--service-account-private-key-file=sa.key", "--root-ca-file=ca.crt", "--use-service-account-credentials",
            "--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-gc-syncs=5",
            "--horizontal-pod-autoscaler-sync-period=1s",
        ])  # fmt: skip
        path = "/api/v1/namespaces/default/serviceaccounts/default"
        self._wait("the default ServiceAccount", lambda: self.api.request("GET", path))

    def _spawn(self, name: str, argv: list[str]) -> None:
        self._argv[name] = argv
        prefix = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*prefix, *argv], cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def _wait(self, what: str, is_done: Callable[[], Any]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        last: object = "not yet"
        while time.monotonic() < deadline:
            for name, process in self._processes.items():
                if process.poll() is not None:
                    log = (self.folder / f"{name}.log").read_text(errors="replace")
                    raise RuntimeError(f"{name} ended with {process.returncode}:\n{log[-3000:]}")
            try:
                if is_done():
                    return
            except (OSError, ApiError, http.client.HTTPException) as error:
                last = error
            time.sleep(0.1)
        raise TimeoutError(f"waited {START_TIMEOUT_S:.0f} s for {what}: {last}")

    def _is_established(self, crd_path: str) -> bool:
        conditions = self.api.request("GET", crd_path).get("status", {}).get("conditions") or []  # null at first
        return any(condition["type"] == "Established" and condition["status"] == "True" for condition in conditions)

    def _tls(self, *, with_client: bool) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.ca_file)
        if with_client:
            context.load_cert_chain(*self.client_files)
        return context

    def _write_kubeconfig(self, file: Path, user: Mapping[str, str], namespace: str = "default") -> None:
        ca = base64.b64encode(self.ca_file.read_bytes()).decode()
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority-data": ca}}],
            "users": [{"name": "test", "user": dict(user)}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}],
            "current-context": "test",
        }
        file.write_text(yaml.safe_dump(document))
        file.chmod(0o600)

    def _openssl(self, arguments: str) -> None:
        subprocess.run(["openssl", *arguments.split()], cwd=self.folder, check=True, capture_output=True)


def _assets() -> Path:
    reason = ControlPlane.unavailable_reason()
    if reason is not None:
        raise RuntimeError(reason)
    if "KUBEBUILDER_ASSETS" in os.environ:
        return Path(os.environ["KUBEBUILDER_ASSETS"])
    if shutil.which("go") is not None:
        subprocess.run([BUILD_TOOLS, *PROGRAMS], check=True)
    return _cache_folder()


def _cache_folder() -> Path:
    return Path(subprocess.run([BUILD_TOOLS, "--dir"], check=True, capture_output=True, text=True).stdout.strip())


def _free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago; held together so that they differ."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for held in sockets:
            held.bind(("127.0.0.1", 0))
        return [int(held.getsockname()[1]) for held in sockets]
    finally:
        for held in sockets:
            held.close()


def _main() -> None:
    """Keep a control plane up until interrupted; arguments are CRD files."""
    import sys

    with ControlPlane(crds=[Path(argument) for argument in sys.argv[1:]]) as plane:
        print(f"export KUBECONFIG={plane.kubeconfig}", flush=True)
        signal.sigwait([signal.SIGINT, signal.SIGTERM])


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    _main()
