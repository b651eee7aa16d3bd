"""An environment of their own for the real clients, made on demand: kserve's needs do not agree with our pins.

It lies beside what else is made once, in $TORCHMODEL_CACHE, else $XDG_CACHE_HOME/torchmodel, by the digest of its pins and
the Python it is for: a change of a pin makes another one and leaves running tests theirs. `run_client` runs a script of
tests/clients in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).parents[1] / "clients"
REQUIREMENTS = CLIENTS / "requirements.txt"

STAMP = "installed-requirements.txt"
"""Written last into the environment: without it, what is there was interrupted and is made again."""

CLIENT_LIMIT_S = 120
"""For all requests of one script: some seconds are usual, most of them its imports."""


def cache_folder() -> Path:
    """Where everything that is made once lies, as in tests/cluster/build_tools.sh."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TORCHMODEL_CACHE") or Path(home) / "torchmodel")


def client_python() -> Path:
    """The environment's interpreter. The first call installs from the package index; others at that moment wait for it."""
    pins = REQUIREMENTS.read_bytes()
    identity = pins + sysconfig.get_python_version().encode() + sysconfig.get_platform().encode()
    folder = cache_folder() / "clients" / hashlib.sha256(identity).hexdigest()[:16]
    python, stamp = folder / "bin" / "python", folder / STAMP
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (stamp.exists() and python.exists()):  # exists() follows the link: false when its Python has gone
            uv = [sys.executable, "-m", "uv"]
            subprocess.run([*uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            install = [*uv, "pip", "install", "--quiet", "--python", python, "--requirement", REQUIREMENTS]
            subprocess.run(install, check=True)
            stamp.write_bytes(pins)
    return python


def run_client(script: str, order: dict[str, Any]) -> dict[str, Any]:
    """Run tests/clients/`script` with the order as JSON; what it reports. RuntimeError with its words when it fails."""
    python = client_python()
    with tempfile.TemporaryDirectory(prefix="torchmodel-client-") as folder:
        asked, told = Path(folder) / "order.json", Path(folder) / "report.json"
        asked.write_text(json.dumps(order))
        done = subprocess.run(
            [python, CLIENTS / script, asked, told],
            capture_output=True,
            text=True,
            timeout=CLIENT_LIMIT_S,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{script} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        report: dict[str, Any] = json.loads(told.read_text())
        return report
