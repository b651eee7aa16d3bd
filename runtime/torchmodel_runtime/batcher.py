"""Between the event loop and the engine's workers: admit, queue, batch, hand over, give each request its rows back.

`server` calls `Batcher.put`, or awaits `submit`, which is the same with a future; `admission` says who may wait,
`batching.BatchWindow` what runs next and when; a `Worker` calls the engine. The ticket of a request travels with its entries
and calls back. Everything here runs on the event loop, so there are no locks; only `_run` runs in the worker. Knows nothing of
torch or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torchmodel_runtime import errors
from torchmodel_runtime.admission import Admission, Load
from torchmodel_runtime.batching import BatchWindow
from torchmodel_runtime.batchrules import BatchRules
from torchmodel_runtime.config import Serving
from torchmodel_runtime.costmodel import CostModel
from torchmodel_runtime.metrics import Metrics
from torchmodel_runtime.telemetry import Observation
from torchmodel_runtime.tensors import Arrays
from torchmodel_runtime.tickets import OnDone, Piece, Ticket, answer_piece, cut, measure
from torchmodel_runtime.workers import Worker

logger = logging.getLogger(__name__)

TIMER_SLACK_S = 0.002
"""uvloop counts milliseconds: a timer without it may ring before the deadline and find nothing to do."""


class Runner(Protocol):
    """The seam to the engine: called in its own worker's thread only."""

    @property
    def max_rows(self) -> int:
        """Most rows in one call of the module now: `BatchRules.max_rows`, or less once the device ran out of memory."""
        ...

    @property
    def max_bytes(self) -> int:
        """Most bytes of inputs in one call now, `BatchRules.max_batch_bytes` or less; 0: no bound."""
        ...

    @property
    def is_broken(self) -> bool:
        """True once it can answer nothing any more."""
        ...

    def run(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        """Answer each request, in order; an exception stands for the request that the model failed on."""
        ...


class _Batch:
    """Pieces on their way through a worker."""

    __slots__ = ("finish_s", "loaded", "pieces")

    def __init__(self, pieces: list[Piece], finish_s: float, loaded: bool) -> None:
        self.pieces = pieces
        self.finish_s = finish_s
        """Predicted."""
        self.loaded = loaded


class _Seat:
    """A worker with its runner, and what it holds."""

    __slots__ = ("batches", "runner", "worker")

    def __init__(self, runner: Runner, worker: Worker) -> None:
        self.runner = runner
        self.worker = worker
        self.batches: list[_Batch] = []


class Batcher:
    """Admits requests, forms batches the moment a worker is free, gives each request its rows back."""

    def __init__(
        self,
        seats: Sequence[tuple[Runner, Worker]],
        serving: Serving,
        rules: BatchRules,
        metrics: Metrics,
        on_broken: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """on_broken: told, perhaps more than once, that a runner can answer nothing any more. clock: seconds of the clock that
        deadlines are told by; the event loop's timers must go by the same."""
        self._on_broken = on_broken
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._seats = [_Seat(runner, worker) for runner, worker in seats]
        self._rules = rules
        self._max_rows = serving.queue.max_rows
        self._metrics = metrics
        self._cost = CostModel(rules.max_rows)
        self._admission = Admission(serving.queue, self._cost, len(self._seats))
        self._window: BatchWindow[Piece] = BatchWindow(
            rules, serving.batching.max_delay_milliseconds / 1000, self._cost
        )
        self._soon: asyncio.Handle | None = None
        self._delay: asyncio.TimerHandle | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_s = math.inf
        self._hurry = False
        self._dispatching = False
        metrics.watch_queue(lambda: self._window.queued_rows)
        metrics.watch("torchmodel_batch_rows_limit", lambda: min(seat.runner.max_rows for seat in self._seats))
        metrics.watch("torchmodel_batch_bytes_limit", lambda: self._max_bytes() or math.inf)

    async def submit(self, parts: Sequence[Arrays], deadline_s: float, seen: Observation | None = None) -> list[Arrays]:
        """`put`, awaited. A caller that is cancelled takes its waiting pieces with it."""
        future: asyncio.Future[list[Arrays]] = self._loop.create_future()

        def on_done(results: list[Arrays], error: Exception | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(results)

        ticket = self.put(parts, deadline_s, seen, on_done)
        try:
            return await future
        except asyncio.CancelledError:
            self.withdraw(ticket)
            raise

    def put(self, parts: Sequence[Arrays], deadline_s: float, seen: Observation | None, on_done: OnDone) -> Ticket:
        """Queue one request: on_done gets the module's outputs for each part of it, all or nothing, in a later turn of the loop.

        Raises RequestError, and then calls nobody: 413 when the request can never fit the queue, 429 when it does not fit now or
        would not be ready in time, 504 past the deadline (monotonic). on_done is told 504 when the deadline passes meanwhile,
        500 when the model failed on it; it must not raise.
        """
        now_s = self._clock()
        timeout_s = deadline_s - now_s
        if timeout_s <= 0:
            raise errors.timed_out(deadline_s - (now_s if seen is None else seen.started_s))
        counts, pieces = cut(parts, self._rules, self._most_rows)
        rows = self._admit(pieces, now_s, timeout_s)
        if seen is not None:
            seen.rows = rows
        ticket = Ticket(pieces, counts, seen)
        ticket.on_done = on_done
        for index, piece in enumerate(pieces):
            piece.ticket = ticket
            piece.index = index
            piece.arrived_s = now_s
            piece.deadline_s = deadline_s
        if len(pieces) == 1:
            self._window.add(pieces[0])
        else:
            self._window.add_pieces(pieces)
        if deadline_s < self._alarm_s:
            self._set_alarm(deadline_s, now_s)
        if self._soon is None:
            self._schedule()
        return ticket

    def check_room(self) -> None:
        """RequestError 429 while not one row more could wait: to be asked before a body is read and decoded."""
        if self._window.queued_rows >= self._max_rows:
            raise errors.queue_full(self._window.queued_rows, self._max_rows, self.retry_after_s())

    def withdraw(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: what is not computed yet never will be, and nobody is told."""
        if ticket.is_open:
            self._window.discard(ticket.pieces)
            ticket.close()

    def hurry(self) -> None:
        """From now on no batch waits for company: the server drains."""
        self._hurry = True
        self._schedule()

    def retry_after_s(self) -> int:
        """Whole seconds until what waits now has left the queue, as far as is known; one at least."""
        return self._admission.retry_after_s(self._load(self._clock()))

    # --- in ---

    def _most_rows(self, row_bytes: int) -> int:
        """Most rows of that size in a batch on every seat, now; one at least."""
        most = min(self._rules.max_rows, *[seat.runner.max_rows for seat in self._seats])
        max_bytes = self._max_bytes()
        if max_bytes and row_bytes:
            most = min(most, max_bytes // row_bytes)
        return max(1, most)

    def _max_bytes(self) -> int:
        """Most bytes in a batch on every seat, now; 0: no bound."""
        return min(filter(None, [seat.runner.max_bytes for seat in self._seats]), default=0)

    def _admit(self, pieces: list[Piece], now_s: float, timeout_s: float) -> int:
        """Rows of the request, which may wait."""
        rows, size_bytes = pieces[0].rows, pieces[0].rows * pieces[0].row_bytes
        for piece in pieces[1:]:
            rows += piece.rows
            size_bytes += piece.rows * piece.row_bytes
        self._admission.check(rows, size_bytes, self._load(now_s), timeout_s)
        return rows

    def _load(self, now_s: float) -> Load:
        return Load(self._window.queued_rows, self._window.queued_bytes, self._running_s(now_s))

    def _running_s(self, now_s: float) -> float:
        """Predicted to be left of what runs."""
        running_s = 0.0
        for seat in self._seats:
            if seat.batches:
                running_s += max(0.0, seat.batches[-1].finish_s - now_s)
        return running_s

    # --- to the workers ---

    def _schedule(self) -> None:
        """Form a batch in the next turn of the loop, so that what arrives in this turn comes along."""
        if self._soon is None:
            self._soon = self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Give every worker that can take one a batch."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._delay is not None:
            self._delay.cancel()
            self._delay = None
        self._dispatching = True
        try:
            while len(self._window) and self._dispatch_one():
                pass
        finally:
            self._dispatching = False

    def _dispatch_one(self) -> bool:
        """One batch to the worker that holds the fewest; False when there is nothing more to do now."""
        seats = self._seats
        seat = seats[0] if len(seats) == 1 else min(seats, key=_held)
        held = len(seat.batches)
        if held >= self._rules.depth:
            return False
        now_s = self._clock()
        free = 1 if len(seats) == 1 else sum(not each.batches for each in seats)
        runner = seat.runner
        take = self._window.take(now_s, runner.max_rows, free, self._hurry, held > 0, runner.max_bytes)
        if take.expired:
            self._fail_expired(take.expired)
        if take.wait_s is not None:
            self._delay = self._loop.call_later(take.wait_s, self._dispatch)
        if not take.batch:
            return False
        self._hand_over(seat, take.batch, take.loaded, now_s)
        if len(seat.batches) > held:
            return True
        self._schedule()  # computed already, on the event loop itself: others have their turn before the next
        return False

    def _hand_over(self, seat: _Seat, pieces: list[Piece], loaded: bool, now_s: float) -> None:
        before_s = seat.batches[-1].finish_s if seat.batches else now_s
        rows, padded_bytes = measure(pieces)
        batch = _Batch(pieces, max(now_s, before_s) + self._cost.seconds(rows, padded_bytes), loaded)
        seat.batches.append(batch)
        observe = self._metrics.queue_wait_s.observe
        for piece in pieces:
            observe(now_s - piece.arrived_s)
            seen = piece.ticket.seen
            if seen is not None and not seen.batched_s:
                seen.batched_s = now_s
        runner = seat.runner
        seat.worker.start(
            lambda: _run(runner, pieces), lambda result, error: self._finish(seat, batch, result, error), padded_bytes
        )

    # --- out ---

    def _finish(self, seat: _Seat, batch: _Batch, result: Any, error: BaseException | None) -> None:
        """Hand the answers out; an error of the engine itself fails this batch and no other."""
        seat.batches.remove(batch)
        if not self._dispatching and len(self._window):
            self._dispatch()  # first, so that the worker does not wait for the answers to be written
        if error is not None:
            logger.error("the engine failed on a batch", exc_info=error)
            self._metrics.count_engine_error("batch")
            for piece in batch.pieces:
                self._fail(piece, errors.model_failed())
            return
        computed, answers, seconds = result
        if computed:
            self._learn(computed, answers, seconds, batch.loaded)
        for piece, answer in zip(computed, answers, strict=True):
            if isinstance(answer, Exception):
                self._metrics.count_engine_error("request")
                self._fail(piece, answer)
                if seat.runner.is_broken:
                    self._on_broken()
            else:
                answer_piece(piece, answer)

    def _learn(self, computed: list[Piece], answers: list[Arrays | Exception], seconds: float, loaded: bool) -> None:
        """Note down what the batch was and took, for the metrics, the requests' logs and the cost model."""
        rows, padded_bytes = measure(computed)
        self._metrics.batch_rows.observe(rows)
        self._metrics.compute_s.observe(seconds)
        useful_bytes = 0
        for piece in computed:
            useful_bytes += piece.rows * piece.row_bytes
            seen = piece.ticket.seen
            if seen is not None and not seen.batch_rows:
                seen.batch_seconds, seen.batch_rows = seconds, rows
        # what was computed again and again in ever smaller batches tells nothing of the next
        if not any(isinstance(answer, Exception) for answer in answers):
            self._cost.observe(rows, padded_bytes, useful_bytes, seconds, loaded)

    # --- deadlines ---

    def _set_alarm(self, deadline_s: float, now_s: float) -> None:
        """One timer for the earliest deadline of all that is not answered, or an earlier one."""
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_s = deadline_s
        self._alarm = self._loop.call_later(max(0.0, deadline_s - now_s) + TIMER_SLACK_S, self._ring)

    def _ring(self) -> None:
        now_s = self._clock()
        self._alarm = None
        self._alarm_s = math.inf
        self._fail_expired(self._window.expire(now_s))
        running = [
            piece for seat in self._seats for batch in seat.batches for piece in batch.pieces if piece.ticket.is_open
        ]
        self._fail_expired([piece for piece in running if piece.deadline_s <= now_s])
        next_s = min(
            self._window.earliest_deadline_s,
            min((piece.deadline_s for piece in running if piece.deadline_s > now_s), default=math.inf),
        )
        if next_s < math.inf:
            self._set_alarm(next_s, now_s)

    def _fail_expired(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            seen = piece.ticket.seen
            self._fail(
                piece, errors.timed_out(piece.deadline_s - (piece.arrived_s if seen is None else seen.started_s))
            )

    def _fail(self, piece: Piece, error: Exception) -> None:
        """The request fails as a whole: the rest of it leaves the queue."""
        ticket = piece.ticket
        if ticket.is_open:
            on_done = ticket.on_done
            self.withdraw(ticket)
            on_done([], error)


def _run(runner: Runner, pieces: list[Piece]) -> tuple[list[Piece], list[Arrays | Exception], float]:
    """In the worker: compute what somebody waits for still. The pieces computed, an answer for each, the seconds it took."""
    wanted = [piece for piece in pieces if piece.ticket.is_open]
    if not wanted:
        return [], [], 0.0
    started_s = time.perf_counter()
    answers = runner.run([piece.inputs for piece in wanted])
    return wanted, answers, time.perf_counter() - started_s


def _held(seat: _Seat) -> int:
    return len(seat.batches)
