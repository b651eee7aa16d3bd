"""What the test cluster keeps on this machine and needs from it: the cache folder, the Debian packages, the built programs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD_TOOLS = Path(__file__).with_name("build_tools.sh")
PACKAGES = {  # a program of each, by which we know that it is there
    "containerd": "containerd",
    "runc": "runc",
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "iptables": "iptables",
    "nftables": "nft",
    "conntrack": "conntrack",
    "docker-registry": "docker-registry",
    "iproute2": "ip",
    "openssl": "openssl",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
}


def cache_folder() -> Path:
    """Where all of it lies: nothing else on the machine is written but Debian's packages."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("TORCHMODEL_CACHE") or Path(home) / "torchmodel")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def tools_folder() -> Path:
    return Path(subprocess.run([BUILD_TOOLS, "--dir"], check=True, capture_output=True, text=True).stdout.strip())


def build_tools() -> Path:
    subprocess.run([BUILD_TOOLS], check=True)
    return tools_folder()


def install_packages() -> None:
    """Install the Debian packages that are missing; their services are not started."""
    missing = [package for package, program in PACKAGES.items() if shutil.which(program) is None]
    if not missing:
        return
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    with timed(f"apt-get install {' '.join(missing)}"):
        subprocess.run(["apt-get", "update", "-qq"], check=True, env=environment, stdout=subprocess.DEVNULL)
        command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock that other sessions on this machine respect."""
    with (cache_folder() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Say how long a step took."""
    start_s = time.monotonic()
    yield
    print(f"{what}: {time.monotonic() - start_s:.1f} s", flush=True)


def output(argv: Sequence[str | Path]) -> str:
    """What a command prints; its error output goes through."""
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
