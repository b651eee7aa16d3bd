"""Receives one file: stream, hash in order, write, go on after a cut. Called by `fetcher` for each item of a listing.

Network and disk overlap: while one batch of chunks is hashed and written in a thread, the next one is read. At most one
batch is under way, so bytes reach hash and file in order, and the bytes on disk are always the ones that were hashed.

A cut inside the process goes on with the running hash. After a restart the bytes on disk are hashed again first. Both ask
for the rest only under the same strong ETag; whatever else comes back means starting over.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from torchmodel_runtime.config import FETCH_FAILED, STORAGE_FULL
from torchmodel_runtime.fetch.digests import Digest, Hasher, hash_prefix
from torchmodel_runtime.fetch.errors import FetchError, Interruption
from torchmodel_runtime.fetch.retries import RetryPolicy, decide_delay_s
from torchmodel_runtime.fetch.sources import Item, Source, Stream

logger = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
"""Chunks are handed to the writing thread once this many bytes are together; smaller means more thread switches."""
SPACE_RESERVE_BYTES = 16 << 20
"""Left free for receipts, logs and the neighbours in the same volume. A guess."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Progress:
    """How far a fetch is."""

    bytes_done: int
    bytes_total: int | None
    files_done: int
    files_total: int
    megabytes_per_second: float
    """10^6 bytes, averaged since the last report."""


class Meter:
    """Counts bytes and tells the caller now and then."""

    def __init__(self, report: Callable[[Progress], None], interval_s: float) -> None:
        self._report = report
        self._interval_s = interval_s
        self._reported_at = time.monotonic()
        self._received_before = 0
        self._received = 0
        self.done = 0
        self.total: int | None = None
        self.files_done = 0
        self.files_total = 0

    def start_over(self, files_total: int, bytes_total: int | None) -> None:
        """Begin with a listing, or begin it again."""
        self.done, self.files_done = 0, 0
        self.files_total, self.total = files_total, bytes_total

    def adjust(self, count: int) -> None:
        """Count bytes that were there already, or that are given up (negative)."""
        self.done += count

    def receive(self, count: int) -> None:
        """Count bytes that came in; reports if the last report is old."""
        self.done += count
        self._received += count
        now = time.monotonic()
        if now - self._reported_at >= self._interval_s:
            rate = (self._received - self._received_before) / (now - self._reported_at) / 1e6
            self._reported_at, self._received_before = now, self._received
            self._report(Progress(self.done, self.total, self.files_done, self.files_total, round(rate, 1)))


class PartState(msgspec.Struct, frozen=True):
    """What a later process must know to go on with a file."""

    etag: str
    size_bytes: int | None


class Part:
    """One file on its way: its bytes, its running hash and the validator it may be continued under. Blocking."""

    def __init__(self, path: Path, state_path: Path) -> None:
        self._path = path
        self._state_path = state_path
        self._hasher: Hasher = hashlib.sha256()
        self._etag: str | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.size = 0
        self.is_joined = False
        """True once bytes of more than one answer are in the file."""

    @property
    def etag(self) -> str | None:
        """What the bytes so far were sent under; None: they cannot be continued."""
        return self._etag

    def take_over(self) -> None:
        """Hash what an earlier process left, so that it can be continued; start over when it cannot."""
        try:
            state = msgspec.json.decode(self._state_path.read_bytes(), type=PartState)
        except (FileNotFoundError, msgspec.DecodeError):
            self.start_over()
            return
        usable = os.fstat(self._file).st_size
        if state.size_bytes is not None:
            # one byte is always asked for again: the answer says whether the file is still the same
            usable = min(usable, state.size_bytes - 1)
        if usable <= 0:
            self.start_over()
            return
        self._hasher, self.size = hash_prefix(self._path, usable)
        os.ftruncate(self._file, self.size)
        self._etag = state.etag

    def start_over(self) -> None:
        """Forget all bytes."""
        os.ftruncate(self._file, 0)
        self._state_path.unlink(missing_ok=True)
        self._hasher, self.size, self._etag, self.is_joined = hashlib.sha256(), 0, None, False

    def begin(self, stream: Stream) -> None:
        """Get ready for a stream's bytes: note its validator, check the room; raises FetchError StorageFull."""
        if stream.offset == 0 or stream.offset != self.size:
            self.start_over()
        else:
            self.is_joined = True
        if stream.size_bytes is not None:
            check_space(self._path.parent, stream.size_bytes - self.size)
        if stream.etag and not self.is_joined:
            self._state_path.parent.mkdir(parents=True, exist_ok=True)
            self._state_path.write_bytes(msgspec.json.encode(PartState(stream.etag, stream.size_bytes)))
            self._etag = stream.etag

    def append(self, chunks: list[bytes]) -> None:
        """Write and hash, in order."""
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.pwrite(self._file, view, self.size + len(chunk) - len(view)) :]
            self._hasher.update(chunk)
            self.size += len(chunk)

    def finish(self) -> Digest:
        """Make the bytes durable and return their digest."""
        os.fsync(self._file)
        return Digest(self._hasher.hexdigest(), self.size)

    def close(self) -> None:
        """Close the file; its bytes stay."""
        os.close(self._file)


async def transfer_item(source: Source, item: Item, part: Part, policy: RetryPolicy, meter: Meter) -> Digest:
    """Receive one file however often it is cut; raises FetchError when it cannot be had."""
    await asyncio.to_thread(part.take_over)
    meter.adjust(part.size)
    if part.size:
        logger.info("continuing", extra={"fields": {"file": item.path, "bytes": part.size}})

    async def receive_once() -> None:
        async with source.open(item, part.size if part.etag else 0, part.etag) as stream:
            had = part.size
            await asyncio.to_thread(part.begin, stream)
            meter.adjust(part.size - had)
            if meter.files_total == 1:
                meter.total = stream.size_bytes
            await _pump(stream, part, meter)

    await persist(receive_once, policy, lambda: part.size)
    meter.files_done += 1
    return await asyncio.to_thread(part.finish)


async def persist(operation: Callable[[], Awaitable[Result]], policy: RetryPolicy, gained: Callable[[], int]) -> Result:
    """Run until it works; raises FetchError FetchFailed after too many tries in a row that gained nothing new."""
    fruitless, mark = 0, gained()
    while True:
        try:
            return await operation()
        except Interruption as trouble:
            fruitless = 1 if gained() > mark else fruitless + 1
            mark = max(mark, gained())
            delay_s = decide_delay_s(policy, fruitless, trouble.retry_after_s, random.random())  # noqa: S311 - jitter
            if delay_s is None:
                raise FetchError(
                    FETCH_FAILED,
                    f"{trouble.message} ({fruitless} tries in a row without progress, {mark} bytes so far)",
                    "Check that the server is up and can be reached from the pod; the fetch is tried again.",
                    retryable=True,
                ) from None
            fields = {"cause": trouble.message, "try": fruitless, "delaySeconds": round(delay_s, 2), "bytes": mark}
            logger.warning("interrupted, trying again", extra={"fields": fields})
            await asyncio.sleep(delay_s)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raise FetchError StorageFull if the file system of a folder has no room for this many bytes more."""
    free = shutil.disk_usage(folder).free
    if needed_bytes > 0 and needed_bytes + SPACE_RESERVE_BYTES > free:
        raise storage_full(
            f"{needed_bytes} bytes are needed and {SPACE_RESERVE_BYTES} kept free, {free} bytes are free"
        )


def storage_full(numbers: str) -> FetchError:
    """The error for a volume without room."""
    return FetchError(
        STORAGE_FULL,
        f"the volume of the checkpoint is too small: {numbers}",
        "Give the pod more ephemeral storage or a larger cache volume, or free space on the node.",
        retryable=True,
    )


async def _pump(stream: Stream, part: Part, meter: Meter) -> None:
    """Move a stream's bytes into the part; raises Interruption if they end early or never end."""
    writing: asyncio.Future[None] | None = None
    batch: list[bytes] = []
    batch_bytes = 0
    try:
        async for chunk in stream.chunks:
            batch.append(chunk)
            batch_bytes += len(chunk)
            meter.receive(len(chunk))
            if batch_bytes >= BATCH_BYTES:
                if writing:
                    await writing
                writing = asyncio.ensure_future(asyncio.to_thread(part.append, batch))
                batch, batch_bytes = [], 0
    finally:
        # also after a cut: what came in counts as progress, and nothing may still be written when the caller goes on
        if writing:
            await writing
        await asyncio.to_thread(part.append, batch)
    if stream.size_bytes is not None and part.size != stream.size_bytes:
        found = part.size
        if found > stream.size_bytes:
            await asyncio.to_thread(part.start_over)
        raise Interruption(f"the file ended after {found} of {stream.size_bytes} bytes")
