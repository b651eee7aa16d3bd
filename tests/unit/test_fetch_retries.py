"""Whether and when a fetch is tried again, as a pure decision."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torchmodel_runtime.fetch.retries import RetryPolicy, decide_delay_s, is_retryable_status, parse_retry_after_s

policies = st.builds(
    RetryPolicy,
    max_tries=st.integers(1, 20),
    first_delay_s=st.floats(0.001, 10),
    max_delay_s=st.floats(0.001, 100),
    max_retry_after_s=st.floats(0, 1000),
)
draws = st.floats(0, 1)


@given(policies, st.integers(1, 10_000), st.none() | st.floats(-10, 1e9), draws)
def test_gives_up_exactly_when_the_tries_are_used_up_and_never_waits_beyond_the_limits(policy, tries, wish, draw):
    delay = decide_delay_s(policy, tries, wish, draw)
    assert (delay is None) == (tries >= policy.max_tries)
    if delay is not None:
        assert 0 <= delay <= (policy.max_delay_s if wish is None else policy.max_retry_after_s)


@given(policies, st.floats(0, 1000), draws)
def test_what_the_server_asks_for_wins_over_our_own_delay(policy, wish, draw):
    if policy.max_tries > 1:
        assert decide_delay_s(policy, 1, wish, draw) == min(wish, policy.max_retry_after_s)


def test_the_ceiling_doubles_up_to_the_limit():
    policy = RetryPolicy(max_tries=10, first_delay_s=1, max_delay_s=5)
    assert [decide_delay_s(policy, tries, None, 1.0) for tries in range(1, 6)] == [1, 2, 4, 5, 5]
    assert decide_delay_s(policy, 3, None, 0.25) == 1.0


def test_an_operation_that_has_not_failed_yet_has_the_first_delay():
    assert decide_delay_s(RetryPolicy(), 0, None, 1.0) == 0.5


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_not_now(status):
    assert is_retryable_status(status)


@pytest.mark.parametrize("status", [200, 301, 400, 401, 403, 404, 409, 410, 412, 416, 451, 600])
def test_no(status):
    assert not is_retryable_status(status)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("-1", None),
        ("1.5", None),
        ("²", None),
        ("9" * 40, None),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
    ],
)
def test_retry_after(value, seconds):
    assert parse_retry_after_s(value) == seconds
