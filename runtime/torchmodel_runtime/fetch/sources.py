"""The seam between "where bytes come from" and "how they are received": one protocol and what passes through it.

A source answers two questions: which files are there, and give me this one from byte n on. It raises `Interruption` for
trouble that another try may cure and `FetchError` for the rest; it never retries, writes or hashes. `disk`, `buckets` and
`web` are the kinds there are; another kind is another module, and another branch in `fetcher.open_source`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from torchmodel_runtime.config import CHECKPOINT_INVALID, CHECKPOINT_NOT_FOUND
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.locations import check_relative_path

MAX_FILES = 10_000
"""Of a folder. The largest folders on Hugging Face hold some hundred files; a guess that stops a bucket's root."""


@dataclass(frozen=True)
class Timeouts:
    """How long a source may be silent, in seconds."""

    connect_s: float = 10.0
    """Until the connection stands, name look-up and TLS included."""
    stall_s: float = 60.0
    """Without a single byte, until the answer's head and between two pieces of its body."""


@dataclass(frozen=True)
class Item:
    """One file of the checkpoint; the path is relative to the folder, or the file's name."""

    path: str
    size_bytes: int | None = None


@dataclass(frozen=True)
class Listing:
    """Everything the location holds."""

    items: tuple[Item, ...]
    is_folder: bool

    @property
    def size_bytes(self) -> int | None:
        """Sum of the sizes, None as long as one is unknown."""
        sizes = [item.size_bytes for item in self.items]
        return None if None in sizes else sum(size for size in sizes if size is not None)


@dataclass(frozen=True)
class Stream:
    """An open file, from `offset` on, which is 0 when the source could not or must not continue."""

    offset: int
    size_bytes: int | None
    """Of the whole file, not of what is left."""
    etag: str | None
    """A strong validator (RFC 9110 8.8.1); None when the source has none, then a cut means a new start."""
    chunks: AsyncIterator[bytes]


class Source(Protocol):
    """Where the bytes come from."""

    async def list_items(self) -> Listing:
        """Which files there are."""
        ...

    def open(self, item: Item, offset: int, etag: str | None) -> AbstractAsyncContextManager[Stream]:
        """Open one file at `offset` if it still has this etag, else at 0."""
        ...

    async def close(self) -> None:
        """Give back connections."""
        ...


def make_folder_listing(items: list[Item], shown: str) -> Listing:
    """Check what a source found in a folder: not empty, not too much, every path safe, no path below another."""
    if not items:
        raise FetchError(
            CHECKPOINT_NOT_FOUND, f"no file in {shown}", "Check the path; a folder's URI ends with a slash."
        )
    if len(items) > MAX_FILES:
        raise FetchError(
            CHECKPOINT_INVALID,
            f"{shown} holds more than {MAX_FILES} files",
            "Name the folder of one checkpoint.",
        )
    paths = {check_relative_path(item.path) for item in items}
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in paths:
                raise FetchError(
                    CHECKPOINT_INVALID,
                    f"{shown} holds both {parent!r} and {path!r}, which cannot be a file and a folder at once",
                    "Rename or remove one of them.",
                )
            parent = parent.rpartition("/")[0]
    return Listing(tuple(sorted(items, key=lambda item: item.path.encode())), is_folder=True)
