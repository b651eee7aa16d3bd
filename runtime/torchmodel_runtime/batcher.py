"""Between the event loop and the engine's thread: queue, batch, hand over, split.

`server.infer` awaits `Batcher.submit`; `batching.BatchWindow` says what and when; a `Worker` calls the engine.
The future travels with its entry. Everything here runs on the event loop, so there are no locks. Knows nothing of
torch or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torchmodel_runtime import errors
from torchmodel_runtime.batching import BatchRules, BatchWindow, Entry
from torchmodel_runtime.config import Serving
from torchmodel_runtime.metrics import Metrics
from torchmodel_runtime.telemetry import Observation
from torchmodel_runtime.tensors import Arrays
from torchmodel_runtime.workers import Worker

logger = logging.getLogger(__name__)


class Runner(Protocol):
    """The seam to the engine: called in its own worker's thread only."""

    @property
    def max_rows(self) -> int:
        """Most rows in one call of the module now: `BatchRules.max_rows`, or less once the device ran out of memory."""
        ...

    def run(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        """Answer each request, in order; an exception stands for the request that the model failed on."""
        ...


@dataclass(slots=True)
class _Waiting:
    """An entry's payload: the arrays and the future that gets the answer."""

    inputs: Arrays
    future: asyncio.Future[Arrays]
    seen: Observation | None
    """Where it is written down when its batch began and what that was; of a request in several parts, the last one."""


def batch_key(inputs: Arrays) -> tuple[Any, ...]:
    """What must be equal for two requests to be concatenated: each input's tail shape and dtype."""
    return tuple((array.shape[1:], array.dtype.char) for array in inputs)


class Batcher:
    """Admits requests, forms batches the moment the worker is free, gives each request its rows back."""

    def __init__(
        self, seats: Sequence[tuple[Runner, Worker]], serving: Serving, rules: BatchRules, metrics: Metrics
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._free = list(seats)
        self._metrics = metrics
        self._max_queue_rows = serving.queue.max_rows
        self._window: BatchWindow[_Waiting] = BatchWindow(
            rules.max_rows, serving.batching.max_delay_milliseconds / 1000, serving.queue.max_rows
        )
        self._soon: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._hurry = False
        self._seconds_per_row = 0.0
        metrics.watch_queue(lambda: self._window.queued_rows)

    async def submit(self, parts: Sequence[Arrays], deadline_s: float, seen: Observation | None = None) -> list[Arrays]:
        """The module's outputs for each part of one request, all or nothing.

        Raises RequestError: 413 when the request can never fit the queue, 429 when it does not fit now, 504 past the
        deadline (monotonic), 500 when the model failed on it. A caller that is cancelled takes its waiting entries with it.
        """
        rows = sum(len(part[0]) for part in parts)
        if seen is not None:
            seen.rows = rows
        self._check_room(rows)
        now_s = time.monotonic()
        timeout_s = deadline_s - now_s
        entries = [self._enqueue(part, now_s, deadline_s, seen) for part in parts]
        timer = self._loop.call_later(timeout_s, self._expire, entries, timeout_s)
        self._schedule()
        try:
            if len(entries) == 1:
                return [await entries[0].payload.future]
            return list(await asyncio.gather(*(entry.payload.future for entry in entries)))
        finally:
            timer.cancel()
            for entry in entries:
                self._window.discard(entry)
                entry.payload.future.cancel()

    def hurry(self) -> None:
        """From now on no batch waits for company: the server drains."""
        self._hurry = True
        self._schedule()

    def _check_room(self, rows: int) -> None:
        if rows > self._max_queue_rows:
            message = (
                f"the request has {rows} rows, the queue takes at most {self._max_queue_rows} (serving.queue.maxRows)"
            )
            raise errors.too_large(message)
        if not self._window.has_room(rows):
            queued = self._window.queued_rows
            # the time the model needs for what waits, by the rows of its recent batches; whole seconds, as HTTP wants
            retry_after_s = min(60, max(1, math.ceil(queued * self._seconds_per_row)))
            raise errors.queue_full(queued, self._max_queue_rows, retry_after_s)

    def _enqueue(self, inputs: Arrays, now_s: float, deadline_s: float, seen: Observation | None) -> Entry[_Waiting]:
        waiting = _Waiting(inputs, self._loop.create_future(), seen)
        entry = Entry(waiting, len(inputs[0]), batch_key(inputs), now_s, deadline_s)
        self._window.add(entry)
        return entry

    def _expire(self, entries: list[Entry[_Waiting]], timeout_s: float) -> None:
        for entry in entries:
            self._window.discard(entry)
            if not entry.payload.future.done():
                entry.payload.future.set_exception(errors.timed_out(timeout_s))

    def _schedule(self) -> None:
        """Form a batch in the next turn of the loop, so that what arrives in this turn comes along."""
        if self._free and self._soon is None:
            self._soon = self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        for handle in (self._soon, self._timer):
            if handle is not None:
                handle.cancel()
        self._soon = self._timer = None
        if not self._free:
            return
        now_s = time.monotonic()
        take = self._window.take(now_s, self._hurry)
        for entry in take.expired:
            if not entry.payload.future.done():
                entry.payload.future.set_exception(errors.timed_out(now_s - entry.arrived_s))
        if take.wait_s is not None:
            self._timer = self._loop.call_later(take.wait_s, self._dispatch)
        elif take.batch:
            self._hand_over(take.batch, now_s)

    def _hand_over(self, batch: list[Entry[_Waiting]], now_s: float) -> None:
        seat = runner, worker = self._free.pop()
        inputs = [entry.payload.inputs for entry in batch]
        for entry in batch:
            self._metrics.queue_wait_s.observe(now_s - entry.arrived_s)
            if entry.payload.seen is not None:
                entry.payload.seen.batched_s = now_s
        worker.start(lambda: _timed_run(runner, inputs), lambda result, error: self._finish(seat, batch, result, error))
        if self._free and len(self._window):
            self._schedule()

    def _finish(
        self, seat: tuple[Runner, Worker], batch: list[Entry[_Waiting]], result: Any, error: BaseException | None
    ) -> None:
        """Hand the answers out; an error of the engine itself fails this batch and no other."""
        self._free.append(seat)
        if error is not None:
            logger.error("the engine failed on a batch", exc_info=error)
            self._metrics.count_engine_error("batch")
            answers: list[Arrays | Exception] = [errors.model_failed()] * len(batch)
        else:
            answers, seconds = result
            rows = sum(entry.rows for entry in batch)
            self._metrics.batch_rows.observe(rows)
            self._metrics.compute_s.observe(seconds)
            self._seconds_per_row += 0.2 * (seconds / rows - self._seconds_per_row)
            for entry in batch:
                if entry.payload.seen is not None:
                    entry.payload.seen.batch_seconds, entry.payload.seen.batch_rows = seconds, rows
        self._dispatch()
        for entry, answer in zip(batch, answers, strict=True):
            future = entry.payload.future
            if future.done():  # the client left
                continue
            if isinstance(answer, Exception):
                self._metrics.count_engine_error("request")
                future.set_exception(answer)
            else:
                future.set_result(answer)


def _timed_run(runner: Runner, inputs: list[Arrays]) -> tuple[list[Arrays | Exception], float]:
    started_s = time.monotonic()
    return runner.run(inputs), time.monotonic() - started_s
