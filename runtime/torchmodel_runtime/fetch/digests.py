"""SHA-256 of a file and of a folder, as `config.Receipt` defines them. Called by `fetcher` and `transfer`; blocking."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

READ_BYTES = 1 << 20


class Hasher(Protocol):
    """What is used of hashlib's objects."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True)
class Digest:
    """Digest and size of one file, or of a folder as a whole."""

    sha256: str
    size_bytes: int
    files: int = 1


def hash_prefix(path: Path, limit_bytes: int) -> tuple[Hasher, int]:
    """Hash at most the first `limit_bytes` of a file; returns the running hash and how many bytes it has seen."""
    hasher, seen = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while seen < limit_bytes and (data := file.read(min(READ_BYTES, limit_bytes - seen))):
            hasher.update(data)
            seen += len(data)
    return hasher, seen


def hash_file(path: Path) -> Digest:
    """Hash a whole file."""
    hasher, seen = hash_prefix(path, 1 << 62)
    return Digest(hasher.hexdigest(), seen)


def hash_folder(folder: Path, relative_paths: list[str]) -> Digest:
    """Hash the named files of a folder into the folder's digest."""
    return combine_digests({path: hash_file(folder / path) for path in relative_paths})


def combine_digests(digests: Mapping[str, Digest]) -> Digest:
    """The folder's digest from those of its files: SHA-256 of `<hex>  <relative path>\\n`, sorted by the path's bytes."""
    lines = "".join(f"{digests[path].sha256}  {path}\n" for path in sorted(digests, key=str.encode))
    return Digest(
        hashlib.sha256(lines.encode()).hexdigest(),
        sum(digest.size_bytes for digest in digests.values()),
        len(digests),
    )
