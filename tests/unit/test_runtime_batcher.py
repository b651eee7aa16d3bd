"""The event-loop side of batching with an engine played by the test: it answers when it is told to."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from torchmodel_runtime.batcher import Batcher
from torchmodel_runtime.batchrules import BatchRules
from torchmodel_runtime.config import Batching, Queue, Serving
from torchmodel_runtime.errors import RequestError, model_failed
from torchmodel_runtime.metrics import Metrics, render
from torchmodel_runtime.tensors import Arrays
from torchmodel_runtime.workers import Job, OnDone


class PlayedWorker:
    """Keeps what was started until the test lets it finish."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, OnDone]] = []

    def start(self, job: Job, on_done: OnDone, size_bytes: int = 0) -> None:  # noqa: ARG002
        self.jobs.append((job, on_done))

    async def finish(self, error: BaseException | None = None) -> None:
        job, on_done = self.jobs.pop(0)
        on_done(None if error else job(), error)
        await settle()


class Doubler:
    """A module that doubles; a row of 666 is poison."""

    max_rows = 4
    max_bytes = 0
    is_broken = False

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def run(self, requests: Sequence[Arrays]) -> list[Arrays | Exception]:
        self.batches.append([len(request[0]) for request in requests])
        return [model_failed() if 666 in request[0] else [request[0] * 2] for request in requests]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def part(*values: float) -> Arrays:
    return [np.array(values)]


class Played:
    def __init__(
        self,
        max_rows: int = 100,
        max_batch_rows: int = 4,
        seats: int = 1,
        depth: int = 1,
        max_bytes: int = 1 << 28,
        sizes: tuple[int, ...] = (),
    ) -> None:
        self.workers, self.runner = [PlayedWorker() for _ in range(seats)], Doubler()
        self.worker = self.workers[0]
        self.told: list[str] = []
        self.metrics = Metrics("m")
        serving = Serving(queue=Queue(max_rows=max_rows, max_bytes=max_bytes))
        self.batcher = Batcher(
            [(self.runner, worker) for worker in self.workers],
            serving,
            BatchRules(max_batch_rows, sizes=sizes, depth=depth),
            self.metrics,
            on_broken=lambda: self.told.append("broken"),
        )

    def submit(self, *parts: Arrays, timeout_s: float = 60) -> asyncio.Task[list[Arrays]]:
        return asyncio.ensure_future(self.batcher.submit(parts, time.monotonic() + timeout_s))


async def test_one_request_goes_at_once_and_what_comes_meanwhile_goes_together() -> None:
    played = Played()
    first = played.submit(part(1))
    await settle()
    rest = [played.submit(part(value)) for value in (2, 3, 4)]
    await settle()
    assert len(played.worker.jobs) == 1
    await played.worker.finish()
    assert (await first)[0][0].tolist() == [2]
    await played.worker.finish()
    assert [(await task)[0][0].tolist() for task in rest] == [[4], [6], [8]]
    assert played.runner.batches == [[1], [1, 1, 1]]


async def test_requests_of_one_turn_of_the_loop_share_a_batch() -> None:
    played = Played()
    tasks = [played.submit(part(value)) for value in (1, 2)]
    await settle()
    await played.worker.finish()
    assert played.runner.batches == [[1, 1]]
    assert [(await task)[0][0].tolist() for task in tasks] == [[2], [4]]


async def test_a_failing_request_fails_alone() -> None:
    played = Played()
    good, poisoned = played.submit(part(1)), played.submit(part(666))
    await settle()
    await played.worker.finish()
    assert (await good)[0][0].tolist() == [2]
    with pytest.raises(RequestError, match="the model failed"):
        await poisoned


async def test_a_runner_that_is_broken_is_told_of_and_one_that_only_failed_is_not() -> None:
    played = Played()
    for is_broken in (False, True):
        played.runner.is_broken = is_broken
        poisoned = played.submit(part(666))
        await settle()
        await played.worker.finish()
        with pytest.raises(RequestError, match="the model failed"):
            await poisoned
        assert played.told == ["broken"] * is_broken


async def test_an_engine_error_fails_its_batch_and_the_next_is_served() -> None:
    played = Played()
    first = played.submit(part(1))
    await settle()
    second = played.submit(part(2))
    await settle()
    await played.worker.finish(RuntimeError("broken"))
    with pytest.raises(RequestError) as caught:
        await first
    assert caught.value.status == 500
    await played.worker.finish()
    assert (await second)[0][0].tolist() == [4]


async def test_a_full_queue_refuses_and_a_leaving_client_makes_room() -> None:
    played = Played(max_rows=2)
    running = played.submit(part(0))
    await settle()
    waiting = played.submit(part(1, 2))
    await settle()
    with pytest.raises(RequestError) as caught:
        await played.submit(part(3))
    assert (caught.value.status, caught.value.retry_after_s) == (429, 1)
    waiting.cancel()
    await settle()
    served = played.submit(part(3))
    await settle()
    await played.worker.finish()
    await played.worker.finish()
    assert (await served)[0][0].tolist() == [6]
    assert (await running)[0][0].tolist() == [0]
    assert played.runner.batches == [[1], [1]]


async def test_a_request_that_can_never_fit_gets_413() -> None:
    played = Played(max_rows=2)
    with pytest.raises(RequestError) as caught:
        await played.submit(part(1, 2, 3))
    assert caught.value.status == 413


async def test_a_request_of_several_parts_is_admitted_whole_or_not_at_all() -> None:
    played = Played(max_rows=3)
    running = played.submit(part(0))
    await settle()
    both = played.submit(part(1), [np.array([[1.0, 2.0]])])
    await settle()
    with pytest.raises(RequestError):
        await played.submit(part(2), part(3))
    for _ in range(3):
        await played.worker.finish()
    await running
    results = await both
    assert results[0][0].tolist() == [2]
    assert results[1][0].tolist() == [[2.0, 4.0]]


async def test_no_answer_in_time_gets_504_and_is_not_computed() -> None:
    played = Played()
    running = played.submit(part(0))
    await settle()
    with pytest.raises(RequestError) as caught:
        await played.submit(part(1), timeout_s=0.001)
    assert caught.value.status == 504
    await played.worker.finish()
    await running
    assert not played.worker.jobs


async def test_a_client_that_leaves_during_its_batch_harms_nobody() -> None:
    played = Played()
    leaving, staying = played.submit(part(1)), played.submit(part(2))
    await settle()
    leaving.cancel()
    await settle()
    await played.worker.finish()
    assert (await staying)[0][0].tolist() == [4]


async def test_a_client_that_left_before_its_prepared_batch_began_is_not_computed() -> None:
    played = Played(depth=2, max_batch_rows=2)
    running = [played.submit(part(value)) for value in (1, 2)]
    await settle()
    prepared = [played.submit(part(value)) for value in (3, 4)]
    await settle()
    assert len(played.worker.jobs) == 2, "a full batch goes ahead to the busy worker"
    prepared[0].cancel()
    await settle()
    await played.worker.finish()
    await played.worker.finish()
    assert played.runner.batches == [[1, 1], [1]]
    assert [(await task)[0][0].tolist() for task in [*running, prepared[1]]] == [[2], [4], [8]]


async def test_a_batch_that_may_still_grow_does_not_go_ahead() -> None:
    played = Played(depth=2)
    running = played.submit(part(1))
    await settle()
    waiting = played.submit(part(2))
    await settle()
    assert len(played.worker.jobs) == 1
    await played.worker.finish()
    await played.worker.finish()
    await running
    await waiting


async def test_free_workers_share_what_came_together() -> None:
    played = Played(seats=2)
    tasks = [played.submit(part(value)) for value in (1, 2, 3, 4)]
    await settle()
    for worker in played.workers:
        await worker.finish()
    assert played.runner.batches == [[1, 1], [1, 1]]
    assert [(await task)[0][0].tolist() for task in tasks] == [[2], [4], [6], [8]]


async def test_a_request_larger_than_a_batch_is_split_and_joined() -> None:
    played = Played()
    huge = played.submit(part(*range(10)))
    await settle()
    small = played.submit(part(50))
    await settle()
    for _ in range(3):
        await played.worker.finish()
    assert played.runner.batches == [[4], [4], [1, 2]]
    assert (await huge)[0][0].tolist() == [value * 2 for value in range(10)]
    assert (await small)[0][0].tolist() == [100]


async def test_a_request_is_cut_into_proven_sizes() -> None:
    played = Played(max_batch_rows=4, sizes=(1, 2, 4))
    odd = played.submit(part(*range(7)), part(*range(3)))
    for _ in range(5):
        await settle()
        if played.worker.jobs:
            await played.worker.finish()
    assert played.runner.batches[0] == [4]
    assert {sum(rows) for rows in played.runner.batches} <= {1, 2, 4}
    results = await odd
    assert [result[0].tolist() for result in results] == [[value * 2 for value in range(rows)] for rows in (7, 3)]


async def test_a_large_request_with_a_poisonous_row_fails_whole_and_its_rest_is_not_computed() -> None:
    played = Played()
    huge = played.submit(part(666, *range(11)))
    await settle()
    await played.worker.finish()
    with pytest.raises(RequestError, match="the model failed"):
        await huge
    await settle()
    if played.worker.jobs:  # the piece that was handed over in the same turn
        await played.worker.finish()
    assert not played.worker.jobs
    assert played.runner.batches in ([[4]], [[4], [4]])


async def test_a_large_request_whose_client_leaves_makes_room() -> None:
    played = Played(max_rows=12)
    huge = played.submit(part(*range(12)))
    await settle()
    huge.cancel()
    await settle()
    served = played.submit(part(*range(10)))
    for _ in range(4):
        await settle()
        if played.worker.jobs:
            await played.worker.finish()
    assert (await served)[0][0].tolist() == [value * 2 for value in range(10)]


async def test_the_queue_is_bounded_in_bytes() -> None:
    played = Played(max_rows=10**6, max_bytes=1 << 20)
    running = played.submit(part(0))
    await settle()
    rows = [np.zeros((1, 100_000))]  # 800 kB
    waiting = played.submit(rows)
    await settle()
    with pytest.raises(RequestError, match="bytes wait already") as caught:
        await played.submit(rows)
    assert caught.value.status == 429
    with pytest.raises(RequestError, match=r"serving\.queue\.maxBytes") as caught:
        await played.submit([np.zeros((2, 100_000))])
    assert caught.value.status == 413
    await played.worker.finish()
    await played.worker.finish()
    await running
    await waiting


async def test_a_bound_that_memory_lowered_is_kept_and_told() -> None:
    played = Played()
    assert 'torchmodel_batch_bytes_limit{model="m"} +Inf' in render([played.metrics.snapshot()]).decode()
    played.runner.max_bytes = 16  # two rows of one float64
    waiting = [played.submit(part(value)) for value in range(3)]
    large = played.submit(part(*range(4)))
    await settle()
    while played.worker.jobs:
        await played.worker.finish()
    assert played.runner.batches == [[1, 1], [1], [2], [2]]
    await asyncio.gather(*waiting, large)
    text = render([played.metrics.snapshot()]).decode()
    assert 'torchmodel_batch_bytes_limit{model="m"} 16.0' in text
    assert 'torchmodel_batch_rows_limit{model="m"} 4.0' in text


async def test_past_its_deadline_nothing_is_queued() -> None:
    played = Played()
    with pytest.raises(RequestError) as caught:
        await played.submit(part(1), timeout_s=-1)
    assert caught.value.status == 504
    await settle()
    assert not played.worker.jobs


async def test_no_answer_in_time_gets_504_while_the_batch_still_runs() -> None:
    played = Played()
    patient, hasty = played.submit(part(1)), played.submit(part(2), timeout_s=0.01)
    await settle()
    with pytest.raises(RequestError) as caught:
        await hasty
    assert caught.value.status == 504
    job, on_done = played.worker.jobs.pop()
    on_done(job(), None)
    assert (await patient)[0][0].tolist() == [2]


class InlinePlayed:
    """A worker that has computed before `start` returns."""

    def __init__(self) -> None:
        self.turns: list[int] = []
        self.turn = 0

    def start(self, job: Job, on_done: OnDone, size_bytes: int = 0) -> None:  # noqa: ARG002
        self.turns.append(self.turn)
        on_done(job(), None)


async def test_a_worker_on_the_event_loop_leaves_others_their_turn_between_batches() -> None:
    worker, runner = InlinePlayed(), Doubler()
    batcher = Batcher([(runner, worker)], Serving(), BatchRules(1), Metrics("m"))
    tasks = [asyncio.ensure_future(batcher.submit([part(value)], time.monotonic() + 60)) for value in range(300)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        worker.turn += 1
    assert [task.result()[0][0].tolist() for task in tasks] == [[value * 2] for value in range(300)]
    assert len(set(worker.turns)) == 300


# --- the delay, in played time ---


class PlayedLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still while there is work and jumps to the next timer when there is none."""

    def __init__(self) -> None:
        super().__init__(_NeverWaits(self))
        self.now_s = 100.0

    def time(self) -> float:
        return self.now_s


class _NeverWaits(selectors.SelectSelector):
    def __init__(self, loop: PlayedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise AssertionError("everything waits, and no timer is set")
        self._loop.now_s += timeout
        return super().select(0)


DELAY_S, COMPUTE_S = 0.2, 0.05


class PlayedDelay:
    """A batcher with a delay, whose module takes COMPUTE_S a batch, in played time."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.runner = Doubler()
        self.began_s: list[float] = []
        batching = Batching(max_delay_milliseconds=int(DELAY_S * 1000))
        self.batcher = Batcher(
            [(self.runner, self)],
            Serving(batching=batching),
            BatchRules(4),
            Metrics("m"),
            clock=self.loop.time,
        )

    def start(self, job: Job, on_done: OnDone, size_bytes: int = 0) -> None:  # noqa: ARG002
        self.began_s.append(round(self.loop.time() - 100, 6))
        self.loop.call_later(COMPUTE_S, lambda: on_done(job(), None))

    def submit(self, *values: float, at_s: float = 0.0, shape: tuple[int, ...] = ()) -> asyncio.Task[float]:
        """A request at that time; when it was answered, in seconds from the beginning."""

        async def ask() -> float:
            await asyncio.sleep(at_s)
            row = [np.broadcast_to(np.array(values).reshape(-1, *[1 for _ in shape]), (len(values), *shape))]
            answer = await self.batcher.submit([row], self.loop.time() + 60)
            np.testing.assert_array_equal(answer[0][0], row[0] * 2)
            return round(self.loop.time() - 100, 6)

        return asyncio.ensure_future(ask())


def play(story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with contextlib.closing(PlayedLoop()) as loop:
        loop.run_until_complete(story())


def test_an_idle_server_answers_at_once_in_spite_of_a_delay() -> None:
    async def story() -> None:
        played = PlayedDelay()
        assert [await played.submit(1), await played.submit(2)] == [0.05, 0.1]

    play(story)


def test_company_is_waited_for_until_the_oldest_has_waited_for_the_delay() -> None:
    async def story() -> None:
        played = PlayedDelay()
        times = [
            played.submit(1),
            played.submit(2, at_s=0.01),
            played.submit(3, at_s=0.02),
            played.submit(4, at_s=0.15),
        ]
        assert await asyncio.gather(*times) == [0.05, 0.26, 0.26, 0.26]
        assert played.began_s == [0.0, 0.21]
        assert played.runner.batches == [[1], [1, 1, 1]]

    play(story)


def test_a_batch_that_is_full_before_the_delay_has_passed_goes_at_once_and_its_timer_is_gone() -> None:
    async def story() -> None:
        played = PlayedDelay()
        times = [played.submit(value, at_s=value / 100) for value in range(1, 6)]
        assert await asyncio.gather(*times) == [0.06, 0.11, 0.11, 0.11, 0.11]
        assert played.runner.batches == [[1], [1, 1, 1, 1]]
        await asyncio.sleep(1)
        assert len(played.began_s) == 2

    play(story)


def test_while_one_shape_waits_full_batches_of_another_are_computed() -> None:
    async def story() -> None:
        played = PlayedDelay()
        first = played.submit(0)
        waiting = [played.submit(value, at_s=0.01) for value in range(2)]
        others = [played.submit(value, at_s=0.02, shape=(3,)) for value in range(8)]
        assert await first == 0.05
        assert sorted(await asyncio.gather(*others)) == [0.1] * 4 + [0.15] * 4
        assert await asyncio.gather(*waiting) == [0.26] * 2
        assert played.began_s == [0.0, 0.05, 0.1, 0.21]

    play(story)


def test_a_draining_server_does_not_wait_for_company() -> None:
    async def story() -> None:
        played = PlayedDelay()
        times = [played.submit(1), played.submit(2, at_s=0.01), played.submit(3, at_s=0.02)]
        played.loop.call_later(0.1, played.batcher.hurry)
        late = played.submit(4, at_s=0.11)
        assert await asyncio.gather(*times, late) == [0.05, 0.15, 0.15, 0.2]

    play(story)


def test_a_deadline_within_the_delay_is_kept() -> None:
    async def story() -> None:
        played = PlayedDelay()
        played.submit(1)
        await asyncio.sleep(0.01)
        company = played.submit(2)
        with pytest.raises(RequestError) as caught:
            await played.batcher.submit([part(3)], played.loop.time() + 0.1)
        assert caught.value.status == 504
        assert played.loop.time() - 100 == pytest.approx(0.11, abs=0.01)
        assert await company == 0.26
        assert played.runner.batches == [[1], [1]]

    play(story)


async def test_what_cannot_be_ready_in_time_is_refused_at_once_and_admitted_when_it_was_told_to_come() -> None:
    played = Played(max_batch_rows=1)
    for _ in range(10):
        task = played.submit(part(1))
        await settle()
        job, on_done = played.worker.jobs.pop()
        computed, answers, _ = job()
        on_done((computed, answers, 1.0), None)  # one second each
        await task
    waiting = [played.submit(part(value)) for value in range(8)]
    await settle()
    with pytest.raises(RequestError) as caught:
        await played.submit(part(9), timeout_s=5)
    assert (caught.value.status, caught.value.code, caught.value.retry_after_s) == (429, "TOO_BUSY", 5)
    for _ in range(5):
        await played.worker.finish()
    later = played.submit(part(9), timeout_s=5)
    await settle()
    while played.worker.jobs:
        await played.worker.finish()
    assert (await later)[0][0].tolist() == [18]
    await asyncio.gather(*waiting)
