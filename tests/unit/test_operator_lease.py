"""Leadership with played time: never two leaders, and a dead one is replaced within 20 s."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from testkit.fake_kube import FakeKube
from torchmodel_operator.lease import DURATION_S, RENEW_DEADLINE_S, RETRY_S, Elector, Move, judge_lease, observe_lease


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """Electors over one API server, each with its own clock that the test moves."""

    def __init__(self) -> None:
        self.kube, self.clock = FakeKube(), Clock()

    def elector(self, identity: str) -> Elector:
        return Elector(self.kube, "system", "lease", identity, self.clock)


def a_lease(holder: str, renew_time: str) -> dict[str, Any]:
    spec = {"holderIdentity": holder, "renewTime": renew_time, "leaseDurationSeconds": 12}
    return {"metadata": {"resourceVersion": "1"}, "spec": spec}


@pytest.mark.parametrize(
    ("holder", "seconds_unchanged", "move"),
    [
        pytest.param("me", 0, Move.RENEW, id="mine"),
        pytest.param("other", 11, Move.WAIT, id="another's, renewed lately"),
        pytest.param("other", 13, Move.TAKE, id="another's, not renewed"),
        pytest.param("", 0, Move.TAKE, id="released"),
    ],
)
def test_judge(holder: str, seconds_unchanged: float, move: Move) -> None:
    assert judge_lease(observe_lease(a_lease(holder, "t1"), None, 100.0), "me", 100.0 + seconds_unchanged) is move


def test_no_lease_is_created() -> None:
    assert judge_lease(None, "me", 0.0) is Move.CREATE


def test_the_holders_clock_does_not_matter() -> None:
    first = observe_lease(a_lease("other", "1999-01-01T00:00:00Z"), None, 100.0)
    again = observe_lease(a_lease("other", "1999-01-01T00:00:00Z"), first, 105.0)
    renewed = observe_lease(a_lease("other", "1998-01-01T00:00:00Z"), again, 110.0)
    assert (first.seen_at, again.seen_at, renewed.seen_at) == (100.0, 100.0, 110.0)


def test_a_holder_gives_up_before_another_may_take_over() -> None:
    assert RENEW_DEADLINE_S + RETRY_S < DURATION_S
    assert DURATION_S + 2 * RETRY_S < 20


async def test_a_dead_leader_is_replaced() -> None:
    world = World()
    leader, standby = world.elector("a"), world.elector("b")
    assert await leader.attempt()
    killed_at = world.clock.now
    while not await standby.attempt():
        world.clock.now += RETRY_S
    assert world.clock.now - killed_at < 20
    assert leader.is_lost()


async def test_two_never_lead_at_the_same_time() -> None:
    world = World()
    electors = [world.elector(name) for name in "abc"]
    for step in range(200):
        world.clock.now += 1.0
        for number, elector in enumerate(electors):
            if (step // 20 + number) % 3:  # each is cut off from the server for a while, in turn
                await elector.attempt()
        assert sum(not elector.is_lost() for elector in electors) <= 1


async def test_of_two_takers_one_wins() -> None:
    world = World()
    assert await world.elector("a").attempt()
    takers = [world.elector("b"), world.elector("c")]
    for taker in takers:
        await taker.attempt()
    world.clock.now += DURATION_S + 1
    results = await asyncio.gather(*(taker.attempt() for taker in takers))
    assert sorted(results) == [False, True]


async def test_a_released_lease_is_taken_at_once() -> None:
    world = World()
    leader, standby = world.elector("a"), world.elector("b")
    await leader.attempt()
    assert not await standby.attempt()
    await leader.release()
    assert not leader.is_leading
    assert await standby.attempt()


@pytest.mark.parametrize("verb", ["get", "replace", "*"])
async def test_any_failing_call_is_a_failed_round_and_in_the_end_the_lease_is_lost(verb: str) -> None:
    world = World()
    leader = world.elector("a")
    assert await leader.attempt()
    world.kube.fail(verb, "Lease", 503)
    assert not await leader.attempt()
    assert not leader.is_lost()
    world.clock.now += RENEW_DEADLINE_S + 0.1
    assert not await leader.attempt()
    assert leader.is_lost()


async def test_a_server_that_hangs_costs_the_lease_in_time() -> None:
    """The calls do not fail, they never end: the leader still gives up before anybody may take over."""
    world = World()
    leader = Elector(world.kube, "system", "lease", "a", asyncio.get_running_loop().time)
    leading = asyncio.Event()
    task = asyncio.create_task(leader.run(leading))
    await leading.wait()
    assert leader.seconds_left() == pytest.approx(RENEW_DEADLINE_S, abs=0.5)

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    world.kube.get = hang  # type: ignore[assignment, method-assign]
    leader._renewed_at = asyncio.get_running_loop().time() - RENEW_DEADLINE_S + 0.2
    await asyncio.wait_for(task, 3)
    assert not leading.is_set()
    assert not leader.is_leading
