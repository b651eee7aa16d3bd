"""Virtual environments of the rivals, one each, made on demand with pinned versions; and what they turned out to hold.

They are kept outside the repository: $BENCH_ENVIRONMENTS, else $XDG_CACHE_HOME/torchmodel/bench/environments. Our own
runtime, and everything that needs torch alone, runs in the environment that runs the benchmark.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from targets import COMMON, HERE, OURS, Target

CONSTRAINTS = HERE.parent / "constraints.txt"
STAMP = "bench-requirements.txt"
"""Written last into an environment: what it was made of, so that a change of a pin makes it again."""

_VERSIONS = """
import importlib.metadata, json, platform, sys
print(json.dumps({"python": platform.python_version(), **{n: importlib.metadata.version(n) for n in sys.argv[1:]}}))
"""


def cache_folder() -> Path:
    """Where everything that is made once lies."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchmodel" / "bench"


def environments_folder() -> Path:
    """Where the rivals' environments lie, by name."""
    return Path(os.environ.get("BENCH_ENVIRONMENTS") or cache_folder() / "environments")


def pinned(package: str) -> str:
    """`package==version` as constraints.txt has it."""
    found = re.search(rf"^{re.escape(package)}==\S+", CONSTRAINTS.read_text(), re.MULTILINE)
    if not found:
        raise ValueError(f"{CONSTRAINTS.name}: {package} is not in it; the rivals are to run our version")
    return found.group()


def requirements_of(target: Target) -> list[str]:
    """Everything that is installed for a rival, pinned."""
    return [*map(pinned, COMMON), *target.requirements]


def python_of(target: Target) -> Path:
    """The interpreter that runs a target's server."""
    return Path(sys.executable) if target.name == OURS else environments_folder() / target.name / "bin" / "python"


def prepare(target: Target) -> None:
    """Make a rival's environment, or leave the one that is there when its pins are the same."""
    if target.name == OURS:
        return
    python, wanted = python_of(target), requirements_of(target)
    stamp = python.parent.parent / STAMP
    if stamp.exists() and stamp.read_text().split() == wanted:
        return
    print(f"{target.name}: installing {' '.join(wanted)} into {stamp.parent}", flush=True)
    uv = [sys.executable, "-m", "uv"]  # the repository's own, by `make`
    if not python.exists():
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, stamp.parent], check=True)
    subprocess.run([*uv, "pip", "install", "--quiet", "--python", python, *wanted], check=True)
    stamp.write_text("\n".join(wanted) + "\n")


def describe_versions(target: Target) -> str:
    """What a target really runs: Python, torch and its own packages."""
    names = ["aiohttp", "uvloop"] if target.name == OURS else [r.split("==")[0] for r in target.requirements]
    command = [python_of(target), "-c", _VERSIONS, "torch", *names]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return ", ".join(f"{name} {version}" for name, version in json.loads(answer).items())
