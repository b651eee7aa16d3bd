"""The pure queue: what makes the next batch, and when. Time is played."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmodel_runtime.batching import BatchWindow, Entry


def entry(name: str, rows: int = 1, key: str = "k", arrived_s: float = 0.0, deadline_s: float = 100.0) -> Entry[str]:
    return Entry(name, rows, key, arrived_s, deadline_s)


def make_window(*entries: Entry[str], size: int = 4, delay_s: float = 0.0, queue: int = 1000) -> BatchWindow[str]:
    window: BatchWindow[str] = BatchWindow(size, delay_s, queue)
    for each in entries:
        window.add(each)
    return window


def names(entries: list[Entry[str]]) -> list[str]:
    return [each.payload for each in entries]


@pytest.mark.parametrize(
    ("entries", "batch"),
    [
        ([], []),
        ([entry("a")], ["a"]),
        ([entry("a"), entry("b"), entry("c")], ["a", "b", "c"]),
        ([entry(name) for name in "abcdef"], ["a", "b", "c", "d"]),
        ([entry("a", 3), entry("b", 2), entry("c", 1)], ["a"]),
        ([entry("a"), entry("x", key="other"), entry("b")], ["a", "b"]),
        ([entry("x", key="other"), entry("a"), entry("b")], ["x"]),
        ([entry("a", 9), entry("b")], ["a"]),
        ([entry("a"), entry("b", 9), entry("c")], ["a"]),
    ],
    ids=[
        "nothing waits",
        "one goes at once",
        "all that fit go together",
        "a full batch leaves the rest",
        "what does not fit is not overtaken",
        "another key does not join",
        "the oldest key goes first",
        "a request larger than a batch goes alone",
        "a larger one behind closes the batch",
    ],
)
def test_what_is_taken(entries: list[Entry[str]], batch: list[str]) -> None:
    assert names(make_window(*entries).take(1.0).batch) == batch


def test_with_a_delay_the_oldest_waits_that_long_and_no_longer() -> None:
    window = make_window(entry("a", arrived_s=10.0), delay_s=0.5)
    assert window.take(10.2).wait_s == pytest.approx(0.3)
    window.add(entry("b", arrived_s=10.4))
    assert window.take(10.4).wait_s == pytest.approx(0.1)
    assert names(window.take(10.5).batch) == ["a", "b"]


def test_a_full_batch_does_not_wait_and_a_hurried_one_neither() -> None:
    assert names(make_window(*[entry(name) for name in "abcd"], delay_s=0.5).take(0.1).batch) == ["a", "b", "c", "d"]
    assert names(make_window(entry("a"), delay_s=0.5).take(0.1, hurry=True).batch) == ["a"]


def test_past_its_deadline_an_entry_is_handed_back_and_not_computed() -> None:
    window = make_window(entry("late", deadline_s=1.0), entry("a"))
    take = window.take(1.0)
    assert names(take.expired) == ["late"]
    assert names(take.batch) == ["a"]
    assert window.queued_rows == 0


def test_the_queue_is_bounded_in_rows_and_discarding_makes_room() -> None:
    first = entry("a", 3)
    window = make_window(first, queue=4)
    assert window.has_room(1)
    assert not window.has_room(2)
    assert window.discard(first)
    assert not window.discard(first)
    assert window.has_room(4)


requests = st.lists(
    st.tuples(st.integers(1, 9), st.sampled_from("kl"), st.floats(0, 10), st.floats(0, 20)), max_size=40
)


@given(requests, st.integers(1, 6), st.floats(0, 2))
def test_every_entry_leaves_exactly_once_in_order_and_in_batches_that_fit(
    given_requests: list[tuple[int, str, float, float]], size: int, delay_s: float
) -> None:
    window: BatchWindow[str] = BatchWindow(size, delay_s, 10**6)
    entries = [
        Entry(str(number), rows, key, arrived, arrived + patience)
        for number, (rows, key, arrived, patience) in enumerate(sorted(given_requests, key=lambda request: request[2]))
    ]
    for each in entries:
        window.add(each)
    now_s, left, order = 10.0, [], {"k": [], "l": []}  # type: ignore[var-annotated]
    while len(window):
        take = window.take(now_s)
        left += take.batch + take.expired
        for each in take.expired:
            assert each.deadline_s <= now_s
        if take.wait_s is not None:
            assert 0 < take.wait_s <= delay_s
            now_s += take.wait_s + 1e-9
            continue
        assert take.batch or take.expired
        assert len({each.key for each in take.batch}) <= 1
        assert len(take.batch) <= 1 or sum(each.rows for each in take.batch) <= size
        assert all(each.deadline_s > now_s for each in take.batch)
        for each in take.batch:
            order[str(each.key)].append(int(each.payload))
    assert sorted(each.payload for each in left) == sorted(each.payload for each in entries)
    assert all(numbers == sorted(numbers) for numbers in order.values())
    assert window.queued_rows == 0
