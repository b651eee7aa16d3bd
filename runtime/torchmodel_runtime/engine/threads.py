"""torch's threads, shared out between the workers of one process.

`startup` wraps each engine in a `SharingRunner`, which the workers call in their threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torchmodel_runtime.engine.devices import configure_thread
from torchmodel_runtime.engine.forward import Engine
from torchmodel_runtime.tensors import Arrays


class ThreadShare:
    """Counts the workers at work: one that is alone takes all threads, nobody else would use them."""

    def __init__(self, threads: int, solo_threads: int) -> None:
        self._threads = threads
        self._solo_threads = solo_threads
        self._lock = threading.Lock()
        self._working = 0
        self._own = threading.local()

    def begin(self) -> None:
        """A batch starts in this thread."""
        with self._lock:
            self._working += 1
            alone = self._working == 1
        wanted = self._solo_threads if alone else self._threads
        if getattr(self._own, "threads", 0) != wanted:
            configure_thread(wanted)
            self._own.threads = wanted

    def end(self) -> None:
        """It is done."""
        with self._lock:
            self._working -= 1


class SharingRunner:
    """An engine that asks for its threads before each batch."""

    def __init__(self, engine: Engine, share: ThreadShare) -> None:
        self._engine = engine
        self._share = share

    @property
    def max_rows(self) -> int:
        """The engine's own."""
        return self._engine.max_rows

    @property
    def max_bytes(self) -> int:
        """The engine's own."""
        return self._engine.max_bytes

    @property
    def is_broken(self) -> bool:
        """The engine's own."""
        return self._engine.is_broken

    def run(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        """The engine's answers."""
        self._share.begin()
        try:
            return self._engine.run(requests)
        finally:
            self._share.end()


def share_threads(engines: Sequence[Engine], threads: int, solo_threads: int) -> list[SharingRunner]:
    """One runner for each engine."""
    share = ThreadShare(threads, solo_threads)
    return [SharingRunner(engine, share) for engine in engines]
