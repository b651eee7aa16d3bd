"""One model's state and the one way through for every inference request, whatever carried it.

Reading path: `Server.infer`, one line a step: `codec.decode_request`, the task's `prepare`, `batcher.submit`, the task's
`finish`, `codec.encode_response`. `passage` takes the same steps for small calls, whose cost is counted in microseconds.
`ports` bring the calls, `__main__` drives loading, serving and draining. Knows neither torch nor Kubernetes nor an HTTP
library.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

from torchmodel_runtime import codec, errors
from torchmodel_runtime.batcher import Batcher
from torchmodel_runtime.bytebudget import ByteBudget, Hold
from torchmodel_runtime.codec import Decoded, Plan
from torchmodel_runtime.config import ServerConfig
from torchmodel_runtime.deadlines import choose_timeout_s
from torchmodel_runtime.decodepool import DecodePool
from torchmodel_runtime.errors import RequestError, quote
from torchmodel_runtime.exchange import Answer, Call, Dialect
from torchmodel_runtime.metrics import Metrics
from torchmodel_runtime.startup import LoadedModel
from torchmodel_runtime.tasks import Task, Work
from torchmodel_runtime.telemetry import CLIENT_LEFT, REQUEST_ID, Observation, Telemetry
from torchmodel_runtime.tensors import held_bytes
from torchmodel_runtime.workers import Worker, give_way

logger = logging.getLogger(__name__)

VERSION = "1"
"""A process serves one version; it answers to `versions/1` for clients that insist on one."""

CANCEL_SLACK_S = 0.01
"""A client that leaves so shortly before its deadline has waited for all of it: gRPC's transport counts by a clock of its own."""


class Server:
    """Loading, serving, draining; and inference."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self.metrics = Metrics(config.name)
        self.telemetry = Telemetry(config, self.metrics)
        self.model: LoadedModel | None = None
        """None until loaded, warm and proven."""
        self.ready = False
        self._batcher: Batcher | None = None
        self.plan: Plan  # from `serve` on, as the two before
        self._decoder: DecodePool  # from `serve` on
        self._media_threads: ThreadPoolExecutor
        self.budget = ByteBudget(0)
        self._born_s = monotonic()
        self._in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._admitting = True
        self.is_broken = False
        """The model has failed for good."""
        self.turned = asyncio.Event()
        """Set when `ready` changes; there is a new one then."""
        self.metrics.watch("torchmodel_ready", lambda: self.ready)
        self.metrics.watch("torchmodel_in_flight_requests", lambda: self._in_flight)
        self.metrics.watch("torchmodel_in_flight_bytes", lambda: self.budget.held_bytes)
        self.metrics.watch("torchmodel_in_flight_bytes_limit", lambda: self.budget.max_bytes)

    def serve(
        self, model: LoadedModel, workers: Sequence[Worker], on_broken: Callable[[], None] = lambda: None
    ) -> None:
        """The model is loaded, warm and proven: take requests.

        on_broken: told when it has failed for good. By then nothing is admitted any more, and only a new process helps.
        """

        def give_up() -> None:
            if not self.is_broken:
                self.is_broken, self._admitting = True, False
                self._turn(ready=False)
                on_broken()

        self._batcher = Batcher(
            list(zip(model.runners, workers, strict=True)), self.config.serving, model.rules, self.metrics, give_up
        )
        task = model.task
        self.plan = codec.make_plan(self.config.name, VERSION, task.signature, task.media, self.config.serving)
        self._decoder = DecodePool(self.plan)
        # as many as the quota has CPUs: more would take memory and turns from each other
        self._media_threads = ThreadPoolExecutor(model.media_threads, "media", give_way)
        self.budget.max_bytes = model.max_bytes_in_flight
        self.model = model
        self._turn(ready=True)
        self.metrics.tell_loaded(model.report)

    async def withdraw(self) -> None:
        """Not ready any more; serves on for drainDelaySeconds, so that nothing is refused while clients still come."""
        self._turn(ready=False)
        if self.model is not None and not self.is_broken:
            await asyncio.sleep(self.config.drain_delay_seconds)

    async def drain(self, closing: Awaitable[None] | None = None) -> bool:
        """Refuse what comes, finish what was admitted; False when that took longer than allowed.

        closing: a port that refuses by itself, and ends when what it took is answered.
        """
        self._admitting = False
        if self._batcher is not None:
            self._batcher.hurry()
        try:
            async with asyncio.timeout(self.config.serving.drain_timeout_seconds):
                if closing is not None:
                    await closing
                await self._idle.wait()
        except TimeoutError:
            logger.error("draining timed out", extra={"fields": {"in_flight": self._in_flight}})
            return False
        finally:
            if self.model is not None:
                self._decoder.close()
                self._media_threads.shutdown(wait=False, cancel_futures=True)
            await self.telemetry.close()
        return True

    def _turn(self, *, ready: bool) -> None:
        self.ready = ready
        self.turned.set()
        self.turned = asyncio.Event()

    @property
    def is_leaving(self) -> bool:
        """True once draining began: connections should be closed after their answer."""
        return not self.ready and self.model is not None

    def admit(self, model: str, version: str | None) -> tuple[LoadedModel, Batcher]:
        """The model to ask; RequestError 404 for another's name or version, 503 while it loads, 429 while the queue is full."""
        self.check_name(model, version)
        if self.model is None or self._batcher is None:
            raise errors.unavailable(f"model {self.config.name!r} is still loading")
        self._batcher.check_room()
        return self.model, self._batcher

    def check_name(self, model: str, version: str | None) -> None:
        """RequestError 404 for another model's name or version."""
        if model != self.config.name:
            raise errors.not_found(f"no model {quote(model)} here; this server has {self.config.name!r}")
        if version is not None and version != VERSION:
            raise errors.not_found(f"model {model!r} has no version {quote(version)}; it has {VERSION!r}")

    def open_hold(self) -> Hold:
        """For the bytes of one request."""
        return Hold(self.budget, self.config.serving.queue.max_bytes)

    async def answer(
        self,
        dialect: Dialect,
        headers: Mapping[str, str],
        call: Call | Coroutine[Any, Any, Call],
        hold: Hold | None = None,
    ) -> Answer:
        """Answer by `infer`, errors included; in flight meanwhile, counted by its outcome afterwards.

        A call that is still being read may be given as a coroutine, so that draining waits for it; hold is then what it asks for
        the bytes that come. It is released here.
        """
        seen = self.telemetry.begin(dialect, headers)
        hold = hold or self.open_hold()
        self.enter()
        try:
            if dialect != "grpc":  # whose port refuses by itself, and answers what it took before
                self.check_open(call)
            if not isinstance(call, Call):
                call = await call
                seen.read_s = monotonic()
            answer = await self.infer(call, seen, hold)
        except asyncio.CancelledError:
            self.leave(seen, None)
            raise
        except Exception as error:  # noqa: BLE001 - `explain` tells them apart
            answer = self.explain(seen, error)
        finally:
            hold.release()
        self.leave(seen, answer)
        return answer

    def check_open(self, call: Call | Coroutine[Any, Any, Call]) -> None:
        """RequestError 503 once the server drains; a call that is still to be read is not read then."""
        if not self._admitting:
            if not isinstance(call, Call):
                call.close()
            raise errors.unavailable("the server is shutting down")

    def enter(self) -> None:
        """One more in flight, until `leave`."""
        self._in_flight += 1
        if self._in_flight == 1:
            self._idle.clear()

    def leave(self, seen: Observation, answer: Answer | None) -> None:
        """It was answered; or there is nobody to answer any more."""
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()
        if answer is None:
            self._end_abandoned(seen)
            return
        answer.headers[REQUEST_ID] = seen.request_id
        self.telemetry.end(seen, answer.status, len(answer.body))

    def explain(self, seen: Observation, error: Exception) -> Answer:
        """The answer to a request that failed; what is no RequestError is a defect of ours, and the log's alone."""
        if not isinstance(error, RequestError):
            logger.error(
                "a request failed inside the server",
                exc_info=error,
                extra={"fields": {"dialect": seen.dialect, **seen.identity()}},
            )
            error = errors.internal()
        seen.code = error.code
        return self.refuse(seen.dialect, error)

    def _end_abandoned(self, seen: Observation) -> None:
        """The client left; where its deadline had come, because of that."""
        status = CLIENT_LEFT
        if monotonic() > seen.deadline_s - CANCEL_SLACK_S:
            late = errors.timed_out(seen.deadline_s - seen.started_s)
            status, seen.code = late.status, late.code
            self.metrics.count_rejected(late.code)
        self.telemetry.end(seen, status, 0)

    async def infer(self, call: Call, seen: Observation, hold: Hold) -> Answer:
        """One request: decode, compute, encode. Its deadline began to run at seen.started_s."""
        model, batcher = self.admit(call.model, call.version)
        seen.request_bytes = len(call.body)
        hold.settle(seen.request_bytes)
        timeout_s: float = self.config.serving.request_timeout_seconds
        if call.timeout_s is not None:
            timeout_s = min(timeout_s, call.timeout_s)
        timeout_s = choose_timeout_s(call.headers, {}, timeout_s)
        seen.deadline_s = seen.started_s + timeout_s
        try:
            async with asyncio.timeout(seen.deadline_s - monotonic()) as limit:
                decoded = await self._decode(call)
                seen.decoded_s = monotonic()
                if decoded.parameters:
                    timeout_s = choose_timeout_s({}, decoded.parameters, timeout_s)
                    seen.deadline_s = seen.started_s + timeout_s
                    limit.reschedule(asyncio.get_running_loop().time() + seen.deadline_s - seen.decoded_s)
                work = await self._prepare(model.task, decoded, hold)
        except TimeoutError:
            raise errors.timed_out(timeout_s) from None
        seen.prepared_s = monotonic()
        results = await batcher.submit(work.parts, seen.deadline_s, seen)
        outputs = model.task.finish(work, results)
        seen.finished_s = monotonic()
        return codec.encode_response(call, decoded, self.plan, model.task, outputs)

    async def _decode(self, call: Call) -> Decoded:
        """The call's inputs, which are then all that is left of its body; what takes long leaves the event loop."""
        if codec.is_heavy(call, self.plan):
            decoded = await self._decoder.decode(call)
        else:
            decoded = codec.decode_request(call, self.plan)
        call.body = b""
        return decoded

    async def _prepare(self, task: Task, decoded: Decoded, hold: Hold) -> Work:
        """The parts for the module, which are then all that is left of the inputs; decoding media leaves the event loop."""
        inputs, decoded.inputs = decoded.inputs, []
        max_rows = self.config.serving.queue.max_rows
        if len(inputs[0]) > max_rows:  # before each of them becomes something larger
            raise errors.too_many_rows(len(inputs[0]), max_rows)
        hold.settle(held_bytes(inputs))
        if task.is_heavy(inputs):
            loop = asyncio.get_running_loop()
            work = await loop.run_in_executor(self._media_threads, task.prepare, inputs, hold)
        else:
            work = task.prepare(inputs, hold)
        hold.settle(sum(held_bytes(part) for part in work.parts))
        return work

    def refuse(self, dialect: Dialect, error: RequestError) -> Answer:
        """An error in the dialect's own form; the only place where errors become answers."""
        if error.retry_after_s is None and error.status in (429, 503):
            error.retry_after_s = self._retry_after_s()
        self.metrics.count_rejected(error.code)
        return codec.encode_error(dialect, error)

    def _retry_after_s(self) -> int | None:
        """When to come back, for errors that do not say it themselves; None where nobody knows.

        A start takes as long again as it took so far: without a model that is the best guess, and clients that go by it ask a
        number of times that grows with the logarithm. Who leaves has a successor at once, or later, or none.
        """
        if self.is_leaving:
            return None
        if self._batcher is not None:
            return self._batcher.retry_after_s()
        taken_s = monotonic() - self._born_s
        return max(1, math.ceil(min(taken_s, self.config.serving.startup_timeout_seconds - taken_s)))
