"""Lists of everything that is watched: at the start, so that work begins only with a full ledger, and again to find ghosts.

kopf lists a kind again after its watch broke, yet never tells what is gone since. Run by `__main__`; `handlers` notes each
relist here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from torchmodel_operator import names
from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import BY_KIND, MODELS, WATCHED, KubeApi, Resource, list_all
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.observed import Key, observe

RELIST_SETTLE_S = 10.0
"""A relist is over when this long nothing more of it came."""
FULL_SWEEP_S = 1800.0
TICK_S = 2.0
START_TIMEOUT_S = 60.0
"""How long the API server may be away at the start before the process gives up and is restarted."""
START_RETRY_S = 2.0

CHILD_SELECTOR = f"{names.LABEL_MANAGED_BY}={names.OPERATOR}"
"""Only these children and pods are listed and watched."""

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

    def note_relist(self, kind: str) -> None:
        """An object came from a list instead of a watch: a relist of its kind is under way."""
        self._relisted[kind] = self._clock()

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
            for kind in self.due_kinds():
                self._relisted.pop(kind, None)
                try:
                    await self.sweep(BY_KIND[kind])
                except KubeError as error:
                    log.warning("sweep put off", extra={"kind": kind, "error": error.message})
                    self.note_relist(kind)

    def due_kinds(self) -> list[str]:
        """The kinds to sweep now."""
        now = self._clock()
        if now - self._swept_at >= FULL_SWEEP_S:
            self._swept_at = now
            return list(BY_KIND)
        return [kind for kind, at in self._relisted.items() if now - at >= RELIST_SETTLE_S]

    async def sweep(self, resource: Resource) -> None:
        """List one kind, keep what is new, forget what is gone."""
        seen: set[tuple[str, str]] = set()
        versions = []
        labels = "" if resource is MODELS else CHILD_SELECTOR
        changed: set[Key | None] = set()
        for namespace in self._namespaces:
            items, version = await list_all(self._kube, resource, namespace, labels)
            versions.append(version)
            for item in items:
                record = observe(item)
                seen.add((record.identity.namespace, record.identity.name))
                changed.add(self._ledger.put(record))
        changed |= self._ledger.sweep(resource.kind, seen, min(versions))
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
