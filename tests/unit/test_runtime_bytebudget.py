"""The budget of bytes that requests hold: what is asked, refused, given back and released."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmodel_runtime.bytebudget import ByteBudget, Hold, Released, choose_max_bytes
from torchmodel_runtime.errors import RequestError


def open_holds(max_bytes: int, count: int, max_kept_bytes: int = 1 << 40) -> tuple[ByteBudget, list[Hold]]:
    budget = ByteBudget(max_bytes)
    return budget, [Hold(budget, max_kept_bytes) for _ in range(count)]


def test_what_does_not_fit_now_is_told_to_come_back() -> None:
    budget, (first, second) = open_holds(100, 2)
    first.borrow(60)
    with pytest.raises(RequestError) as caught:
        second.borrow(41)
    assert (caught.value.status, caught.value.code) == (429, "NO_ROOM")
    assert "60 of 100 bytes already (serving.limits.maxBytesInFlight)" in caught.value.message
    first.give_back(20)
    second.borrow(41)
    assert budget.held_bytes == 81


def test_what_never_fits_is_told_so() -> None:
    budget, (first, second) = open_holds(100, 2)
    first.borrow(60)
    second.borrow(20)
    with pytest.raises(RequestError) as caught:
        second.borrow(81)
    assert caught.value.status == 413
    assert (
        "holds 101 bytes, all requests together at most 100 (serving.limits.maxBytesInFlight)" in caught.value.message
    )
    assert budget.held_bytes == 80


def test_what_never_fits_the_queue_is_told_so_at_once() -> None:
    _, (hold,) = open_holds(1000, 1, max_kept_bytes=100)
    hold.borrow(500)
    hold.keep(60)
    with pytest.raises(RequestError) as caught:
        hold.keep(41)
    assert caught.value.status == 413
    assert "101 bytes, the queue takes at most 100 (serving.queue.maxBytes)" in caught.value.message


def test_a_body_becomes_tensors_and_is_counted_as_what_it_is() -> None:
    budget, (hold,) = open_holds(100, 1)
    hold.borrow(90)
    hold.settle(30)
    assert budget.held_bytes == 30
    with pytest.raises(RequestError):
        hold.settle(101)
    hold.release()
    assert budget.held_bytes == 0


def test_who_has_gone_gets_nothing_more() -> None:
    """A thread that still decodes for a client that left stops at the next thing it asks for."""
    budget, (hold,) = open_holds(100, 1)
    hold.borrow(10)
    hold.release()
    with pytest.raises(Released):
        hold.borrow(1)
    hold.release()
    assert budget.held_bytes == 0


STEPS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(["borrow", "keep", "settle", "release"]), st.integers(0, 120))
)


@given(STEPS)
def test_whatever_happens_the_budget_holds_what_its_holds_hold_and_never_more_than_it_may(
    steps: list[tuple[int, str, int]],
) -> None:
    budget, holds = open_holds(100, 4, max_kept_bytes=70)
    for index, step, size_bytes in steps:
        with contextlib.suppress(RequestError, Released):
            holds[index].release() if step == "release" else getattr(holds[index], step)(size_bytes)
        assert budget.held_bytes == sum(hold._held_bytes for hold in holds)
        assert 0 <= budget.held_bytes <= 100
    for hold in holds:
        hold.release()
    assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("configured", "free_bytes", "processes", "chosen"),
    [(500, 10_000, 1, 500), (0, 8000, 1, 2000), (0, 8000, 4, 500), (0, 100, 1, 64), (0, 0, 1, 64)],
    ids=[
        "as configured",
        "a quarter of what is free",
        "shared by processes",
        "the largest body fits always",
        "nothing free",
    ],
)
def test_the_default_follows_from_the_free_memory(
    configured: int, free_bytes: int, processes: int, chosen: int
) -> None:
    assert choose_max_bytes(configured, free_bytes, processes, least_bytes=64) == chosen
