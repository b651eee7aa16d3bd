"""Sources http:// and https:// - one file by aiohttp, with our own hand on redirects, ranges and encodings.

Redirects are followed here and not by aiohttp: the Authorization header must not reach another origin, and https must
not fall back to http. A range is only asked for with If-Range (RFC 9110 13.1.5) and a strong ETag, so a file that has
changed comes back whole, and a 206 that is not exactly what was asked for is never appended.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

import torchmodel_runtime.config as contract
from torchmodel_runtime.fetch.credentials import Credentials
from torchmodel_runtime.fetch.errors import FetchError, Interruption
from torchmodel_runtime.fetch.locations import WebLocation, redact_uri
from torchmodel_runtime.fetch.retries import is_retryable_status, parse_retry_after_s
from torchmodel_runtime.fetch.sources import Item, Listing, Stream, Timeouts

MAX_REDIRECTS = 5
READ_BUFFER_BYTES = 1 << 18
"""aiohttp's default of 64 KiB halves the throughput on loopback (measured); what is buffered is lost with a cut."""
USER_AGENT = "torchmodel-fetch"


class WebSource:
    """One URL."""

    def __init__(self, location: WebLocation, credentials: Credentials, timeouts: Timeouts) -> None:
        if location.authorization and credentials.authorization:
            raise FetchError(
                contract.CONFIG_INVALID,
                "checkpoint.uri holds a user and the credentials hold `authorization`: only one can be sent",
                "Remove user and password from the URI.",
            )
        self._location = location
        self._authorization = location.authorization or credentials.authorization
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, connect=timeouts.connect_s, sock_connect=timeouts.connect_s, sock_read=timeouts.stall_s
            ),
            connector=aiohttp.TCPConnector(ssl=_ssl_context(credentials.ca_certificates)),
            headers={"Accept-Encoding": "identity", "Accept": "*/*", "User-Agent": USER_AGENT},
            read_bufsize=READ_BUFFER_BYTES,
        )

    async def list_items(self) -> Listing:
        """The one file; its size is known when it is opened."""
        return Listing((Item(self._location.name),), is_folder=False)

    @asynccontextmanager
    async def open(self, item: Item, offset: int, etag: str | None) -> AsyncIterator[Stream]:
        """Ask for the file from `offset` on; what comes may start at 0."""
        del item
        wants_range = offset > 0 and etag is not None
        response = await self._ask({"Range": f"bytes={offset}-", "If-Range": etag or ""} if wants_range else {})
        try:
            is_part = wants_range and _is_continuation(response, offset, etag)
            if wants_range and not is_part and response.status in (206, 416):
                # 416: the file is shorter now; a wrong 206: this server cannot be trusted with ranges
                response.close()
                response = await self._ask({})
            if response.status != 200 and not is_part:
                raise self._refusal(response)
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() not in ("", "identity"):
                raise FetchError(
                    contract.FETCH_FAILED,
                    f"{self._shown} came with Content-Encoding {encoding[:40]!r} though none was accepted",
                    "Serve the file as it is; a digest is of the bytes on the wire.",
                )
            start, size = _part_place(response) if is_part else (0, response.content_length)
            yield Stream(start, size, _strong_etag(response), self._read_chunks(response))
        finally:
            response.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    @property
    def _shown(self) -> str:
        return redact_uri(self._location.url)

    async def _ask(self, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Send the request and follow redirects; the answer may still be a refusal."""
        url = _exact_url(self._location.url)
        home = url.origin()
        for _ in range(MAX_REDIRECTS + 1):
            own = {"Authorization": self._authorization} if self._authorization and url.origin() == home else {}
            try:
                response = await self._session.get(url, headers={**headers, **own}, allow_redirects=False)
            except aiohttp.ClientConnectorCertificateError:
                raise FetchError(
                    contract.FETCH_FAILED,
                    f"the certificate of {url.host} is not trusted",
                    "Put the authority's certificate into the credentials Secret as ca.crt.",
                ) from None
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                raise Interruption(f"{self._shown}: {_name_trouble(error)}") from None
            if response.status not in (301, 302, 303, 307, 308):
                return response
            target = response.headers.get("Location", "")
            response.close()
            url = self._next_url(url, target)
        raise FetchError(
            contract.FETCH_FAILED,
            f"{self._shown} redirects more than {MAX_REDIRECTS} times",
            "Name the file's own URL.",
        )

    def _next_url(self, url: URL, target: str) -> URL:
        try:
            following = url.join(_exact_url(target)).with_fragment(None)
        except ValueError:
            following = URL()
        if not target or following.scheme not in ("http", "https") or not following.host or following.user:
            raise FetchError(
                contract.FETCH_FAILED, f"{self._shown} redirects to no http(s) address", "Name the file's own URL."
            )
        if url.scheme == "https" and following.scheme == "http":
            raise FetchError(
                contract.FETCH_FAILED,
                f"{self._shown} redirects from https to http ({following.host})",
                "Name the file's own URL; use http:// yourself if that is meant.",
            )
        return following

    def _refusal(self, response: aiohttp.ClientResponse) -> FetchError:
        """The error for a status that is not success; raises Interruption for those that may pass."""
        status = response.status
        if is_retryable_status(status):
            retry_after_s = parse_retry_after_s(response.headers.get("Retry-After"))
            raise Interruption(f"{self._shown} answered {status}", retry_after_s=retry_after_s)
        if status in (401, 403):
            sent = "with the given authorization" if self._authorization else "without authorization"
            return FetchError(
                contract.ACCESS_DENIED,
                f"{self._shown} answered {status} {sent}",
                "Give a Secret with the key `authorization` (the value of the HTTP header) in "
                "spec.checkpoint.credentials, or check that it is still valid.",
            )
        if status in (404, 410):
            return FetchError(
                contract.CHECKPOINT_NOT_FOUND, f"{self._shown} answered {status}: no such file", "Check the URI."
            )
        return FetchError(
            contract.FETCH_FAILED, f"{self._shown} answered {status}, wanted 200", "Check the URI and the server."
        )

    async def _read_chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in response.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            raise Interruption(f"{self._shown}: {_name_trouble(error)}") from None


def _is_continuation(response: aiohttp.ClientResponse, offset: int, etag: str | None) -> bool:
    """True when a 206 carries on exactly where and with what was asked for."""
    if response.status != 206:
        return False
    start, size = _part_place(response)
    return start == offset and size is not None and response.headers.get("ETag", etag) == etag


def _part_place(response: aiohttp.ClientResponse) -> tuple[int, int | None]:
    """Start and total size from Content-Range; start -1 when it cannot be read or stops before the end."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.headers.get("Content-Range", "").strip())
    if not match:
        return -1, None
    start, last, size = (int(number) for number in match.groups())
    return (start, size) if last == size - 1 else (-1, None)


def _strong_etag(response: aiohttp.ClientResponse) -> str | None:
    etag = response.headers.get("ETag", "")
    return etag if re.fullmatch(r'"[\x21\x23-\x7e]{1,256}"', etag) else None


def _exact_url(text: str) -> URL:
    """A URL byte for byte as given (signatures cover the quoting), quoted only if it is not ASCII yet."""
    return URL(text, encoded=all("!" <= letter <= "~" for letter in text))


def _ssl_context(ca_certificates: str) -> ssl.SSLContext | bool:
    if not ca_certificates:
        return True
    try:
        return ssl.create_default_context(cadata=ca_certificates)
    except (ssl.SSLError, ValueError):
        raise FetchError(
            contract.CREDENTIALS_INVALID,
            "credentials: ca.crt holds no readable PEM certificate",
            "Give one or more PEM certificates.",
        ) from None


def _name_trouble(error: BaseException) -> str:
    """Name a foreign exception without its text, which may hold the URL."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name cannot be resolved"
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return "the connection timed out"
    if isinstance(error, asyncio.TimeoutError):
        return "no byte came in time"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection ended before the file did"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # asyncio puts addresses into its own text
    return type(error).__name__
