"""What a replica says of itself: GET /v2/models/{name} of one ready pod → ModelReport. Called by `reconcile`.

The report can only add to a status, so nothing here fails: a pod that cannot be asked (a network policy, a pod that just
went) gives None, and is asked again later. Reports are kept by pod uid; a pod never changes what it has loaded.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import aiohttp
import msgspec
from torchmodel_runtime.config import HTTP_PORT, ModelReport

from torchmodel_operator.observed import PodFacts

TIMEOUT_S = 2.0
FIRST_RETRY_S = 5.0
MAX_RETRY_S = 300.0
"""A pod that cannot be asked is asked again after twice as long each time: it may be a network policy, for ever."""
MAX_REPORT_BYTES = 1 << 20
MAX_KEPT = 20_000
"""Reports kept; beyond that the oldest are read again. Two for each of more models than one operator serves."""

log = logging.getLogger(__name__)


class _Metadata(msgspec.Struct):
    """Answer of GET /v2/models/{name}, as far as it is used here."""

    parameters: dict[str, Any]


class Reading(NamedTuple):
    """The outcome of asking: a report, or when to ask again."""

    report: ModelReport | None
    retry_s: float | None = None


class _Refusal(NamedTuple):
    """A pod that could not be asked."""

    ask_again_at: float
    retry_s: float


class Reports(Protocol):
    """Reads reports; `reconcile` is given one."""

    async def read(self, model: str, pods: Sequence[PodFacts]) -> Reading:
        """Ask the chosen pod. Never raises."""
        ...


def choose_pod(pods: Sequence[PodFacts]) -> PodFacts | None:
    """The ready pod that has been there longest: the same one after every restart of the operator."""
    ready = [pod for pod in pods if pod.is_ready and pod.ip and not pod.is_deleting]
    return min(ready, key=lambda pod: (pod.created_s, pod.identity.name), default=None)


def parse_report(data: bytes) -> ModelReport:
    """Read the answer; parameters that this version does not know are left out, for images with a newer runtime.

    Raises msgspec.DecodeError when what is needed is not there.
    """
    parameters = msgspec.json.decode(data, type=_Metadata).parameters
    known = {field.encode_name for field in msgspec.structs.fields(ModelReport)}
    return msgspec.convert({name: value for name, value in parameters.items() if name in known}, ModelReport)


async def _read_capped(content: aiohttp.StreamReader) -> bytes:
    data = b""
    async for chunk in content.iter_chunked(1 << 16):
        data += chunk
        if len(data) > MAX_REPORT_BYTES:
            raise ValueError(f"more than {MAX_REPORT_BYTES} bytes")
    return data


class HttpReports:
    """Reports over HTTP, straight from pod addresses."""

    def __init__(self, session: aiohttp.ClientSession, clock: Callable[[], float], port: int = HTTP_PORT) -> None:
        self._session, self._clock, self._port = session, clock, port
        self._kept: dict[str, ModelReport] = {}
        self._failed: dict[str, _Refusal] = {}

    async def read(self, model: str, pods: Sequence[PodFacts]) -> Reading:
        pod = choose_pod(pods)
        if pod is None:
            return Reading(None)
        uid = pod.identity.uid
        if uid in self._kept:
            return Reading(self._kept[uid])
        refusal = self._failed.get(uid)
        if refusal is not None and self._clock() < refusal.ask_again_at:
            return Reading(None, refusal.ask_again_at - self._clock())
        report = await self._fetch(model, pod)
        if report is None:
            retry_s = min(MAX_RETRY_S, 2 * refusal.retry_s) if refusal else FIRST_RETRY_S
            self._failed[uid] = _Refusal(self._clock() + retry_s, retry_s)
            _trim(self._failed)
            return Reading(None, retry_s)
        self._failed.pop(uid, None)
        self._kept[uid] = report
        _trim(self._kept)
        return Reading(report)

    async def _fetch(self, model: str, pod: PodFacts) -> ModelReport | None:
        host = f"[{pod.ip}]" if ":" in pod.ip else pod.ip
        url = f"http://{host}:{self._port}/v2/models/{model}"
        try:
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
                if response.status != 200:
                    raise ValueError(f"status {response.status}")
                return parse_report(await _read_capped(response.content))
        except (aiohttp.ClientError, asyncio.TimeoutError, TimeoutError, OSError, ValueError) as error:
            log.info("report not read", extra={"url": url, "error": str(error) or type(error).__name__})
            return None


def _trim(kept: dict[str, Any]) -> None:
    while len(kept) > MAX_KEPT:
        del kept[next(iter(kept))]
