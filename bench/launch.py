"""Puts a model where a server finds it, and starts any target on it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bare_torch import WEIGHTS_FILE
from environments import python_of
from processes import ServerProcess, find_free_port
from targets import HERE, SERVERS, Target, make_environment
from workloads import Workload


def save_model(workload: Workload, folder: Path) -> Path:
    """Weights, expected answers, and the receipt that a fetcher would have left (docs/runtime-contract.md)."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    subprocess.run([sys.executable, HERE / "bare_torch.py", "save", workload.name, folder], check=True)
    weights = (folder / WEIGHTS_FILE).read_bytes()
    receipt = {
        "uri": f"file://{folder / WEIGHTS_FILE}",
        "path": WEIGHTS_FILE,
        "sha256": hashlib.sha256(weights).hexdigest(),
        "sizeBytes": len(weights),
        "fetchSeconds": 0.0,
    }
    (folder / "receipt.json").write_text(json.dumps(receipt))
    return folder


@contextlib.contextmanager
def serving(
    target: Target, workload: Workload, model_folder: Path, overrides: Mapping[str, Any]
) -> Iterator[tuple[ServerProcess, str]]:
    """A target on a free port, and the URL to post to; ended with everything it started. Not ready yet."""
    port, python = find_free_port(), python_of(target)
    command = [part.format(python=python, servers=SERVERS, port=port) for part in shlex.split(target.command)]
    paths = [str(SERVERS), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        **make_environment(target, workload, model_folder, port, overrides),
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (
        tempfile.TemporaryDirectory(prefix=f"bench-{target.name}-", ignore_cleanup_errors=True) as folder,
        ServerProcess(command, variables, Path(folder)) as server,
    ):
        yield server, f"http://127.0.0.1:{port}{target.url_path(workload.name)}"
