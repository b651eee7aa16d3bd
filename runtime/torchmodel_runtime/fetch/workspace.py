"""Where unfinished bytes live: a folder that one fetcher owns while it holds a lock, and another may take over.

Every file that is not verified yet is in a workspace, on the same file system as its final place, so the last step is a
rename and no torn file ever has a final name. The lock is flock(2) on `<key>.lock`: the kernel drops it when its holder
dies, however it dies. A workspace whose lock is free belongs to nobody; the next fetcher of the same checkpoint goes on
with its bytes, and `sweep_workspaces` removes it after a while.

    <parent>/<key>.lock       held by the owner; removed last
    <parent>/<key>/identity   which checkpoint the bytes are of, and since which boot
    <parent>/<key>/states/    what is known of each file: its ETag and size
    <parent>/<key>/tree/      the bytes, under their own names
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

LOCK_POLL_S = 0.2
"""flock has no asynchronous wait, and a thread that waits in the kernel cannot be cancelled."""
WAIT_REPORT_S = 5.0
LEFTOVER_AGE_S = 3600.0
"""A guess: long enough for a restarted pod to come back for its bytes, short enough not to fill a disk."""


class Workspace:
    """The folder of one unfinished checkpoint. Only made by `claim_workspace`, valid inside its block."""

    def __init__(self, root: Path, lock_path: Path) -> None:
        self._root = root
        self._lock_path = lock_path

    @property
    def tree(self) -> Path:
        """Holds the checkpoint under its name, and nothing else."""
        return self._root / "tree"

    def state_path(self, item_path: str) -> Path:
        """Where the state of one file is kept."""
        return self._root / "states" / hashlib.sha256(item_path.encode()).hexdigest()

    def prepare(self, identity: str) -> None:
        """Keep what is there if it is of the same checkpoint and boot, else start empty.

        After a crash of the machine a file may have its length without its bytes, so nothing is taken over a reboot.
        """
        wanted = f"{identity} {_boot_id()}"
        marker = self._root / "identity"
        if not marker.is_file() or marker.read_text() != wanted:
            self.clear()
            marker.write_text(wanted)

    def clear(self) -> None:
        """Remove all bytes and states; what they were of stays on record."""
        for folder in (self.tree, self._root / "states"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)

    def keep_only(self, paths: set[Path]) -> None:
        """Remove files that an earlier run fetched and that are no longer part of the checkpoint."""
        for path in self.tree.rglob("*"):
            if path.is_file() and path not in paths:
                path.unlink()

    def set_aside(self, path: Path) -> None:
        """Move an old file or folder into the workspace, to go with it."""
        path.rename(self._root / f"old-{uuid.uuid4().hex}")

    def discard(self) -> None:
        """Remove the workspace and its lock, which is still held."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._lock_path.unlink(missing_ok=True)


@asynccontextmanager
async def claim_workspace(parent: Path, key: str, *, wait: bool) -> AsyncIterator[Workspace]:
    """Own the workspace of this key; when another fetcher has it, wait for it or take a second one beside it."""
    await asyncio.to_thread(parent.mkdir, parents=True, exist_ok=True)
    slot, waited_s = 0, 0.0
    while (lock := _try_lock(lock_path := parent / f"{key}.{slot}.lock")) is None:
        if not wait:
            slot += 1
            continue
        if waited_s % WAIT_REPORT_S < LOCK_POLL_S:
            logger.info("another fetcher is at work on this checkpoint, waiting", extra={"fields": {"key": key}})
        await asyncio.sleep(LOCK_POLL_S)
        waited_s += LOCK_POLL_S
    try:
        root = parent / f"{key}.{slot}"
        root.mkdir(exist_ok=True)
        yield Workspace(root, lock_path)
    finally:
        os.close(lock)


def sweep_workspaces(parent: Path, *, age_s: float = LEFTOVER_AGE_S) -> int:
    """Remove workspaces whose owner is dead and whose bytes nobody came back for; returns how many."""
    removed = 0
    for lock_path in parent.glob("*.lock"):
        root = lock_path.with_suffix("")
        if time.time() - _last_change_s(root, lock_path) < age_s:
            continue
        if (lock := _try_lock(lock_path)) is None:
            continue
        try:
            Workspace(root, lock_path).discard()
            removed += 1
        finally:
            os.close(lock)
    return removed


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees all of it or none, also after a power cut."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def _try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock, None if another process does; never a lock on a file already removed."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        try:
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        os.close(descriptor)


def _last_change_s(root: Path, lock_path: Path) -> float:
    newest = 0.0
    for path in (lock_path, root, *root.rglob("*")):
        try:
            newest = max(newest, path.stat().st_mtime)
        except FileNotFoundError:
            continue
    return newest


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
