"""The queue's promises, with time passed in."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st
from torchmodel_operator.workqueue import FIRST_BACKOFF_S, MAX_BACKOFF_S, WorkQueue


def test_a_key_that_is_added_twice_is_taken_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    queue.add("a")
    assert [queue.take(0), queue.take(0)] == ["a", None]


def test_a_change_during_work_makes_one_more_round_after_it() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert queue.take(0) == "a"
    queue.add("a")
    queue.add("a")
    assert queue.take(0) is None
    queue.done("a")
    assert queue.take(0) == "a"
    queue.done("a")
    assert queue.take(0) is None


def test_the_earlier_of_two_delays_wins() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 10, now=0)
    queue.add_after("a", 2, now=0)
    queue.add_after("a", 5, now=0)
    assert queue.seconds_to_next(0) == 2
    assert queue.take(1.9) is None
    assert queue.take(2) == "a"
    queue.done("a")
    assert queue.take(20) is None


def test_adding_now_forgets_the_delay() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 10, now=0)
    queue.add("a")
    assert queue.take(0) == "a"
    queue.done("a")
    assert queue.take(10) is None


def test_back_off_doubles_up_to_a_limit_for_the_failing_key_alone() -> None:
    queue: WorkQueue[str] = WorkQueue()
    delays = [queue.fail("bad", now=0) for _ in range(40)]
    assert delays[:3] == [FIRST_BACKOFF_S, 2 * FIRST_BACKOFF_S, 4 * FIRST_BACKOFF_S]
    assert delays[-1] == MAX_BACKOFF_S
    assert queue.fail("other", now=0) == FIRST_BACKOFF_S
    queue.succeed("bad")
    assert queue.fail("bad", now=0) == FIRST_BACKOFF_S


def test_a_server_that_asks_for_more_time_gets_it() -> None:
    assert WorkQueue[str]().fail("a", now=0, at_least_s=7) == 7


def test_a_forgotten_key_does_not_come_back() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.fail("a", now=0)
    queue.forget("a")
    assert queue.take(1000) is None
    assert queue.seconds_to_next(0) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "later", "take", "done", "tick"]), st.integers(0, 3))))
def test_no_key_is_with_two_workers_and_none_is_lost(steps: list[tuple[str, int]]) -> None:
    queue: WorkQueue[int] = WorkQueue()
    now, working, owed = 0.0, set(), set()
    for step, key in steps:
        if step == "add":
            queue.add(key)
            owed.add(key)
        elif step == "later":
            queue.add_after(key, 1.0, now)
            owed.add(key)
        elif step == "take":
            taken = queue.take(now)
            assert taken not in working or taken is None
            if taken is not None:
                working.add(taken)
                owed.discard(taken)
        elif step == "done" and key in working:
            working.discard(key)
            queue.done(key)
        else:
            now += 0.6
    for key in working:
        queue.done(key)
    seen = set()
    while (taken := queue.take(now + 10)) is not None:
        seen.add(taken)
        queue.done(taken)
    assert owed <= seen


async def test_waiting_workers_wake_for_each_key() -> None:
    queue: WorkQueue[int] = WorkQueue()
    clock = asyncio.get_running_loop().time
    workers = [asyncio.create_task(queue.next_key(clock)) for _ in range(3)]
    await asyncio.sleep(0)
    queue.add(1)
    queue.add(2)
    queue.add_after(3, 0.01, clock())
    assert sorted(await asyncio.wait_for(asyncio.gather(*workers), 5)) == [1, 2, 3]
