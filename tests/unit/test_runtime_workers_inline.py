"""The event loop as a worker: whatever a model does, the loop survives it."""

from __future__ import annotations

import asyncio

import pytest
from torchmodel_runtime.workers import InlineWorker, ThreadWorker


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(7), KeyboardInterrupt()], ids=lambda error: type(error).__name__
)
async def test_what_a_job_raises_is_told_and_not_raised(error: BaseException) -> None:
    told: list[BaseException | None] = []

    def job() -> None:
        raise error

    InlineWorker(ThreadWorker(asyncio.get_running_loop())).start(job, lambda _, caught: told.append(caught))
    assert told == [error]
