"""A real single-node Kubernetes for the end-to-end tests and for a developer's `make cluster`, without Docker or kind.

    python tests/cluster/cluster.py up | down | status | images | kubectl ... | run COMMAND... | push IMAGE... | sh

Tests: `Cluster.connect()` finds the running cluster. `node.sh` says what is in it; `README.md` says what it cannot do.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

if not __package__:  # run as a script: let `cluster` mean this folder, as it does in the tests
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cluster import images
from cluster.machine import ROOT, build_tools, cache_folder, install_packages, locked, timed, tools_folder

NODE_SCRIPT = Path(__file__).with_name("node.sh")
NODE_ADDRESS = "172.30.0.2"  # of the node, as pods and commands inside reach it
START_TIMEOUT_S = 180.0  # about 6 s when the machine is idle
CHART = ROOT / "charts" / "torchmodel-operator"


class ClusterError(Exception):
    """The cluster is not there, or did not come up; the message says what to do."""


@dataclasses.dataclass
class Background:
    """A command that runs inside the cluster until `stop()`."""

    process: subprocess.Popen[str]

    @property
    def stdout(self) -> IO[str] | None:
        return self.process.stdout

    def is_running(self) -> bool:
        return self.process.poll() is None

    def stop(self, timeout_s: float = 10) -> int:
        """Ask its whole process group to end, then make it; returns the exit status."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
                break
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return self.process.wait()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A running cluster. Its addresses exist only inside its namespaces: use `run`, `start` and `kubectl` to get there."""

    folder: Path
    pid: int  # of its first process, as seen from outside

    @staticmethod
    def connect() -> Cluster:
        """The cluster that runs on this machine; raises ClusterError when none does."""
        cluster = _running()
        if cluster is None:
            raise ClusterError("no test cluster is running: python tests/cluster/cluster.py up")
        return cluster

    @property
    def kubeconfig(self) -> Path:
        """The administrator's; it works only inside."""
        return self.folder / "admin.kubeconfig"

    def argv(
        self, argv: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> list[str]:
        """The command that runs `argv` inside the cluster's namespaces, from outside."""
        variables = {"KUBECONFIG": str(self.kubeconfig), "PATH": f"{tools_folder()}:{os.environ['PATH']}"} | dict(
            env or {}
        )
        assignments = [f"{key}={value}" for key, value in variables.items()]
        enter = ["nsenter", "--target", str(self.pid), "--net", "--mount", "--pid", "--uts"]
        return [*enter, f"--wdns={cwd or Path.cwd()}", "env", *assignments, *map(str, argv)]

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        input: str | None = None,
        check: bool = True,
        timeout_s: float = 600,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside and return what it printed; raises ClusterError with its error output when it fails."""
        command = self.argv(argv, env, cwd)
        done = subprocess.run(
            command, input=input or "", text=True, capture_output=True, timeout=timeout_s, check=False
        )
        if check and done.returncode != 0:
            raise ClusterError(f"{' '.join(map(str, argv))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        log: Path | None = None,
        cwd: Path | None = None,
    ) -> Background:
        """Start a command inside and leave it running; its output goes to `log`, or to `Background.stdout` without one."""
        file = log.open("a") if log else None
        try:
            process = subprocess.Popen(
                self.argv(argv, env, cwd), stdin=subprocess.DEVNULL, stdout=file or subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True, start_new_session=True,
            )  # fmt: skip
        finally:
            if file:
                file.close()
        return Background(process)

    def kubectl(
        self, *arguments: str | Path, input: str | None = None, check: bool = True, timeout_s: float = 600
    ) -> str:
        """Run kubectl as the administrator and return what it printed. A manifest goes in with `-f -` and `input`."""
        return self.run(["kubectl", *arguments], input=input, check=check, timeout_s=timeout_s).stdout

    def get(self, *arguments: str) -> Any:
        """`kubectl get ... -o json`, decoded."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Server-side apply of manifests, as a user's kubectl would."""
        document = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "--server-side", "-f", "-", input=json.dumps(document))

    def push(self, image: str) -> str:
        """Push a locally built image to the cluster's registry; returns the reference for pods."""
        return images.push(image)

    def advertise_gpus(self, count: int, resource: str = "nvidia.com/gpu") -> None:
        """Make the node claim that many devices (no device is behind them); 0 takes them away."""
        quantity = str(count) if count else None
        patch = {"status": {"capacity": {resource: quantity}, "allocatable": {resource: quantity}}}
        self.kubectl("patch", "node", "node0", "--subresource=status", "--type=merge", "-p", json.dumps(patch))

    def install_operator(
        self, values: Mapping[str, Any], *, namespace: str = "torchmodel-system", release: str = "torchmodel-operator",
        chart: Path = CHART, timeout_s: float = 180,
    ) -> str:  # fmt: skip
        """`helm upgrade --install` of the chart with these values; waits until it is ready."""
        options = [
            "--namespace",
            namespace,
            "--create-namespace",
            "--wait",
            "--timeout",
            f"{timeout_s:.0f}s",
            "-f",
            "-",
        ]
        return self.helm(
            "upgrade", "--install", release, chart, *options, input=json.dumps(dict(values)), timeout_s=timeout_s + 30
        )

    def helm(self, *arguments: str | Path, input: str | None = None, check: bool = True, timeout_s: float = 600) -> str:
        homes = {f"HELM_{kind}_HOME": str(self.folder / "helm" / kind.lower()) for kind in ("CACHE", "CONFIG", "DATA")}
        return self.run(["helm", *arguments], env=homes, input=input, check=check, timeout_s=timeout_s).stdout


def up() -> Cluster:
    """The running cluster, started first when there is none."""
    if os.geteuid() != 0:
        raise ClusterError("the test cluster needs root: it makes namespaces and runs containerd")
    with locked("cluster"):
        cluster = _running()
        if cluster is not None:
            return cluster
        install_packages()
        build_tools()
        images.push_pause_image()
        _clean(_folder())
        with timed("node up"):
            try:
                return _start_node(_folder())
            except ClusterError:
                if not (_folder() / "containerd").exists():
                    raise
                shutil.rmtree(_folder() / "containerd")  # a machine that was ended may have left it broken
                return _start_node(_folder())


def down() -> None:
    """End the cluster; pulled and pushed images stay for the next one."""
    with locked("cluster"):
        _clean(_folder())


def _folder() -> Path:
    return cache_folder() / "cluster"


def _running() -> Cluster | None:
    pid = _node_pid(_folder())
    return Cluster(_folder(), pid) if pid and (_folder() / "ready").exists() else None


def _node_pid(folder: Path) -> int | None:
    """The first process of the cluster of that folder, if it lives (the file may be left from a machine that was ended)."""
    try:
        pid = int((folder / "node.pid").read_text())
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if os.fsencode(folder) in command and b"inside" in command else None


def _start_node(folder: Path) -> Cluster:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "node.log").open("w") as log:
        node = subprocess.Popen(
            [NODE_SCRIPT, folder, tools_folder(), images.registry_folder()],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
        )  # fmt: skip
    deadline = time.monotonic() + START_TIMEOUT_S
    while (cluster := _running()) is None:
        if node.poll() is not None or time.monotonic() > deadline:
            tails = [f"--- {file.name}\n{_tail(file)}" for file in (folder / "node.log", *sorted(folder.glob("log/*")))]
            _clean(folder)
            raise ClusterError("the node did not become Ready\n" + "\n".join(tails))
        time.sleep(0.1)
    node.returncode = 0  # it outlives this process on purpose, so its end is not to be waited for
    return cluster


def _clean(folder: Path) -> None:
    """End what runs in that folder and remove what it left: files (but containerd's images) and control groups."""
    pid = _node_pid(folder)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        while Path(f"/proc/{pid}").exists():  # until the kernel has ended all that ran in its PID namespace
            time.sleep(0.05)
    for entry in folder.glob("*"):
        if entry.is_dir() and entry.name != "containerd":
            shutil.rmtree(entry)
        elif not entry.is_dir():
            entry.unlink()
    for group in Path("/sys/fs/cgroup").glob("**/kubepods"):
        for inner, _, _ in os.walk(group, topdown=False):
            _remove_control_group(Path(inner))


def _remove_control_group(group: Path, timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:  # its processes are still ending
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _tail(file: Path, characters: int = 1500) -> str:
    return file.read_text(errors="replace")[-characters:]


def _exec(cluster: Cluster, argv: Sequence[str]) -> None:
    command = cluster.argv(argv)
    os.execvp(command[0], command)  # noqa: S606 - there is no shell to want


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["up", "down", "status", "images", "kubectl", "helm", "run", "push", "sh"])
    parser.add_argument("rest", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    try:
        match options.action:
            case "up":
                up()
            case "down":
                down()
            case "images":
                print(json.dumps(images.build_all(), indent=2))
            case "status":
                print(Cluster.connect().kubectl("get", "nodes,pods", "-A", "-o", "wide"), end="")
            case "push":
                for image in options.rest:
                    print(images.push(image))
            case "kubectl" | "helm":
                _exec(Cluster.connect(), [options.action, *options.rest])
            case "run":
                _exec(Cluster.connect(), options.rest)
            case "sh":
                _exec(Cluster.connect(), ["bash", "--norc"])
    except ClusterError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
