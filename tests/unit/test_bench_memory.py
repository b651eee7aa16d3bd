"""The verdict of bench/memory.py: a goal that is missed is an exit code, not only a line in a table."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCH)
    import memory

    return memory


def verdict(memory: Any, ready: tuple[float, float, int], after_mib: float = 300, statuses: Any = None) -> list[str]:
    """ready: RSS, PSS and processes of the server; torch and weights take 200 of both."""
    from processes import Memory

    def measured(rss_mib: float, pss_mib: float, processes: int = 1) -> Memory:
        return Memory(rss_mib=rss_mib, pss_mib=pss_mib, processes=processes)

    floor = measured(200, 200)
    readings = [memory.Reading(1, measured(300, 300)), memory.Reading(2, measured(after_mib, after_mib))]
    overhead = memory.Overhead("mlp", floor, floor, measured(*ready))
    found: list[str] = memory.find_missed([overhead], {"requests": readings}, statuses or {400: 10})
    return found


def test_goals_that_are_met_are_no_news(memory: ModuleType) -> None:
    assert verdict(memory, (259, 259, 1), after_mib=305) == []


@pytest.mark.parametrize(
    ("ready", "after_mib", "statuses", "words"),
    [
        ((261, 250, 1), 300, None, "61.0 MiB above torch and weights, at most 60"),
        ((400, 261, 2), 300, None, "61.0 MiB above"),
        ((250, 250, 1), 307, None, "memory changed by 2.33%, at most 2%"),
        ((250, 250, 1), 293, None, "memory changed by 2.33%"),
        ((250, 250, 1), 300, {400: 9, 500: 1}, "{500: 1}, must be 4xx"),
        ((250, 250, 1), 300, {0: 1}, "{0: 1}, must be 4xx"),
    ],
    ids=["one process", "shared pages of several", "growth", "shrinking", "a 500", "no answer"],
)
def test_a_goal_that_is_missed_is_named(
    memory: ModuleType, ready: Any, after_mib: Any, statuses: Any, words: str
) -> None:
    (missed,) = verdict(memory, ready, after_mib, statuses)
    assert words in missed


def test_shared_pages_of_several_processes_count_once(memory: ModuleType) -> None:
    assert verdict(memory, (500, 259, 2)) == []
