"""Source s3:// - objects of an S3 bucket by obstore, which signs and speaks TLS; retries and resume stay ours.

Every setting that obstore would else take from the process environment is passed explicitly, so that a Secret is never
mixed with it. obstore's errors are texts with the server's XML inside; only the status, the S3 error code and its
fixed message are taken out of them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import S3Store

import torchmodel_runtime.config as contract
from torchmodel_runtime.fetch.credentials import ACCESS_KEY, REGION, SECRET_KEY, Credentials
from torchmodel_runtime.fetch.errors import FetchError, Interruption
from torchmodel_runtime.fetch.locations import BucketLocation
from torchmodel_runtime.fetch.retries import is_retryable_status
from torchmodel_runtime.fetch.sources import MAX_FILES, Item, Listing, Stream, Timeouts, make_folder_listing

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult
    from obstore.store import ClientConfig, S3Config

CHUNK_BYTES = 1 << 19
"""A chunk that is not full is lost with a cut; obstore's default is 10 MiB. Half of this costs a quarter of the speed."""
DEFAULT_REGION = "us-east-1"
"""What MinIO, SeaweedFS and others sign with when none is set, and AWS's own default."""
TRANSFER_LIMIT = timedelta(days=1)
"""obstore ends a request after 30 s by default, however well it runs; the stall timeout is what guards it."""


class BucketSource:
    """One object or one prefix of a bucket."""

    def __init__(self, location: BucketLocation, credentials: Credentials, timeouts: Timeouts) -> None:
        region = credentials.region or DEFAULT_REGION
        self._location = location
        self._endpoint = credentials.endpoint or f"https://s3.{region}.amazonaws.com"
        self._signs = bool(credentials.access_key_id) or credentials.has_workload_identity
        try:
            self._store = S3Store(
                location.bucket,
                config=_store_config(credentials, self._endpoint, region),
                client_options=_client_options(credentials, self._endpoint, timeouts),
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
            )
        except BaseError:
            raise FetchError(
                contract.CREDENTIALS_INVALID,
                "credentials: the S3 client refuses the endpoint, region or ca.crt",
                "Check AWS_ENDPOINT_URL, AWS_REGION and ca.crt.",
            ) from None

    async def list_items(self) -> Listing:
        """The object itself, unasked, or every object below the prefix."""
        key = self._location.key
        if not self._location.is_folder:
            return Listing((Item(self._location.name),), is_folder=False)
        found: dict[str, int] = {}
        try:
            async for batch in obstore.list(self._store, prefix=key or None):
                for entry in batch:
                    relative = entry["path"][len(key) + 1 :] if key else entry["path"]
                    if relative:
                        found[relative] = entry["size"]
                if len(found) > MAX_FILES:
                    break
            paths = [path for path in found if found[path] or await self._is_object(path, found)]
        except (BaseError, OSError, ValueError) as error:
            raise self._translate(error, key + "/") from None
        return make_folder_listing([Item(path, found[path]) for path in paths], f"s3://{self._location.bucket}/{key}/")

    @asynccontextmanager
    async def open(self, item: Item, offset: int, etag: str | None) -> AsyncIterator[Stream]:
        """Get the object from `offset` on while it has this etag, else whole."""
        key = self._key(item.path)
        try:
            result = await self._get(key, offset, etag)
        except (BaseError, OSError, ValueError) as error:
            raise self._translate(error, key) from None
        meta = result.meta
        yield Stream(result.range[0], meta["size"], _strong_etag(meta["e_tag"]), self._read_chunks(result, key))

    async def close(self) -> None:
        """obstore closes its connections when the store is dropped."""

    def _key(self, path: str) -> str:
        if not self._location.is_folder:
            return self._location.key
        return f"{self._location.key}/{path}" if self._location.key else path

    async def _is_object(self, path: str, found: dict[str, int]) -> bool:
        """False for the empty 'folder/' objects that consoles make; obstore lists them without their slash."""
        if any(other.startswith(path + "/") for other in found):
            return False
        try:
            await obstore.head_async(self._store, self._key(path))
        except FileNotFoundError:
            return False
        return True

    async def _get(self, key: str, offset: int, etag: str | None) -> GetResult:
        if offset and etag:
            options: GetOptions = {"range": {"offset": offset}, "if_match": etag}
            try:
                return await obstore.get_async(self._store, key, options=options)
            except PreconditionError:
                pass
            except BaseError as error:
                if _status(error) != 416:
                    raise
        return await obstore.get_async(self._store, key)

    async def _read_chunks(self, result: GetResult, key: str) -> AsyncIterator[bytes]:
        try:
            async for chunk in result.stream(min_chunk_size=CHUNK_BYTES):
                yield memoryview(chunk)  # type: ignore[misc]  # a buffer without a copy; hashing and writing take it
        except (BaseError, OSError, ValueError) as error:
            raise self._translate(error, key) from None

    def _translate(self, error: Exception, key: str) -> FetchError:
        """The error for what obstore raised; raises Interruption for what may pass."""
        text = str(error)
        status = _status(error)
        code = _tag(text, "Code")
        bucket = self._location.bucket
        place = f"key {key!r} in bucket {bucket!r} at {self._endpoint}"
        if status is None and "Could not parse path" not in text and "Encountered " not in text:
            raise Interruption(f"{place}: {_name_trouble(text)}")
        if status is None:
            return FetchError(
                contract.CHECKPOINT_INVALID,
                f"{place}: a key is not a safe relative path ('..', '.' or an empty part)",
                "Rename or remove that object.",
            )
        if is_retryable_status(status) or code == "SlowDown":
            raise Interruption(f"{place}: answered {status} {code}".rstrip())
        if status == 404:
            return self._not_found(place, code)
        if status in (401, 403):
            return FetchError(
                contract.ACCESS_DENIED,
                f"{place}: answered {status} {code} {'to a signed' if self._signs else 'to an unsigned'} request",
                f"Check {ACCESS_KEY} and {SECRET_KEY} in the credentials Secret, and that the key's policy allows "
                "s3:GetObject" + (" and s3:ListBucket." if self._location.is_folder else "."),
            )
        message = _tag(text, "Message")
        return FetchError(
            contract.FETCH_FAILED,
            f"{place}: answered {status} {code} {message[:200]}".rstrip(),
            f"Check {REGION} and AWS_ENDPOINT_URL." if status in (301, 307, 400) else "Check the URI and the server.",
        )

    def _not_found(self, place: str, code: str) -> FetchError:
        known = {"NoSuchBucket": "the bucket does not exist", "NoSuchKey": "the bucket exists, the key does not"}
        return FetchError(
            contract.CHECKPOINT_NOT_FOUND,
            f"{place}: {known.get(code, 'not found')}",
            "Check the bucket's name and AWS_ENDPOINT_URL."
            if code == "NoSuchBucket"
            else "Check the key in the URI; a folder's URI ends with a slash.",
        )


def _store_config(credentials: Credentials, endpoint: str, region: str) -> S3Config:
    config: S3Config = {
        "endpoint": endpoint,
        "region": region,
        "virtual_hosted_style_request": False,
        "skip_signature": not (credentials.access_key_id or credentials.has_workload_identity),
    }
    # obstore puts this variable before `endpoint`
    config["aws_endpoint_url_s3"] = endpoint
    if credentials.access_key_id:
        config["access_key_id"] = credentials.access_key_id
        config["secret_access_key"] = credentials.secret_access_key
        config["session_token"] = credentials.session_token
    return config


def _client_options(credentials: Credentials, endpoint: str, timeouts: Timeouts) -> ClientConfig:
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=timeouts.connect_s),
        "read_timeout": timedelta(seconds=timeouts.stall_s),
        "timeout": TRANSFER_LIMIT,
        "user_agent": "torchmodel-fetch",
    }
    if credentials.ca_certificates:
        options["root_certificate"] = credentials.ca_certificates
    return options


def _status(error: Exception) -> int | None:
    """The HTTP status in an obstore error; only its first line is ours to read, the rest is a debug dump."""
    match = re.search(r"status code: (\d{3})", str(error).partition("\nDebug source")[0])
    if match:
        return int(match.group(1))
    return 404 if isinstance(error, FileNotFoundError) else None


def _tag(text: str, name: str) -> str:
    match = re.search(rf"<{name}>([^<]{{1,400}})</{name}>", text)
    return re.sub(r"[^\x20-\x7e]", "?", match.group(1)) if match else ""


def _name_trouble(text: str) -> str:
    """Name a connection error without obstore's debug dump."""
    match = re.search(r"kind: (Timeout|Connect|Interrupted|Request|Decode|Unknown)\b", text)
    names = {"Timeout": "no byte came in time", "Connect": "no connection"}
    return names.get(match.group(1), "the connection ended before the object did") if match else "the connection failed"


def _strong_etag(etag: str | None) -> str | None:
    return etag if etag and not etag.startswith("W/") else None
