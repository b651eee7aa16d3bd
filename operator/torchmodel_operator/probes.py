"""/healthz, /readyz and /metrics of the operator, on a port of their own. Started by `__main__` before anything else.

Alive: every watched kind had a list or watch request lately (kopf may live on while one of its watches is dead).
Ready: the ledger is filled and every watch has begun; a standby is ready too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from aiohttp import web

STREAM_SILENCE_S = 450.0
"""A watch is renewed by its server timeout of 240 s, or its silence of 70 s; then come up to 54 s of kopf's retries."""


@dataclass
class Vitals:
    """What the probes judge and the metrics show."""

    clock: Callable[[], float]
    kinds: Sequence[str]
    """Plurals of the watched kinds."""
    is_filled: bool = False
    stream_at: dict[str, float] = field(init=False)
    """When each plural had its last list or watch request (monotonic)."""
    watching: set[str] = field(default_factory=set)
    """Plurals whose watch has begun."""
    reconciles: dict[str, int] = field(default_factory=dict)
    """Rounds by outcome."""

    def __post_init__(self) -> None:
        """A watch that never begins counts as silent from the start."""
        self.stream_at = {kind: self.clock() for kind in self.kinds}

    def note_request(self, plural: str, is_watch: bool) -> None:
        """kopf sends a list or watch request."""
        self.stream_at[plural] = self.clock()
        if is_watch:
            self.watching.add(plural)

    def note_round(self, outcome: str) -> None:
        """A reconcile ended."""
        self.reconciles[outcome] = self.reconciles.get(outcome, 0) + 1

    def silent_kinds(self) -> list[str]:
        """Plurals whose watch seems dead."""
        now = self.clock()
        return [kind for kind in self.kinds if now - self.stream_at[kind] > STREAM_SILENCE_S]

    def missing_kinds(self) -> list[str]:
        """Plurals that are not watched yet."""
        return [kind for kind in self.kinds if kind not in self.watching]


def make_app(vitals: Vitals, measure: Callable[[], Mapping[str, float]]) -> web.Application:
    """The probes' application; `measure` gives the metrics by name with labels."""

    async def healthz(_: web.Request) -> web.Response:
        silent = vitals.silent_kinds()
        return (
            web.Response(status=503, text=f"no watch of {', '.join(silent)}\n") if silent else web.Response(text="ok\n")
        )

    async def readyz(_: web.Request) -> web.Response:
        missing = vitals.missing_kinds() if vitals.is_filled else ["anything"]
        return (
            web.Response(status=503, text=f"not watching {', '.join(missing)}\n")
            if missing
            else web.Response(text="ok\n")
        )

    async def metrics(_: web.Request) -> web.Response:
        lines = [f"torchmodel_operator_{name} {value}\n" for name, value in measure().items()]
        return web.Response(text="".join(lines), content_type="text/plain", charset="utf-8")

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)])
    return app
