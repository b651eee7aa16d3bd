"""The event-loop side of batching with an engine played by the test: it answers when it is told to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from torchmodel_runtime.batcher import Batcher
from torchmodel_runtime.batching import BatchRules
from torchmodel_runtime.config import Queue, Serving
from torchmodel_runtime.errors import RequestError, model_failed
from torchmodel_runtime.metrics import Metrics
from torchmodel_runtime.tensors import Arrays


class PlayedWorker:
    """Keeps what was started until the test lets it finish."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]]] = []

    def start(self, job: Callable[[], Any], on_done: Callable[[Any, BaseException | None], None]) -> None:
        self.jobs.append((job, on_done))

    async def finish(self, error: BaseException | None = None) -> None:
        job, on_done = self.jobs.pop(0)
        on_done(None if error else job(), error)
        await settle()


class Doubler:
    """A module that doubles; a row of 666 is poison."""

    max_rows = 4

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
    def __init__(self, max_rows: int = 100, max_batch_rows: int = 4) -> None:
        self.worker, self.runner = PlayedWorker(), Doubler()
        serving = Serving(queue=Queue(max_rows=max_rows))
        self.batcher = Batcher([(self.runner, self.worker)], serving, BatchRules(max_batch_rows), Metrics("m"))  # type: ignore[list-item]

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
