"""Which requests get a line, and how many lines there can be."""

from __future__ import annotations

import logging

import pytest
from torchmodel_runtime.accesslog import AccessLog


class Dropped:
    """Counts what was left out."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, object]]:
    """Message and fields of what was logged."""
    return [(record.message, record.__dict__["fields"]) for record in caplog.records]


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        pytest.param(0.0, 0, id="none of them"),
        pytest.param(0.01, 10, id="one in a hundred"),
        pytest.param(0.1, 100, id="one in ten, although ten times 0.1 is not quite 1"),
        pytest.param(0.3, 300, id="three in ten"),
        pytest.param(1.0, 1000, id="all of them"),
    ],
)
def test_the_sample_has_its_share(ratio: float, expected: int) -> None:
    log = AccessLog(ratio, Dropped())
    assert sum(log.wants(200) for _ in range(1000)) == expected


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        pytest.param(200, False, id="an answer is not"),
        pytest.param(429, False, id="a refusal is not"),
        pytest.param(499, False, id="a client that left is not"),
        pytest.param(500, True, id="an error of the server is"),
        pytest.param(504, True, id="an expired request is"),
    ],
)
def test_without_a_sample_logged(status: int, wanted: bool) -> None:
    assert AccessLog(0.0, Dropped()).wants(status) is wanted


def test_a_flood_is_cut_and_the_next_second_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    dropped = Dropped()
    log = AccessLog(1.0, dropped, lines_per_s=3)
    for number in range(10):
        log.write(7.0 + number / 100, {"n": number})
    assert lines(caplog) == [("request", {"n": 0}), ("request", {"n": 1}), ("request", {"n": 2})]
    caplog.clear()
    log.write(8.5, {"n": 10})
    assert lines(caplog) == [("lines of the access log were left out", {"lines": 7}), ("request", {"n": 10})]
    assert dropped.count == 7


def test_what_was_left_out_is_said_at_the_end_and_once(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog(1.0, Dropped(), lines_per_s=0)
    log.write(1.0, {})
    log.tell_dropped()
    log.tell_dropped()
    assert lines(caplog) == [("lines of the access log were left out", {"lines": 1})]
