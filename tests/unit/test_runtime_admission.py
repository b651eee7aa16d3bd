"""Who may wait, and when to come back: time and load are played."""

from __future__ import annotations

import heapq
import random

import pytest
from torchmodel_runtime.admission import Admission, Load
from torchmodel_runtime.batching import BatchWindow, Entry
from torchmodel_runtime.batchrules import BatchRules
from torchmodel_runtime.config import Queue
from torchmodel_runtime.costmodel import CostModel
from torchmodel_runtime.errors import RequestError

IDLE = Load(0, 0, 0.0)


def second_a_row() -> CostModel:
    cost = CostModel(4)
    for rows in (1, 2, 4) * 60:
        cost.observe(rows, rows * 10, rows * 10, rows * 1.0, loaded=True)
    return cost


@pytest.mark.parametrize(
    ("load", "timeout_s", "retry_after_s"),
    [
        (IDLE, 0.1, None),
        (Load(4, 40, 0.0), 6, None),
        (Load(4, 40, 3.0), 6, 3),
        (Load(100, 1000, 0.0), 30, 81),
        (Load(0, 0, 3.0), 0.5, 4),
    ],
    ids=[
        "nobody before it: worth a try, whatever the prediction says",
        "in time",
        "late by what runs",
        "late by what waits",
        "later than what runs there is nothing to wait for",
    ],
)
def test_a_request_that_would_be_late_is_told_when_it_would_not_be(
    load: Load, timeout_s: float, retry_after_s: int | None
) -> None:
    admission = Admission(Queue(), second_a_row(), workers=1)
    if retry_after_s is None:
        admission.check(1, 10, load, timeout_s)
        return
    with pytest.raises(RequestError) as caught:
        admission.check(1, 10, load, timeout_s)
    assert (caught.value.status, caught.value.code) == (429, "TOO_BUSY")
    assert caught.value.retry_after_s == retry_after_s


def test_two_workers_halve_the_wait() -> None:
    assert Admission(Queue(), second_a_row(), workers=2).wait_s(Load(10, 100, 2.0)) == pytest.approx(6.0, rel=0.01)


def test_without_data_nobody_is_refused_by_prediction() -> None:
    Admission(Queue(), CostModel(4), workers=1).check(1, 10, Load(1000, 10, 0.0), 0.001)


@pytest.mark.parametrize(
    ("rows", "size_bytes", "status", "says"),
    [
        (1, 10, 429, "10 of 10 rows wait already"),
        (11, 10, 413, r"11 rows.*10 \(serving\.queue\.maxRows\)"),
        (1, 2 << 20, 413, r"2097152 bytes.*1048576 \(serving\.queue\.maxBytes\)"),
    ],
    ids=["full", "more rows than the queue ever takes", "more bytes than the queue ever takes"],
)
def test_a_queue_without_room(rows: int, size_bytes: int, status: int, says: str) -> None:
    admission = Admission(Queue(max_rows=10, max_bytes=1 << 20), CostModel(4), workers=1)
    with pytest.raises(RequestError, match=says) as caught:
        admission.check(rows, size_bytes, Load(10, 100, 0.0), 30)
    assert caught.value.status == status


def test_bytes_fill_the_queue_too() -> None:
    admission = Admission(Queue(max_rows=10, max_bytes=1 << 20), CostModel(4), workers=1)
    with pytest.raises(RequestError, match="bytes wait already"):
        admission.check(1, 1 << 19, Load(1, 1 << 20, 0.0), 30)


class Row(Entry):
    def __init__(self, length: int, now_s: float) -> None:
        super().__init__(1, length, "k", now_s, now_s + 1e9)


@pytest.mark.parametrize(
    ("max_rows", "timeout_s"), [(10**6, 8.0), (60, 1e6)], ids=["refused by prediction", "refused by a full queue"]
)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("padded", [False, True], ids=["one length", "many lengths"])
def test_who_comes_back_when_told_is_admitted(max_rows: int, timeout_s: float, workers: int, padded: bool) -> None:
    """A simulation: a queue grows until somebody is refused, then nobody else comes until he is back."""
    generator = random.Random(7)
    cost = CostModel(16)
    window: BatchWindow[Row] = BatchWindow(BatchRules(16, padded_inputs=(0,) if padded else ()), 0.0, cost)
    admission = Admission(Queue(max_rows=max_rows), cost, workers)
    running: list[tuple[float, int, float, list[Row], bool]] = []
    now_s, number = 0.0, 0

    def add() -> None:
        window.add(Row(generator.randint(8, 128) if padded else 64, now_s))

    def load() -> Load:
        return Load(window.queued_rows, window.queued_bytes, sum(max(0.0, end - now_s) for end, *_ in running))

    def run_until(end_s: float) -> None:
        nonlocal now_s, number
        while True:
            while len(running) < workers and (take := window.take(now_s, 16, workers - len(running))).batch:
                padded_bytes = len(take.batch) * max(row.row_bytes for row in take.batch)
                seconds = (0.02 + 0.001 * padded_bytes) * generator.lognormvariate(0, 0.1)
                number += 1
                heapq.heappush(running, (now_s + seconds, number, seconds, take.batch, take.loaded))
            if not running or running[0][0] > end_s:
                now_s = end_s
                return
            now_s, _, seconds, batch, loaded = heapq.heappop(running)
            useful, padded_bytes = sum(row.row_bytes for row in batch), len(batch) * max(row.row_bytes for row in batch)
            cost.observe(len(batch), padded_bytes, useful, seconds, loaded)

    def fill() -> None:
        while True:
            admission.check(1, 64, load(), timeout_s)
            add()
            run_until(now_s)

    for _ in range(400):  # what it costs is learned from light and heavy load
        for _ in range(generator.choice((1, 1, 20))):
            add()
        run_until(now_s + 0.5)
    for _ in range(20):
        with pytest.raises(RequestError) as refused:
            fill()
        run_until(now_s + (refused.value.retry_after_s or 0))
        admission.check(1, 64, load(), timeout_s)
