"""`torchmodel version`: what is installed, read from package metadata and the driver's files, so nothing heavy is imported."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

DRIVER_FILE = Path("/proc/driver/nvidia/version")
"""Exists where the NVIDIA kernel driver is loaded (NVIDIA driver README, "The /proc interface")."""

PACKAGES = ("torch", "safetensors", "transformers", "numpy", "aiohttp", "kopf", "kubernetes")


def version_lines() -> list[str]:
    """One line for each part."""
    lines = [f"torchmodel {_version_of('torchmodel-operator') or 'not installed as a package'}"]
    lines.append(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    lines += [f"{name} {_version_of(name) or 'not installed'}" for name in PACKAGES]
    lines.append(f"gpu {_gpu()}")
    return lines


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpu() -> str:
    """Whether a GPU could be used; only torch itself could say it for certain, and importing it takes seconds."""
    torch_version = _version_of("torch") or ""
    if not DRIVER_FILE.exists():
        return "none: no NVIDIA driver on this machine"
    return "NVIDIA driver found" + (", but torch is a CPU build" if torch_version.endswith("+cpu") else "")
