"""Source file:// - a file or folder on this machine. `fetcher` hashes it in place, or copies it into a cache."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from torchmodel_runtime.config import CHECKPOINT_INVALID, CHECKPOINT_NOT_FOUND
from torchmodel_runtime.fetch.digests import READ_BYTES, Digest, hash_file, hash_folder
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.locations import DiskLocation
from torchmodel_runtime.fetch.sources import MAX_FILES, Item, Listing, Stream, make_folder_listing


class DiskSource:
    """Reads what the file system holds."""

    def __init__(self, location: DiskLocation) -> None:
        self._location = location
        self._path = Path(location.path)

    async def list_items(self) -> Listing:
        """The file itself, or every file below the folder."""
        return await asyncio.to_thread(list_disk, self._location)

    @asynccontextmanager
    async def open(self, item: Item, offset: int, etag: str | None) -> AsyncIterator[Stream]:
        """Open one file; a file has no validator, so it is always read from its start."""
        del offset, etag
        path = self._path / item.path if self._path.is_dir() else self._path
        with path.open("rb", buffering=0) as file:

            async def read_chunks() -> AsyncIterator[bytes]:
                while data := await asyncio.to_thread(file.read, READ_BYTES):
                    yield data

            yield Stream(0, os.fstat(file.fileno()).st_size, None, read_chunks())

    async def close(self) -> None:
        """Nothing is held between files."""


def list_disk(location: DiskLocation) -> Listing:
    """List a file or folder; raises FetchError CheckpointNotFound, or CheckpointInvalid for links that lead out."""
    path = Path(location.path)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise FetchError(
            CHECKPOINT_NOT_FOUND,
            f"no file or folder {location.path} where the fetcher runs",
            "Check the path. In a pod it is a path inside the container image or a mounted volume.",
        ) from None
    if stat.S_ISREG(mode) and not location.path.endswith("/"):
        return Listing((Item(location.name, path.stat().st_size),), is_folder=False)
    if not stat.S_ISDIR(mode):
        raise FetchError(
            CHECKPOINT_INVALID, f"{location.path} is not a regular file or a folder", "Name a file or a folder."
        )
    return make_folder_listing(_walk(path), location.path)


def hash_disk(path: Path) -> Digest:
    """Hash a file or folder where it lies; raises FetchError as `list_disk` does."""
    listing = list_disk(DiskLocation(str(path), path.name))
    return hash_folder(path, [item.path for item in listing.items]) if listing.is_folder else hash_file(path)


def _walk(folder: Path) -> list[Item]:
    root = folder.resolve()
    items: list[Item] = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in sorted(folders):
            if (Path(parent) / name).is_symlink():
                raise _link_refused(Path(parent) / name)
        for name in sorted(names):
            path = Path(parent) / name
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise _link_refused(path)
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise FetchError(CHECKPOINT_INVALID, f"{path} is not a regular file", "Remove it from the folder.")
            items.append(Item(str(path.relative_to(folder)), status.st_size))
            if len(items) > MAX_FILES:
                return items
    return items


def _raise(error: OSError) -> None:
    raise error


def _link_refused(path: Path) -> FetchError:
    return FetchError(
        CHECKPOINT_INVALID,
        f"{path} is a symbolic link to a folder or to something outside the checkpoint folder",
        "Put the files themselves there; links to files inside the same folder are allowed.",
    )
