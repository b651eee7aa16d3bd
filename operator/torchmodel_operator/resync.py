"""Lists of everything that is watched: at the start, so that work begins only with a full ledger, and again to find ghosts.

kopf lists a kind again after its watch broke, yet never tells what is gone since; when all is gone it tells nothing at all.
So the lists themselves are noted, by the session that `__main__` gives to kopf.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from torchmodel_operator import names
from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import MODELS, WATCHED, KubeApi, Resource, list_all
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.observed import Key, observe

RELIST_SETTLE_S = 10.0
"""A relist is over when this long nothing more of it came."""
FULL_SWEEP_S = 1800.0
TICK_S = 2.0
START_TIMEOUT_S = 60.0
"""How long the API server may be away at the start before the process gives up and is restarted."""
START_RETRY_S = 2.0

log = logging.getLogger(__name__)


class Resync:
    """Keeps the ledger free of ghosts."""

    def __init__(
        self,
        kube: KubeApi,
        ledger: Ledger,
        namespaces: Sequence[str],
        touch: Callable[[Key], None],
        clock: Callable[[], float],
    ) -> None:
        """`touch` is called with each key whose records changed."""
        self._kube, self._ledger, self._touch, self._clock = kube, ledger, touch, clock
        self._namespaces: Sequence[str | None] = namespaces or [None]
        self._relisted: dict[str, float] = {}
        self._swept_at = clock()

    def note_relist(self, plural: str) -> None:
        """kopf asks for a list, or a further page of it."""
        self._relisted[plural] = self._clock()

    async def fill(self) -> None:
        """Read everything once. Raises KubeError saying what is missing: the CRD, a right, the API server."""
        deadline = self._clock() + START_TIMEOUT_S
        for resource in WATCHED:
            while True:
                try:
                    await self.sweep(resource)
                    break
                except KubeError as error:
                    if not error.is_retryable or self._clock() > deadline:
                        raise _explained(error, resource) from error
                    log.warning("waiting for the API server", extra={"error": error.message})
                await asyncio.sleep(START_RETRY_S)
        self._swept_at = self._clock()

    async def run(self) -> None:
        """Sweep each kind after its relists, and all of them now and then. Never returns."""
        while True:
            await asyncio.sleep(TICK_S)
            for resource in self.due_resources():
                self._relisted.pop(resource.plural, None)
                try:
                    await self.sweep(resource)
                except KubeError as error:
                    log.warning("sweep put off", extra={"kind": resource.kind, "error": error.message})
                    self.note_relist(resource.plural)

    def due_resources(self) -> list[Resource]:
        """The kinds to sweep now."""
        now = self._clock()
        if now - self._swept_at >= FULL_SWEEP_S:
            self._swept_at = now
            return list(WATCHED)
        due = {plural for plural, at in self._relisted.items() if now - at >= RELIST_SETTLE_S}
        return [resource for resource in WATCHED if resource.plural in due]

    async def sweep(self, resource: Resource) -> None:
        """List one kind, keep what is new, forget what is gone."""
        seen: set[tuple[str, str]] = set()
        versions = []
        labels = "" if resource is MODELS else names.CHILD_SELECTOR
        changed: set[Key | None] = set()
        for namespace in self._namespaces:
            items, version = await list_all(self._kube, resource, namespace, labels)
            versions.append(version)
            for item in items:
                record = observe(item)
                seen.add((record.identity.namespace, record.identity.name))
                changed.add(self._ledger.put(record))
        ghosts = self._ledger.sweep(resource.kind, seen, min(versions))
        if ghosts:
            log.info("forgot what is gone", extra={"kind": resource.kind, "models": sorted(map("/".join, ghosts))})
        changed |= ghosts
        for key in changed:
            if key is not None:
                self._touch(key)


def _explained(error: KubeError, resource: Resource) -> KubeError:
    steps = {
        404: f"install the CRD first: kubectl apply --server-side -f crds/{resource.plural}.yaml",
        401: "the operator's token is not accepted",
        403: "give the operator's ServiceAccount the chart's role: get, list, watch",
    }
    step = steps.get(error.status, "see that the API server can be reached")
    return KubeError(f"{resource.plural} cannot be listed: {error.message} ({step})", error.status)
