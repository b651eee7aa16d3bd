"""What a batch costs: the line that is learned, and what must not bend it."""

from __future__ import annotations

import random

import pytest
from torchmodel_runtime.costmodel import ENOUGH_BATCHES, CostModel


def taught(*samples: tuple[int, int, float], full_rows: int = 32) -> CostModel:
    cost = CostModel(full_rows)
    for rows, size_bytes, seconds in samples:
        cost.observe(rows, size_bytes, size_bytes, seconds, loaded=False)
    return cost


def encoder(rows: int, length: int) -> tuple[int, int, float]:
    """Like the encoder of docs/performance.md: 2.3 ms a call, 85 µs a position."""
    return rows, rows * length, 2.3e-3 + 85e-6 * rows * length


def test_before_there_are_data_nothing_is_predicted() -> None:
    cost = taught(*[(1, 10, 1.0)] * (ENOUGH_BATCHES - 1))
    assert not cost.known
    assert cost.seconds(32, 320) == cost.backlog_s(1000, 10000) == 0


def test_the_parts_of_a_cost_are_found() -> None:
    generator = random.Random(1)
    cost = taught(*[encoder(generator.randint(1, 16), generator.randint(8, 128)) for _ in range(100)])
    assert cost.batch_s == pytest.approx(2.3e-3, rel=0.02)
    assert cost.byte_s == pytest.approx(85e-6, rel=0.02)
    assert cost.row_s == pytest.approx(0, abs=1e-5)


def test_noise_of_a_tenth_and_stalls_of_the_machine_do_not_bend_it() -> None:
    generator = random.Random(2)
    samples = []
    for number in range(200):
        rows, size_bytes, seconds = encoder(generator.randint(1, 16), generator.randint(8, 128))
        seconds *= generator.lognormvariate(0, 0.1) * (20 if number % 12 == 0 else 1)
        samples.append((rows, size_bytes, seconds))
    cost = taught(*samples)
    for rows, length in ((1, 50), (8, 50), (16, 120)):
        assert cost.seconds(rows, rows * length) == pytest.approx(encoder(rows, length)[2], rel=0.15)


def test_batches_of_one_size_tell_what_that_size_costs_and_no_more() -> None:
    cost = taught(*[(32, 1280, 0.1)] * 50)
    assert cost.seconds(32, 1280) == pytest.approx(0.1)
    assert (cost.row_s, cost.byte_s) == (0, 0)


def test_a_long_spell_of_one_size_does_not_make_the_others_forgotten() -> None:
    mixed = [(rows, rows * 40, 1e-3 + rows * 1e-4) for rows in (1, 2, 4, 8, 16, 32)] * 4
    cost = taught(*mixed, *[(32, 1280, 1e-3 + 32e-4)] * 1000)
    assert cost.seconds(1, 40) == pytest.approx(1.1e-3, rel=0.05)
    assert cost.seconds(32, 1280) == pytest.approx(4.2e-3, rel=0.05)


def test_a_machine_that_became_slower_is_noticed() -> None:
    cost = taught(*[(8, 80, 0.01)] * 100, *[(8, 80, 0.03)] * 100)
    assert cost.seconds(8, 80) == pytest.approx(0.03, rel=0.1)


def test_nothing_is_ever_below_zero() -> None:
    generator = random.Random(3)
    for _ in range(30):
        cost = taught(
            *[(generator.randint(1, 9), generator.randint(0, 9), generator.expovariate(1) + 1e-6) for _ in range(20)]
        )
        assert min(cost.batch_s, cost.row_s, cost.byte_s) >= 0
        assert cost.seconds(5, 5) > 0


@pytest.mark.parametrize("rows", [32, 320])
def test_a_backlog_is_predicted_by_what_loaded_batches_took(rows: int) -> None:
    cost = CostModel(32)
    for size in (1, 8, 32, 32, 32) * 20:  # small ones when nothing waits must not count as slow
        cost.observe(size, size * 10, size * 10, 8e-3 + size * 5e-4, loaded=size == 32)
    assert cost.backlog_s(rows, rows * 10) == pytest.approx(rows / 32 * (8e-3 + 32 * 5e-4), rel=0.05)
