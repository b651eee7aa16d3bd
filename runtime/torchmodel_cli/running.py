"""Which models `torchmodel run` serves on this machine: one small file for each, so that `predict NAME` finds its URL.

A file is left behind only when its process was killed; readers therefore check that the process lives.
"""

from __future__ import annotations

import json
import os
from pathlib import Path


def cache_folder() -> Path:
    """Where this command keeps files between runs (XDG Base Directory Specification, $XDG_CACHE_HOME)."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "torchmodel"


def note_running(name: str, url: str) -> Path:
    """Write down that this process serves a model; returns the file to remove afterwards."""
    file = cache_folder() / "running" / f"{name}.{os.getpid()}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"name": name, "url": url, "pid": os.getpid()}))
    return file


def read_running() -> dict[str, str]:
    """URL by name; of two processes that serve the same name, the later one."""
    found: dict[str, str] = {}
    files = (cache_folder() / "running").glob("*.json")
    for file in sorted(files, key=lambda path: path.stat().st_mtime):
        try:
            note = json.loads(file.read_text())
            os.kill(note["pid"], 0)
            found[note["name"]] = note["url"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found
