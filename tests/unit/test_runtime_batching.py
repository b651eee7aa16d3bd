"""The pure queue: what makes the next batch, and when. Time is played."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmodel_runtime.batching import BatchWindow, Entry
from torchmodel_runtime.batchrules import BatchRules
from torchmodel_runtime.costmodel import CostModel


class Named(Entry):
    def __init__(
        self,
        name: str,
        rows: int = 1,
        key: str = "k",
        arrived_s: float = 0.0,
        deadline_s: float = 100.0,
        length: int = 10,
    ) -> None:
        super().__init__(rows, length, key, arrived_s, deadline_s)
        self.name = name


def learned(batch_s: float, row_s: float, byte_s: float, full_rows: int = 8) -> CostModel:
    """A model that has seen batches of exactly this cost."""
    cost = CostModel(full_rows)
    for rows in (1, 2, 4, 8) * 8:
        for length in (10, 50, 100):
            seconds = batch_s + row_s * rows + byte_s * rows * length
            cost.observe(rows, rows * length, rows * length, seconds, loaded=False)
    return cost


def make_window(
    *entries: Named,
    size: int = 4,
    delay_s: float = 0.0,
    padded: bool = False,
    max_bytes: int = 0,
    cost: CostModel | None = None,
    sizes: tuple[int, ...] = (),
) -> BatchWindow[Named]:
    rules = BatchRules(size, sizes=sizes, padded_inputs=(0,) if padded else (), max_batch_bytes=max_bytes)
    window: BatchWindow[Named] = BatchWindow(rules, delay_s, cost or CostModel(size))
    for each in entries:
        window.add(each)
    return window


def names(entries: list[Named]) -> list[str]:
    return [each.name for each in entries]


@pytest.mark.parametrize(
    ("entries", "batch"),
    [
        ([], []),
        ([Named("a")], ["a"]),
        ([Named("a"), Named("b"), Named("c")], ["a", "b", "c"]),
        ([Named(name) for name in "abcdef"], ["a", "b", "c", "d"]),
        ([Named("a", 3), Named("b", 2), Named("c", 1)], ["a"]),
        ([Named("a"), Named("x", key="other"), Named("b")], ["a", "b"]),
        ([Named("x", key="other"), Named("a"), Named("b")], ["x"]),
        ([Named("a", 9), Named("b")], ["a"]),
        ([Named("a"), Named("b", 9), Named("c")], ["a"]),
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
def test_what_is_taken(entries: list[Named], batch: list[str]) -> None:
    assert names(make_window(*entries).take(1.0, 4).batch) == batch


def test_a_worker_that_takes_fewer_rows_now_gets_fewer() -> None:
    assert names(make_window(*[Named(name) for name in "abcd"]).take(0.0, 2).batch) == ["a", "b"]


def test_workers_that_are_free_together_share_what_waits() -> None:
    window = make_window(*[Named(name) for name in "abcde"], size=8)
    assert names(window.take(0.0, 8, workers=2).batch) == ["a", "b", "c"]
    assert names(window.take(0.0, 8, workers=1).batch) == ["d", "e"]


def test_a_batch_is_bounded_in_bytes() -> None:
    window = make_window(*[Named(name, length=40) for name in "abc"], max_bytes=100)
    assert names(window.take(0.0, 4).batch) == ["a", "b"]


# --- proven sizes ---


@pytest.mark.parametrize("padded", [False, True], ids=["of equal shape", "with padding"])
@pytest.mark.parametrize(
    ("rows", "batches"),
    [
        ((1, 1, 1), ["ab", "c"]),
        ((1, 1, 1, 1, 1, 1, 1), ["abcd", "ef", "g"]),
        ((2, 1, 1), ["abc"]),
        ((2, 1), ["a", "b"]),
        ((1, 2, 1), ["abc"]),
        ((3,), ["a"]),
    ],
    ids=[
        "three are rounded down to two",
        "seven are four, two and one",
        "rows are counted, not requests",
        "what cannot be joined to a proven size goes apart",
        "a number in between that was not proven is passed over",
        "one request is never held back",
    ],
)
def test_a_batch_has_a_proven_number_of_rows_and_the_rest_waits(
    rows: tuple[int, ...], batches: list[str], padded: bool
) -> None:
    entries = [Named(name, count) for name, count in zip("abcdefg", rows, strict=False)]
    window = make_window(*entries, sizes=(1, 2, 4), padded=padded)
    taken = []
    while len(window):
        taken.append("".join(sorted(names(window.take(0.0, 4).batch))))
    assert taken == batches


def test_workers_that_share_get_proven_sizes_too() -> None:
    window = make_window(*[Named(name) for name in "abcdef"], size=8, sizes=(1, 2, 4, 8))
    assert [len(window.take(0.0, 8, workers=workers).batch) for workers in (2, 1)] == [2, 4]


def test_a_worker_that_takes_fewer_rows_now_gets_a_proven_number() -> None:
    window = make_window(*[Named(name) for name in "abcd"], sizes=(1, 2, 4))
    assert names(window.take(0.0, 3).batch) == ["a", "b"]


def test_a_batch_that_is_shortened_for_a_deadline_has_a_proven_size() -> None:
    entries = [Named(name, deadline_s=3.5) for name in "abcd"]
    window = make_window(*entries, sizes=(1, 2, 4), cost=learned(batch_s=0.01, row_s=1.0, byte_s=0.0))
    assert names(window.take(0.0, 4).batch) == ["a", "b"]


def test_a_worker_whose_memory_ran_out_gets_fewer_bytes() -> None:
    window = make_window(*[Named(name, length=40) for name in "abcd"], max_bytes=160)
    assert names(window.take(0.0, 4, max_bytes=100).batch) == ["a", "b"]


@pytest.mark.parametrize(("max_bytes", "batch"), [(299, "a"), (300, "abc")])
def test_padding_counts_against_the_bytes(max_bytes: int, batch: str) -> None:
    entries = [Named("a", length=100), Named("b", length=60), Named("c", length=60)]
    cost = learned(batch_s=1.0, row_s=0.0, byte_s=1e-5)
    window = make_window(*entries, padded=True, max_bytes=max_bytes, cost=cost)
    assert sorted(names(window.take(0.0, 4).batch)) == list(batch)


# --- a busy worker's second batch ---


def test_only_a_full_batch_goes_ahead_to_a_busy_worker() -> None:
    window = make_window(*[Named(name) for name in "abc"])
    assert not window.take(0.0, 4, only_full=True).batch
    window.add(Named("d"))
    assert names(window.take(0.0, 4, only_full=True).batch) == ["a", "b", "c", "d"]


# --- padding ---


def test_rows_of_similar_length_share_a_batch_and_the_oldest_is_in_it() -> None:
    lengths = {"a": 50, "b": 10, "c": 100, "d": 52, "e": 48, "f": 11}
    window = make_window(*[Named(name, length=length) for name, length in lengths.items()], padded=True)
    assert sorted(names(window.take(0.0, 4).batch)) == ["a", "d", "e"]
    assert sorted(names(window.take(0.0, 4).batch)) == ["b", "f"]
    assert names(window.take(0.0, 4).batch) == ["c"]


def test_where_a_call_costs_more_than_its_rows_all_lengths_share_one() -> None:
    entries = [Named(name, length=length) for name, length in zip("abcd", (10, 50, 70, 100), strict=True)]
    window = make_window(*entries, padded=True, cost=learned(batch_s=1.0, row_s=0.0, byte_s=1e-5))
    assert sorted(names(window.take(0.0, 8).batch)) == ["a", "b", "c", "d"]


def test_of_equal_lengths_the_older_go_first() -> None:
    window = make_window(*[Named(name) for name in "abcdef"], padded=True)
    assert names(window.take(0.0, 4).batch) == ["a", "b", "c", "d"]


def test_a_request_larger_than_a_batch_goes_alone_with_padding_too() -> None:
    window = make_window(Named("a", 9, length=50), Named("b", length=50), padded=True)
    assert names(window.take(0.0, 4).batch) == ["a"]


# --- the delay ---


def test_an_idle_server_does_not_wait_for_company() -> None:
    assert names(make_window(Named("a"), delay_s=0.5).take(0.0, 4).batch) == ["a"]


def test_with_company_the_oldest_waits_that_long_and_no_longer() -> None:
    window = make_window(Named("a", arrived_s=10.0), Named("b", arrived_s=10.1), delay_s=0.5)
    assert window.take(10.2, 4).wait_s == pytest.approx(0.3)
    assert names(window.take(10.5, 4).batch) == ["a", "b"]
    window.add(Named("c", arrived_s=11.0))
    assert window.take(11.0, 4).wait_s == pytest.approx(0.5), "the last batch had company"
    assert names(window.take(11.5, 4).batch) == ["c"]
    window.add(Named("d", arrived_s=12.0))
    assert names(window.take(12.0, 4).batch) == ["d"], "the last batch had none"


def test_a_full_batch_does_not_wait_and_a_hurried_one_neither() -> None:
    assert names(make_window(*[Named(name) for name in "abcd"], delay_s=0.5).take(0.1, 4).batch) == ["a", "b", "c", "d"]
    assert names(make_window(Named("a"), Named("b"), delay_s=0.5).take(0.1, 4, hurry=True).batch) == ["a", "b"]


def test_while_the_oldest_waits_for_company_a_full_batch_of_another_key_runs() -> None:
    window = make_window(Named("a"), Named("b"), size=4, delay_s=1.0)
    for name in "stuvwxyz":
        window.add(Named(name, key="other", arrived_s=0.001))
    assert names(window.take(0.002, 4).batch) == ["s", "t", "u", "v"]
    assert names(window.take(0.003, 4).batch) == ["w", "x", "y", "z"]
    assert window.take(0.004, 4).wait_s == pytest.approx(0.996)
    window.add(Named("c", arrived_s=0.5))
    for name in "stuv":
        window.add(Named(name, key="other", arrived_s=0.6))
    assert names(window.take(1.0, 4).batch) == ["a", "b", "c"], "it has waited for as long as it may"
    assert names(window.take(1.0, 4).batch) == ["s", "t", "u", "v"]


def test_a_batch_that_can_take_no_more_bytes_is_full() -> None:
    window = make_window(*[Named(name, length=40) for name in "abc"], max_bytes=100, delay_s=0.5)
    assert names(window.take(0.0, 4).batch) == ["a", "b"]
    assert window.take(0.0, 4).wait_s == 0.5


# --- deadlines ---


def test_past_its_deadline_an_entry_is_handed_back_and_not_computed() -> None:
    window = make_window(Named("late", deadline_s=1.0), Named("a"))
    take = window.take(1.0, 4)
    assert names(take.expired) == ["late"]
    assert names(take.batch) == ["a"]
    assert window.queued_rows == 0


@pytest.mark.parametrize(
    ("deadlines", "padded", "batch"),
    [
        ((9, 9, 9, 9), False, "abcd"),
        ((2.5, 9, 9, 9), False, "ab"),
        ((9, 9, 2.5, 9), False, "ab"),
        ((0.5, 9, 9, 9), False, "abcd"),
        ((2.5, 9, 9, 9), True, "ab"),
    ],
    ids=[
        "enough time for all",
        "as many as let the oldest be ready in time",
        "as many as let any of them be ready in time",
        "one that is late in any case holds nobody back",
        "with padding too",
    ],
)
def test_a_batch_is_no_larger_than_its_earliest_deadline_allows(
    deadlines: tuple[float, ...], padded: bool, batch: str
) -> None:
    entries = [Named(name, deadline_s=deadline) for name, deadline in zip("abcd", deadlines, strict=True)]
    window = make_window(*entries, padded=padded, cost=learned(batch_s=0.01, row_s=1.0, byte_s=0.0))
    assert names(window.take(0.0, 4).batch) == list(batch)


# --- requests in pieces ---


def pieces(name: str, count: int, rows: int = 4, deadline_s: float = 100.0) -> list[Named]:
    return [Named(f"{name}{number}", rows, deadline_s=deadline_s) for number in range(count)]


def test_a_huge_request_holds_up_others_for_one_batch() -> None:
    window = make_window()
    window.add_pieces(pieces("huge", 5))
    window.add(Named("a"))
    window.add(Named("b"))
    assert window.queued_rows == 22
    taken = [names(window.take(0.0, 4).batch) for _ in range(6)]
    assert taken == [["huge0"], ["a", "b"], ["huge1"], ["huge2"], ["huge3"], ["huge4"]]


def test_small_pieces_of_one_request_share_a_batch() -> None:
    window = make_window()
    window.add_pieces(pieces("p", 6, rows=1))
    assert names(window.take(0.0, 4).batch) == ["p0", "p1", "p2", "p3"]
    assert names(window.take(0.0, 4).batch) == ["p4", "p5"]


def test_who_leaves_takes_all_pieces_along() -> None:
    window = make_window()
    leaving = pieces("huge", 5)
    window.add_pieces(leaving)
    window.add(Named("a"))
    window.take(0.0, 4)
    window.discard(leaving)
    window.discard(leaving)
    assert (window.queued_rows, window.queued_bytes, len(window)) == (1, 10, 1)
    assert names(window.take(0.0, 4).batch) == ["a"]
    assert not window.take(0.0, 4).batch


def test_all_pieces_expire_together() -> None:
    window = make_window()
    window.add_pieces(pieces("huge", 5, deadline_s=1.0))
    assert window.earliest_deadline_s == 1.0
    assert names(window.expire(1.0)) == ["huge0", "huge1", "huge2", "huge3", "huge4"]
    assert (window.queued_rows, len(window)) == (0, 0)


# --- always ---

requests = st.lists(
    st.tuples(
        st.integers(1, 9),
        st.sampled_from("kl"),
        st.floats(0, 10),
        st.floats(0, 20),
        st.integers(1, 60),
        st.integers(1, 4),
    ),
    max_size=40,
)


@given(
    requests,
    st.sampled_from([(1,), (1, 2), (1, 2, 3, 4, 5, 6), (1, 3), (1, 2, 4, 6)]),
    st.floats(0, 2),
    st.booleans(),
    st.sampled_from([0, 90]),
    st.integers(1, 3),
)
def test_every_entry_leaves_once_no_batch_is_too_large_and_nobody_starves(
    given_requests: list[tuple[int, str, float, float, int, int]],
    sizes: tuple[int, ...],
    delay_s: float,
    padded: bool,
    max_bytes: int,
    workers: int,
) -> None:
    size = sizes[-1]
    window = make_window(size=size, delay_s=delay_s, padded=padded, max_bytes=max_bytes, sizes=sizes)
    added: list[Named] = []
    for number, (rows, key, arrived, patience, length, count) in enumerate(
        sorted(given_requests, key=lambda request: request[2])
    ):
        key = key if padded else f"{key}{length}"  # without padding the shape is part of the key
        made = [Named(f"{number}.{part}", rows, key, arrived, arrived + patience, length) for part in range(count)]
        window.add_pieces(made)
        added += made
    now_s, left = 10.0, list[str]()
    while len(window):
        waiting = [each for each in added if each.waiting and each.turn]
        oldest = min((each for each in waiting if each.deadline_s > now_s), key=lambda each: each.turn, default=None)
        take = window.take(now_s, size, workers)
        left += names(take.batch) + names(take.expired)
        assert all(each.deadline_s <= now_s for each in take.expired)
        if take.wait_s is not None:
            assert 0 < take.wait_s <= delay_s
            now_s += take.wait_s + 1e-9
            continue
        assert take.batch or take.expired
        assert len({each.key for each in take.batch}) <= 1
        if len(take.batch) > 1:
            taken_rows = sum(each.rows for each in take.batch)
            assert taken_rows in sizes
            assert not max_bytes or taken_rows * max(each.row_bytes for each in take.batch) <= max_bytes
        assert all(each.deadline_s > now_s for each in take.batch)
        if oldest is not None and oldest not in take.batch:
            assert now_s - oldest.arrived_s < delay_s, "whoever waited longest is in every batch, or waits for company"
            assert {each.key for each in take.batch} != {oldest.key}
    assert sorted(left) == sorted(each.name for each in added)
    assert (window.queued_rows, window.queued_bytes) == (0, 0)
