"""Where batches are computed: a thread of its own, or, for models quicker than a change of threads, the event loop.

`__main__` makes one worker for each runner of the model; `batcher` calls `start`. Knows nothing of torch or HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

logger = logging.getLogger(__name__)

Job = Callable[[], Any]
OnDone = Callable[[Any, BaseException | None], None]

OVERRUN_S = 0.005
"""A batch that holds the event loop for longer delays every other connection noticeably: half a TCP delayed-ack, ten times
what such a model took at warm-up."""
MAX_OVERRUNS = 5.0
FORGIVEN = 0.05
"""Of an overrun, by each batch that kept the time: a busy machine makes one batch in twenty late, and that is no reason."""
QUICK_S = 0.001
"""A batch of a size that is new here may be computed on the event loop if it took no longer in the thread, as at warm-up
(`parallelism.INLINE_BATCH_S`)."""


NICENESS = 5
"""What a computing thread gives way by, on Linux (setpriority(2); torch's own threads inherit it). Where all CPUs compute, the
event loop would wait milliseconds for one of them, and every worker that is done with a batch for the event loop."""


def give_way() -> None:
    """The calling thread, which computes or decodes, lets the event loop go before it."""
    with contextlib.suppress(OSError):
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, os.getpriority(os.PRIO_PROCESS, me) + NICENESS)


class Worker(Protocol):
    """Does one thing after the other."""

    def start(self, job: Job, on_done: OnDone, size_bytes: int = 0) -> None:
        """Run job; on_done gets its result or its exception, on the event loop, perhaps before this returns.

        size_bytes: of its inputs, padding included.
        """
        ...


class ThreadWorker:
    """One daemon thread that does one thing after the other: load first, then batches.

    torch keeps its thread pools and its denormal setting per calling thread, so everything of one runner happens in one.
    A daemon, because a model that hangs must not keep the process from ending.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Job, OnDone]] = SimpleQueue()
        self.add_thread()

    def add_thread(self) -> None:
        """One more for the same jobs: where a GPU computes, the next batch is prepared while one runs (`BatchRules.depth`)."""
        threading.Thread(target=self._work, name="engine", daemon=True).start()

    def start(self, job: Job, on_done: OnDone, size_bytes: int = 0) -> None:  # noqa: ARG002 - part of the protocol
        """Run job in the thread; on_done is called in a later turn of the event loop."""
        self._jobs.put((job, on_done))

    async def call(self, job: Job) -> Any:
        """Run job in the thread and wait for it."""
        future: asyncio.Future[Any] = self._loop.create_future()

        def on_done(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        self.start(job, on_done)
        return await future

    def _work(self) -> None:
        give_way()
        while True:
            job, on_done = self._jobs.get()
            result, error = None, None
            try:
                result = job()
            except BaseException as caught:  # noqa: BLE001 - SystemExit in a model's code must not end the thread in silence
                error = caught
            try:
                self._loop.call_soon_threadsafe(on_done, result, error)
            except RuntimeError:  # the loop is closed: nobody waits for an answer any more
                return
            del job, on_done, result, error  # nothing of a batch lives on while the thread waits


class InlineWorker:
    """Computes on the event loop itself, as long as that is quick.

    Handing a batch to a thread and back costs some 50 µs and a fight for the interpreter lock: more than a small model takes.
    Whether a batch is quick is known for sizes up to those that were: at warm-up, and later in the thread, where larger ones
    go first. A model that turns out slower all the same moves to the thread for good, so that it cannot hold up the port. An
    overrun counts by the CPU time it took, since only the module's own shows there, and not a machine that stood still.
    """

    def __init__(
        self,
        thread: Worker,
        quick_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """quick_bytes: of the inputs of the largest batch at warm-up."""
        self._thread = thread
        self._quick_bytes = quick_bytes
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._overruns = 0.0

    def start(self, job: Job, on_done: OnDone, size_bytes: int = 0) -> None:
        """Run job now, and on_done has been called when this returns; or in the thread where that may take long."""
        if size_bytes > self._quick_bytes or self._overruns >= MAX_OVERRUNS:
            self._start_in_thread(job, on_done, size_bytes)
            return
        started_s, cpu_s = self._clock(), self._cpu_clock()
        result: Any = None
        error: BaseException | None = None
        try:
            result = job()
        except BaseException as caught:  # noqa: BLE001 - SystemExit in a model's code must not end the event loop
            error = caught
        if self._clock() - started_s > OVERRUN_S:
            self._overruns += max(1.0, (self._cpu_clock() - cpu_s) / OVERRUN_S)
            if self._overruns >= MAX_OVERRUNS:
                logger.warning("batches take longer than at warm-up: computing in a thread from now on")
        elif self._overruns:
            self._overruns = max(0.0, self._overruns - FORGIVEN)
        on_done(result, error)

    def _start_in_thread(self, job: Job, on_done: OnDone, size_bytes: int) -> None:
        """And see whether the next of this size may stay here."""

        def timed() -> Any:
            started_s, cpu_s = self._clock(), self._cpu_clock()
            result = job()
            # it may have waited for the interpreter, which is not its fault; but not for anything that takes really long
            return result, self._cpu_clock() - cpu_s <= QUICK_S and self._clock() - started_s <= 2 * OVERRUN_S

        def learn(result: Any, error: BaseException | None) -> None:
            answer = None
            if error is None:
                answer, is_quick = result
                if is_quick:
                    self._quick_bytes = max(self._quick_bytes, size_bytes)
            on_done(answer, error)

        self._thread.start(timed, learn)
