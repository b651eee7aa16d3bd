"""Leadership by a Lease: one operator replica writes, the others only watch. Run by `__main__`.

Theory. A holder renews the Lease every RETRY_S. Another replica takes it when the Lease did not change for the duration it
states, measured by the observer's own monotonic clock from the moment it saw the last change, so that clocks never need
to agree. A holder that could not renew for RENEW_DEADLINE_S gives up leading *before* anybody may take over, because the
deadline is shorter than the duration. Writes carry the resourceVersion that was read, so of two takers one gets a 409.
`judge_lease` decides from facts and time; `Elector` carries it out. Source of the scheme: client-go, tools/leaderelection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import LEASES, KubeApi
from torchmodel_operator.timestamps import format_micro_time

DURATION_S = 12
"""Of client-go's 15 s; a replica killed hard is replaced within this, one RETRY_S and a call."""
RENEW_DEADLINE_S = 8.0
RETRY_S = 2.0
CALL_TIMEOUT_S = 4.0

log = logging.getLogger(__name__)


class Observation(NamedTuple):
    """A Lease as read, and when (monotonic) this state of it was first seen."""

    holder: str
    renew_time: str
    version: str
    duration_s: float
    transitions: int
    acquire_time: str
    seen_at: float


class Move(Enum):
    """What to do with the Lease."""

    CREATE = "create"
    RENEW = "renew"
    TAKE = "take"
    WAIT = "wait"


def observe_lease(lease: dict[str, Any], previous: Observation | None, now: float) -> Observation:
    """Read a Lease; `seen_at` stays while holder and renewTime stay."""
    spec = lease.get("spec", {})
    holder, renew_time = spec.get("holderIdentity") or "", spec.get("renewTime") or ""
    is_unchanged = previous is not None and (previous.holder, previous.renew_time) == (holder, renew_time)
    return Observation(
        holder=holder,
        renew_time=renew_time,
        version=lease["metadata"].get("resourceVersion", ""),
        duration_s=float(spec.get("leaseDurationSeconds") or DURATION_S),
        transitions=spec.get("leaseTransitions") or 0,
        acquire_time=spec.get("acquireTime") or "",
        seen_at=previous.seen_at if previous is not None and is_unchanged else now,
    )


def judge_lease(observation: Observation | None, identity: str, now: float) -> Move:
    """Decide what `identity` should do."""
    if observation is None:
        return Move.CREATE
    if observation.holder == identity:
        return Move.RENEW
    if not observation.holder or now - observation.seen_at > observation.duration_s:
        return Move.TAKE
    return Move.WAIT


class Elector:
    """Holds or awaits the Lease `name` in `namespace` for `identity`."""

    def __init__(
        self,
        kube: KubeApi,
        namespace: str,
        name: str,
        identity: str,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` (monotonic) decides; `wall_clock` (seconds since 1970) is only written, for people and as a sign of life."""
        self._kube, self._namespace, self._name = kube, namespace, name
        self._identity, self._clock, self._wall_clock = identity, clock, wall_clock
        self._observation: Observation | None = None
        self._renewed_at: float | None = None

    @property
    def is_leading(self) -> bool:
        """True from winning the Lease until it was lost or released."""
        return self._renewed_at is not None

    async def run(self, leading: asyncio.Event) -> None:
        """Wait for the Lease, set `leading`, keep the Lease. Returns when it was lost: end the process then."""
        while True:
            if await self.attempt():
                break
            await asyncio.sleep(RETRY_S)
        log.info("leading", extra={"identity": self._identity})
        leading.set()
        while not self.is_lost():
            await asyncio.sleep(min(RETRY_S, self.seconds_left()))
            await self.attempt(max(0.0, self.seconds_left()))
        leading.clear()
        self._renewed_at = None
        log.error("the lease was lost", extra={"identity": self._identity})

    async def attempt(self, timeout_s: float = CALL_TIMEOUT_S) -> bool:
        """One round: read, decide, write. True when the Lease is held now; any error counts as a round that failed."""
        try:
            return await asyncio.wait_for(self._round(), min(timeout_s, CALL_TIMEOUT_S))
        except (KubeError, asyncio.TimeoutError, TimeoutError) as error:
            log.warning("lease: %s", str(error) or "no answer in time")
            return False

    def seconds_left(self) -> float:
        """How long this replica may lead without another renewal; 0 or less when somebody else may lead soon."""
        return -1.0 if self._renewed_at is None else self._renewed_at + RENEW_DEADLINE_S - self._clock()

    def is_lost(self) -> bool:
        """True when the last renewal is too long ago to be sure that nobody else leads."""
        return self.seconds_left() <= 0

    async def release(self) -> None:
        """Give the Lease up, so that another replica takes it at once. Errors are logged: it runs out by itself."""
        if self._renewed_at is None or self._observation is None:
            return
        self._renewed_at = None
        try:
            await asyncio.wait_for(self._write("", self._observation.transitions), CALL_TIMEOUT_S)
        except (KubeError, asyncio.TimeoutError, TimeoutError) as error:
            log.warning("lease: not released: %s", str(error) or "no answer in time")

    async def _round(self) -> bool:
        began = self._clock()
        lease = await self._kube.get(LEASES, self._namespace, self._name)
        self._observation = observe_lease(lease, self._observation, self._clock()) if lease else None
        move = judge_lease(self._observation, self._identity, self._clock())
        if move is Move.WAIT:
            self._renewed_at = None
            return False
        transitions = self._observation.transitions + (move is Move.TAKE) if self._observation else 0
        written = await self._write(self._identity, transitions)
        self._observation = observe_lease(written, self._observation, self._clock())
        self._renewed_at = began
        return True

    async def _write(self, holder: str, transitions: int) -> dict[str, Any]:
        before = self._observation
        now = format_micro_time(self._wall_clock())
        lease: dict[str, Any] = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": before.acquire_time
                if before and before.holder == holder and before.acquire_time
                else now,
                "renewTime": now,
                "leaseTransitions": transitions,
            },
        }
        if before is None:
            return await self._kube.create(LEASES, lease)
        metadata = {**lease["metadata"], "resourceVersion": before.version}
        return await self._kube.replace(LEASES, {**lease, "metadata": metadata})
