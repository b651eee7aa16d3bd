"""What is computed on the event loop, and what moves to the thread. Time is played."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from torchmodel_runtime.workers import InlineWorker, Job, OnDone, ThreadWorker

WARM_UP_BYTES = 1000


class Played:
    """An inline worker, the thread behind it, and the clocks of both: a batch takes what the test says."""

    def __init__(self) -> None:
        self.now_s = self.cpu_s = 0.0
        self.in_thread = 0
        self.worker = InlineWorker(self, WARM_UP_BYTES, lambda: self.now_s, lambda: self.cpu_s)

    def start(self, job: Job, on_done: OnDone, size_bytes: int = 0) -> None:  # noqa: ARG002
        """The thread's."""
        self.in_thread += 1
        try:
            result = job()
        except BaseException as error:  # noqa: BLE001 - as the thread does
            on_done(None, error)
        else:
            on_done(result, None)

    def compute(self, size_bytes: int = WARM_UP_BYTES, wall_s: float = 0.0001, cpu_s: float | None = None) -> bool:
        """One batch; True when it was computed on the event loop."""

        def job() -> str:
            self.now_s += wall_s
            self.cpu_s += wall_s if cpu_s is None else cpu_s
            return "answer"

        before, answers = self.in_thread, list[tuple[Any, BaseException | None]]()
        self.worker.start(job, lambda *answer: answers.append(answer), size_bytes)
        assert answers == [("answer", None)]
        return self.in_thread == before


def test_what_is_no_larger_than_at_warm_up_is_computed_on_the_event_loop() -> None:
    played = Played()
    assert all(played.compute(size) for size in (1, 10, WARM_UP_BYTES))


def test_what_is_larger_is_tried_in_the_thread_and_stays_there_while_it_is_slow() -> None:
    played = Played()
    for _ in range(8):
        assert not played.compute(32_000_000, wall_s=0.7)
        assert all(played.compute() for _ in range(25))


def test_a_larger_size_that_was_quick_comes_to_the_event_loop() -> None:
    played = Played()
    assert not played.compute(5000)
    assert played.compute(5000)
    assert played.compute(3000)
    assert not played.compute(5001)


@pytest.mark.parametrize(
    ("wall_s", "cpu_s", "is_quick"),
    [(0.006, 0.0002, True), (0.002, 0.002, False), (0.05, 0.0, False)],
    ids=["it waited for the interpreter", "it computed for long", "it slept"],
)
def test_what_counts_as_quick_in_the_thread(wall_s: float, cpu_s: float, is_quick: bool) -> None:
    played = Played()
    played.compute(5000, wall_s, cpu_s)
    assert played.compute(5000) is is_quick


def test_one_batch_that_computes_for_very_long_is_enough_to_move_for_good() -> None:
    played = Played()
    assert played.compute(wall_s=0.7)
    assert not played.compute()


def test_a_machine_that_stands_still_now_and_then_is_no_reason_to_move() -> None:
    played = Played()
    for _ in range(10):
        assert played.compute(wall_s=0.1, cpu_s=0.0001)
        assert all(played.compute() for _ in range(20))


def test_a_module_that_sleeps_again_and_again_moves() -> None:
    played = Played()
    assert [played.compute(wall_s=0.02, cpu_s=0.0) for _ in range(6)] == [True] * 5 + [False]


@pytest.mark.parametrize("size_bytes", [10, 10_000], ids=["on the event loop", "in the thread"])
@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(7), KeyboardInterrupt()], ids=lambda error: type(error).__name__
)
async def test_what_a_job_raises_is_told_and_not_raised(error: BaseException, size_bytes: int) -> None:
    told: asyncio.Future[tuple[Any, BaseException | None]] = asyncio.get_running_loop().create_future()

    def job() -> None:
        raise error

    worker = InlineWorker(ThreadWorker(asyncio.get_running_loop()), WARM_UP_BYTES)
    worker.start(job, lambda *outcome: told.set_result(outcome), size_bytes)
    assert await told == (None, error)
