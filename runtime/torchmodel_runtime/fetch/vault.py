"""The content-addressed cache: `sha256/<hex>/<name>`, shared by fetchers that run at the same time or crash.

An entry appears by one rename of a verified tree and never changes, so a reader needs no lock. What is found is hashed
again before it is used: disks flip bits, torch does not notice (pytorch#126952), and a hash is faster than any network.
"""

from __future__ import annotations

import errno
from pathlib import Path

from torchmodel_runtime.fetch.digests import Digest
from torchmodel_runtime.fetch.disk import hash_disk
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.workspace import Workspace, sync_folder


class Vault:
    """One cache folder. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries = folder / "sha256"

    @property
    def incoming(self) -> Path:
        """Where the workspaces of fetches into this cache live."""
        return self._folder / "incoming"

    def find(self, sha256: str, *, is_folder: bool) -> tuple[Path, Digest] | None:
        """The verified file or folder of this digest; None if it is not there or not sound."""
        path = self._only_child(sha256)
        if path is None or path.is_dir() != is_folder:
            return None
        try:
            digest = hash_disk(path)
        except (FetchError, FileNotFoundError):
            return None
        return (path, digest) if digest.sha256 == sha256 else None

    def store(self, workspace: Workspace, digest: Digest) -> Path:
        """Move a verified tree in and return the path of what it holds; the first one to come stays if it is sound."""
        entry = self._entries / digest.sha256
        self._entries.mkdir(parents=True, exist_ok=True)
        is_folder = next(workspace.tree.iterdir()).is_dir()
        if entry.exists() and self.find(digest.sha256, is_folder=is_folder) is None:
            workspace.set_aside(entry)
        try:
            workspace.tree.rename(entry)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        sync_folder(self._entries)
        path = self._only_child(digest.sha256)
        if path is None:
            raise FileNotFoundError(errno.ENOENT, "the cache entry vanished", str(entry))
        return path

    def _only_child(self, sha256: str) -> Path | None:
        try:
            children = list((self._entries / sha256).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return children[0] if len(children) == 1 else None
