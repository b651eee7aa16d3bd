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


def verdict(memory: Any, single_mib: float, after_mib: float = 300, statuses: Any = None) -> list[str]:
    """single_mib: RSS of the server's one process; torch and weights take 200. Two processes are planned."""
    from processes import Memory

    def measured(rss_mib: float, pss_mib: float, processes: int = 1) -> Memory:
        return Memory(rss_mib=rss_mib, pss_mib=pss_mib, processes=processes)

    floor = measured(200, 200)
    readings = [memory.Reading(1, measured(300, 300)), memory.Reading(2, measured(after_mib, after_mib))]
    overhead = memory.Overhead("mlp", floor, floor, measured(single_mib, single_mib), measured(600, 500, 2))
    assert ["mlp, server as planned", "2", "600.0", "500.0", "+400.0", "+300.0"] in overhead.rows()
    found: list[str] = memory.find_missed([overhead], {"requests": readings}, statuses or {400: 10})
    return found


def test_goals_that_are_met_are_no_news(memory: ModuleType) -> None:
    assert verdict(memory, 259, after_mib=305) == []


@pytest.mark.parametrize(
    ("single_mib", "after_mib", "statuses", "words"),
    [
        (261, 300, None, "61.0 MiB above torch and weights, at most 60"),
        (250, 307, None, "memory changed by 2.33%, at most 2%"),
        (250, 293, None, "memory changed by 2.33%"),
        (250, 300, {400: 9, 500: 1}, "{500: 1}, must be 4xx"),
        (250, 300, {0: 1}, "{0: 1}, must be 4xx"),
    ],
    ids=["overhead", "growth", "shrinking", "a 500", "no answer"],
)
def test_a_goal_that_is_missed_is_named(
    memory: ModuleType, single_mib: float, after_mib: float, statuses: Any, words: str
) -> None:
    (missed,) = verdict(memory, single_mib, after_mib, statuses)
    assert words in missed
