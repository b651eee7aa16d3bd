"""The fetch, top to bottom: where from, with what, is it here already, receive, verify, put in place, say so.

`fetch` is called by `__main__` in the fetcher's own container and by `torchmodel run` in a process of its own. What ends
at the final path was hashed in full by this very run, whether it was received, found in the cache or left by an earlier
run. The receipt is written last; a folder without one holds nothing to trust.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

import torchmodel_runtime.config as contract
from torchmodel_runtime.config import FetchConfig, Receipt
from torchmodel_runtime.fetch.credentials import Credentials, read_credentials
from torchmodel_runtime.fetch.digests import Digest, combine_digests
from torchmodel_runtime.fetch.disk import DiskSource, hash_disk, list_disk
from torchmodel_runtime.fetch.errors import FetchError
from torchmodel_runtime.fetch.locations import BucketLocation, DiskLocation, Location, parse_location, redact_uri
from torchmodel_runtime.fetch.retries import RetryPolicy
from torchmodel_runtime.fetch.sources import Listing, Source, Timeouts
from torchmodel_runtime.fetch.transfer import (
    Meter,
    Part,
    Progress,
    check_space,
    persist,
    storage_full,
    transfer_item,
)
from torchmodel_runtime.fetch.vault import Vault
from torchmodel_runtime.fetch.workspace import (
    Workspace,
    claim_workspace,
    sweep_workspaces,
    sync_folder,
    write_atomically,
)

logger = logging.getLogger(__name__)

INCOMING_FOLDER = ".incoming"
"""Workspaces beside the final file when there is no cache; a name that `make_safe_name` cannot give."""


@dataclass(frozen=True)
class FetchSettings:
    """How a fetch goes about it; the defaults are for pods, tests shorten them."""

    timeouts: Timeouts = field(default_factory=Timeouts)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    progress_interval_s: float = 5.0
    """Least time between two calls of the progress callback."""


@dataclass(frozen=True)
class _Delivery:
    """A verified checkpoint at its final place."""

    path: Path
    digest: Digest
    is_cached: bool


async def fetch(
    config: FetchConfig,
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    environment: Mapping[str, str] | None = None,
    settings: FetchSettings | None = None,
) -> Receipt:
    """Fetch and verify a checkpoint and write its receipt; raises FetchError.

    `environment` is where AWS names are looked up when the config names no credentials folder; nothing else is read
    from it, except that obstore finds workload identity (IRSA, Pod Identity) in the process's own.
    """
    started_at = time.monotonic()
    settings = settings or FetchSettings()
    location = parse_location(config.uri)
    credentials = read_credentials(config.credentials, environment or {}, location)
    meter = Meter(progress, settings.progress_interval_s)
    source = open_source(location, credentials, settings.timeouts)
    try:
        with _storage_errors():
            delivery = await _deliver(config, location, source, settings.retry, meter)
            receipt = Receipt(
                uri=redact_uri(config.uri),
                path=_shown_path(delivery.path, Path(config.destination)),
                sha256=delivery.digest.sha256,
                size_bytes=delivery.digest.size_bytes,
                files=delivery.digest.files,
                fetch_seconds=round(time.monotonic() - started_at, 3),
                cached=delivery.is_cached,
            )
            await asyncio.to_thread(_write_receipt, Path(config.destination), receipt)
            return receipt
    finally:
        await source.close()


def open_source(location: Location, credentials: Credentials, timeouts: Timeouts) -> Source:
    """The source of a location. Imports a network client only when it is needed: each costs start-up time."""
    if isinstance(location, DiskLocation):
        return DiskSource(location)
    if isinstance(location, BucketLocation):
        from torchmodel_runtime.fetch.buckets import BucketSource

        return BucketSource(location, credentials, timeouts)
    from torchmodel_runtime.fetch.web import WebSource

    return WebSource(location, credentials, timeouts)


async def _deliver(
    config: FetchConfig, location: Location, source: Source, retry: RetryPolicy, meter: Meter
) -> _Delivery:
    """Choose the way by what holds the bytes in the end: the source's own disk, the cache, or the destination."""
    if config.cache is not None:
        return await _deliver_to_cache(config, location, source, retry, meter)
    if isinstance(location, DiskLocation):
        return await asyncio.to_thread(_verify_in_place, config, location)
    return await _deliver_to_destination(config, location, source, retry, meter)


def _verify_in_place(config: FetchConfig, location: DiskLocation) -> _Delivery:
    list_disk(location)
    path = Path(location.path)
    digest = hash_disk(path)
    if config.sha256 not in (None, digest.sha256):
        raise _mismatch(config, digest, "It was left where it is.")
    return _Delivery(path, digest, is_cached=False)


async def _deliver_to_cache(
    config: FetchConfig, location: Location, source: Source, retry: RetryPolicy, meter: Meter
) -> _Delivery:
    vault = Vault(Path(config.cache or ""))
    if found := await _find(vault, config, location):
        return found
    await asyncio.to_thread(sweep_workspaces, vault.incoming)
    key = config.sha256 or "uri-" + hashlib.sha256(config.uri.encode()).hexdigest()
    # with a known digest the second fetcher waits and finds it; without one it cannot know, and fetches beside the first
    async with claim_workspace(vault.incoming, key, wait=config.sha256 is not None) as workspace:
        if found := await _find(vault, config, location):
            workspace.discard()
            return found
        digest = await _receive(config, location.name, source, workspace, retry, meter)
        path = await asyncio.to_thread(vault.store, workspace, digest)
        workspace.discard()
    return _Delivery(path, digest, is_cached=False)


async def _find(vault: Vault, config: FetchConfig, location: Location) -> _Delivery | None:
    if config.sha256 is None:
        return None
    found = await asyncio.to_thread(vault.find, config.sha256, is_folder=_is_folder(location))
    return _Delivery(*found, is_cached=True) if found else None


async def _deliver_to_destination(
    config: FetchConfig, location: Location, source: Source, retry: RetryPolicy, meter: Meter
) -> _Delivery:
    destination = Path(config.destination)
    async with claim_workspace(destination / INCOMING_FOLDER, "checkpoint", wait=True) as workspace:
        if kept := await asyncio.to_thread(_find_kept, config, destination / location.name):
            workspace.discard()
            return kept
        (destination / contract.RECEIPT_FILE).unlink(missing_ok=True)
        digest = await _receive(config, location.name, source, workspace, retry, meter)
        path = destination / location.name
        if path.is_dir() or (path.exists() and _is_folder(location)):
            workspace.set_aside(path)
        (workspace.tree / location.name).replace(path)
        sync_folder(destination)
        workspace.discard()
    return _Delivery(path, digest, is_cached=False)


def _find_kept(config: FetchConfig, path: Path) -> _Delivery | None:
    """What an earlier run left, if it has the pinned digest; without one it may be older than what the URI names now."""
    if config.sha256 is None or not path.exists():
        return None
    try:
        digest = hash_disk(path)
    except (FetchError, FileNotFoundError):
        return None
    return _Delivery(path, digest, is_cached=True) if digest.sha256 == config.sha256 else None


async def _receive(
    config: FetchConfig, name: str, source: Source, workspace: Workspace, retry: RetryPolicy, meter: Meter
) -> Digest:
    """Receive every item into the workspace's tree and verify; a mismatch of bytes that were joined is tried once anew."""
    await asyncio.to_thread(workspace.prepare, hashlib.sha256(f"{config.uri}\n{config.sha256}".encode()).hexdigest())
    listing = await persist(source.list_items, retry, lambda: 0)
    while True:
        digest, is_joined = await _receive_listing(listing, name, source, workspace, retry, meter)
        if config.sha256 in (None, digest.sha256):
            return digest
        await asyncio.to_thread(workspace.clear)
        if not is_joined:
            workspace.discard()
            raise _mismatch(config, digest, "The received bytes were removed.")
        logger.warning(
            "continued bytes do not have the digest, starting over", extra={"fields": {"uri": redact_uri(config.uri)}}
        )


async def _receive_listing(
    listing: Listing, name: str, source: Source, workspace: Workspace, retry: RetryPolicy, meter: Meter
) -> tuple[Digest, bool]:
    top = workspace.tree / name if listing.is_folder else workspace.tree
    paths = {item.path: top / (item.path if listing.is_folder else name) for item in listing.items}
    workspace.keep_only(set(paths.values()))
    present = sum(path.stat().st_size for path in paths.values() if path.is_file())
    check_space(workspace.tree, (listing.size_bytes or 0) - present)
    meter.start_over(len(listing.items), listing.size_bytes)
    digests, is_joined = {}, False
    for item in listing.items:
        part = Part(paths[item.path], workspace.state_path(item.path))
        try:
            digests[item.path] = await transfer_item(source, item, part, retry, meter)
        finally:
            part.close()
        is_joined = is_joined or part.is_joined
    if not listing.is_folder:
        return next(iter(digests.values())), is_joined
    await asyncio.to_thread(_sync_folders, top)
    return combine_digests(digests), is_joined


def _sync_folders(top: Path) -> None:
    for path in (top, *top.rglob("*")):
        if path.is_dir():
            sync_folder(path)


def _is_folder(location: Location) -> bool:
    if isinstance(location, DiskLocation):
        return Path(location.path).is_dir()
    return isinstance(location, BucketLocation) and location.is_folder


def _shown_path(path: Path, destination: Path) -> str:
    return path.name if path.parent == destination else str(path.absolute())


def _write_receipt(destination: Path, receipt: Receipt) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    write_atomically(destination / contract.RECEIPT_FILE, msgspec.json.encode(receipt))


def _mismatch(config: FetchConfig, found: Digest, fate: str) -> FetchError:
    return FetchError(
        contract.CHECKSUM_MISMATCH,
        f"{redact_uri(config.uri)}: expected sha256 {config.sha256}, found {found.sha256} "
        f"({found.size_bytes} bytes, {found.files} {'file' if found.files == 1 else 'files'}). {fate}",
        f"If the checkpoint was changed on purpose set spec.checkpoint.sha256: {found.sha256}; "
        "otherwise find out who changed it, and do not load it.",
    )


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Say what the file system's errors mean for the reader."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else "the checkpoint's volume"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise storage_full(f"{place}: {error.strerror} while writing") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP):
            raise FetchError(
                contract.CONFIG_INVALID,
                f"{place}: {error.strerror}",
                "Give paths that the fetcher may read (checkpoint.uri) and write (destination, cache).",
            ) from error
        raise FetchError(
            contract.FETCH_FAILED,
            f"{place}: {error.strerror or type(error).__name__}",
            "Check the volume of the checkpoint; the fetch is tried again.",
            retryable=True,
        ) from error
