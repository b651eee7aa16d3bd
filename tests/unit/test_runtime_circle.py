"""What processes say together: files in a folder, and the sum of those that ended."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torchmodel_runtime.circle import Circle, bury
from torchmodel_runtime.metrics import Metrics, add_up, render
from torchmodel_runtime.processes import Membership


def join_words(words: Sequence[bytes]) -> bytes:
    return b"+".join(words)


def circle(folder: Path, index: int, words: bytes) -> Circle:
    return Circle(Membership(folder, index), lambda: words)


async def test_who_is_alone_says_what_it_says(tmp_path: Path) -> None:
    assert await circle(tmp_path, 0, b"alone").ask() == [b"alone"]
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - a moment in a test


async def test_all_are_heard_and_who_has_ended_is_heard_in_the_sum(tmp_path: Path) -> None:
    first, second = circle(tmp_path, 0, b"first"), circle(tmp_path, 1, b"second")
    await first.join()
    await second.join()
    assert await first.ask() == await second.ask() == [b"first", b"second"]
    await second.leave()
    assert await first.ask() == [b"first", b"second"], "until it is buried"
    life = Membership(tmp_path, 1).life_of(os.getpid())
    bury(tmp_path, join_words, life)
    bury(tmp_path, join_words, life)
    assert await first.ask() == [b"first", b"second"]
    (tmp_path / "1-77.words").write_bytes(b"third")
    bury(tmp_path, join_words, "1-77")
    assert await first.ask() == [b"first", b"second+third"]
    await first.leave()


async def test_between_sum_and_removal_nobody_is_counted_twice(tmp_path: Path) -> None:
    first = circle(tmp_path, 0, b"first")
    await first.join()
    (tmp_path / "1-77.words").write_bytes(b"second")
    bury(tmp_path, join_words, "1-77")
    (tmp_path / "1-77.words").write_bytes(b"second")  # as a reader finds it that read it just before
    assert await first.ask() == [b"first", b"second"]
    await first.leave()


async def test_without_the_folder_nothing_is_said_and_nothing_raised(tmp_path: Path) -> None:
    gone = circle(tmp_path / "gone", 1, b"words")
    await gone.join()
    assert await gone.ask() == [b"words"]
    await gone.leave()


def test_what_has_ended_leaves_its_counters_and_no_gauge() -> None:
    ended, living = Metrics("m"), Metrics("m")
    for metrics in (ended, living):
        metrics.count_rejected("QUEUE_FULL")
        metrics.batch_rows.observe(3)
        metrics.watch("torchmodel_in_flight_requests", lambda: 7)
    text = render([living.snapshot(), add_up([add_up([ended.snapshot()]), ended.snapshot()])]).decode()
    assert 'torchmodel_rejected_total{model="m",reason="QUEUE_FULL"} 3.0' in text.replace(
        'reason="QUEUE_FULL",model="m"', 'model="m",reason="QUEUE_FULL"'
    )
    assert 'torchmodel_batch_rows_count{model="m"} 3.0' in text
    assert 'torchmodel_in_flight_requests{model="m"} 7.0' in text
    assert 'torchmodel_processes{model="m"} 1.0' in text
