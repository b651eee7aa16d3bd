"""Builds images without Docker and puts them where the test cluster pulls from.

The Dockerfile's base image, which a registry would give, is made by debootstrap from Debian's packages; buildah builds on
it. Images are pushed to a registry that runs only meanwhile, over the folder that the cluster's own registry serves.
"""

from __future__ import annotations

import configparser
import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from cluster.machine import ROOT, cache_folder, install_packages, locked, output, timed

REGISTRY_INSIDE = (
    "127.0.0.1:5000"  # the cluster's registry as its node sees it; containerd takes loopback as plain HTTP
)
# Where we push to: always one address, by which buildah remembers the layers it has pushed, and one that nobody else takes.
REGISTRY_OUTSIDE = "127.84.77.5:5000"
BASE_IMAGE = "localhost/torchmodel-base:bookworm-1"  # raise the number when the recipe changes
BASE_PACKAGES = "python3,python3-venv,ca-certificates"
PAUSE_IMAGE = "localhost/pause:1"
PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")


def build_all() -> dict[str, str]:
    """Build, push and name the images that the end-to-end tests use: operator, runtime, efficientnet."""
    install_packages()
    references = {}
    for target in ("operator", "runtime"):
        references[target] = push(build(target))
    runtime = "localhost/torchmodel-runtime:dev"
    example = build("efficientnet", ROOT / "examples" / "Dockerfile", {"RUNTIME_IMAGE": runtime}, target=None)
    return references | {"efficientnet": push(example)}


def build(
    name: str,
    dockerfile: Path = ROOT / "Dockerfile",
    arguments: Mapping[str, str] | None = None,
    *,
    target: str | None = "",
    context: Path = ROOT,
) -> str:
    """Build localhost/torchmodel-NAME:dev and return that name. The target is NAME unless told; None is the file's last one."""
    image = f"localhost/torchmodel-{name}:dev"
    with locked("images"), timed(f"image {name}"), tempfile.TemporaryDirectory() as scratch:
        base = base_image()
        _buildah("rm", "--all")  # what builds that were ended have left; the lock says that none is running
        options = [
            "--isolation",
            "chroot",
            "--layers",
            "--force-rm",
            "--quiet",
            "--file",
            str(dockerfile),
            "--tag",
            image,
        ]
        if target is not None:
            options += ["--target", target or name]
        for key, value in ({"BASE_IMAGE": base} | dict(arguments or {})).items():
            options += ["--build-arg", f"{key}={value}"]
        for source, destination in _pip_mounts(Path(scratch)).items():
            options += ["--volume", f"{source}:{destination}:ro"]
        _buildah("build", *options, str(context))
    return image


def push(image: str) -> str:
    """Push an image of ours to the cluster's registry and return the reference that pods use; its tag is the image's id."""
    tag = _buildah("inspect", "--type", "image", "--format", "{{.FromImageID}}", image)[:12]
    name = image.removeprefix("localhost/").rpartition(":")[0]
    if not _is_pushed(name, tag):
        with locked("images"), timed(f"push {name}:{tag}"):
            _push(image, f"{name}:{tag}")
    return f"{REGISTRY_INSIDE}/{name}:{tag}"


def base_image() -> str:
    """The name of the base image, made on first use: Debian bookworm with python3 (3.11) and little else."""
    if not _exists(BASE_IMAGE):
        with timed("base image by debootstrap"), tempfile.TemporaryDirectory() as scratch:
            root = Path(scratch, "root")
            include = f"--include={BASE_PACKAGES}"
            command = ["debootstrap", "--variant=minbase", include, "bookworm", str(root)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for leftover in (*root.glob("var/cache/apt/archives/*.deb"), *root.glob("var/lib/apt/lists/*_*")):
                leftover.unlink()
            path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            _commit(root, BASE_IMAGE, "--env", path)
    return BASE_IMAGE


def push_pause_image() -> None:
    """Make the sandbox image that every pod of the cluster starts with, if the registry has it not yet."""
    if _is_pushed("pause", "1"):
        return
    with locked("images"), timed("pause image"), tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch, "root")
        command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(root / "pause"), "./pause"]
        tools = Path(__file__).with_name("tools")
        subprocess.run(command, check=True, cwd=tools, env=os.environ | {"CGO_ENABLED": "0"})
        _commit(root, PAUSE_IMAGE, "--entrypoint", '["/pause"]', "--user", "65535:65535")
        _push(PAUSE_IMAGE, "pause:1")


def _commit(root: Path, image: str, *settings: str) -> None:
    """Make an image of the files under `root`, owners and modes included (hence the archive)."""
    archive = root.with_suffix(".tar")
    subprocess.run(["tar", "--create", "--file", archive, "--directory", root, "."], check=True)
    container = _buildah("from", "scratch")
    try:
        _buildah("add", "--quiet", container, str(archive), "/")
        _buildah("config", *settings, container)
        _buildah("commit", "--quiet", container, image)
    finally:
        _buildah("rm", container)


def _is_pushed(name: str, tag: str) -> bool:
    return (registry_folder() / "docker/registry/v2/repositories" / name / "_manifests/tags" / tag).exists()


def registry_folder() -> Path:
    folder = cache_folder() / "registry"
    folder.mkdir(exist_ok=True)
    return folder


def _push(image: str, name: str) -> None:
    with _registry() as address:
        compression = ("--compression-format", "zstd", "--compression-level", "1", "--format", "oci")
        _buildah("push", "--quiet", "--tls-verify=false", *compression, image, f"docker://{address}/{name}")


@contextlib.contextmanager
def _registry() -> Iterator[str]:
    """A registry over the cluster's folder, on loopback, as long as the block runs."""
    address = REGISTRY_OUTSIDE
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as settings:
        settings.write(
            "version: 0.1\nlog: {level: warn, accesslog: {disabled: true}}\n"
            f"storage: {{filesystem: {{rootdirectory: {registry_folder()}}}}}\nhttp: {{addr: '{address}'}}\n"
        )
        settings.flush()
        argv = ["setpriv", "--pdeathsig", "KILL", "docker-registry", "serve", settings.name]
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            _wait_for_port(address, process)
            yield address
        finally:
            process.kill()
            process.wait()


def _wait_for_port(address: str, process: subprocess.Popen[bytes], timeout_s: float = 20) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _pip_mounts(scratch: Path) -> dict[str, str]:
    """This machine's pip settings (files and PIP_* variables) as files to mount into a build; they are not kept in the image."""
    settings = configparser.RawConfigParser()
    settings.read([Path(file).expanduser() for file in PIP_FILES] + [os.environ.get("PIP_CONFIG_FILE", "")])
    if not settings.has_section("global"):
        settings.add_section("global")
    for key, value in os.environ.items():
        if key.startswith("PIP_") and key != "PIP_CONFIG_FILE":
            settings.set("global", key.removeprefix("PIP_").lower().replace("_", "-"), value)
    values = {value for section in settings.sections() for value in dict(settings[section]).values()}
    mounts = {value: value for value in values if value.startswith("/") and Path(value).exists()}
    if any(settings[section] for section in settings.sections()):
        with (scratch / "pip.conf").open("w") as file:
            settings.write(file)
        mounts[str(scratch / "pip.conf")] = "/etc/pip.conf"
    return mounts


def _exists(image: str) -> bool:
    return subprocess.run([*_command(), "inspect", "--type", "image", image], capture_output=True).returncode == 0


def _buildah(*arguments: str) -> str:
    return output([*_command(), *arguments])


def _command() -> list[str]:
    """buildah with its storage in the cache folder and its mounts in a namespace of its own: none outlives a call."""
    storage = cache_folder() / "images"
    folders = ["--root", f"{storage}/root", "--runroot", f"{storage}/run", "--storage-driver", "overlay"]
    return ["unshare", "--mount", "--propagation", "private", "buildah", *folders]
