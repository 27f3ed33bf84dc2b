"""Retry policies and the signals that a task can raise."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq.errors import InvalidOption, TimeLimitExceeded
from asyncq.retry import Exponential, Fixed, RetryPolicy
from asyncq.signals import Retry, Snooze, seconds_of


@pytest.mark.parametrize(
    ("attempt", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (6, 10.0), (5000, 10.0)]
)
def test_exponential_backoff_doubles_up_to_its_cap(attempt, delay_s):
    """Without overflow at absurd attempts."""
    assert Exponential(first=1, factor=2, max=10).delay_s(attempt) == delay_s


def test_fixed_backoff_is_the_same_every_time():
    """First and hundredth attempt alike."""
    assert Fixed(7).delay_s(1) == Fixed(7).delay_s(100) == Fixed(7).cap_s == 7


def test_a_policy_without_arguments_allows_four_attempts_of_any_exception():
    """The first run and three retries, as with Celery."""
    policy = RetryPolicy()
    assert policy.max_attempts == 4
    assert policy.matches(ValueError())
    assert not policy.matches(SystemExit())


def test_a_time_limit_is_retried_only_where_the_policy_names_it():
    """It is a TimeoutError, but naming that class is not enough."""
    assert not RetryPolicy(on=(TimeoutError, Exception)).matches(TimeLimitExceeded("limit"))
    assert RetryPolicy(on=TimeLimitExceeded).matches(TimeLimitExceeded("limit"))


@given(st.integers(1, 60), st.floats(0, 1))
def test_jitter_stays_between_half_the_backoff_and_the_whole_of_it(attempt, draw):
    """So the cap holds, and tasks that failed together spread."""
    backoff = Exponential(first=0.5, factor=3, max=90)
    delay_s = RetryPolicy(backoff=backoff).delay_s(attempt, draw=draw)
    assert backoff.delay_s(attempt) / 2 <= delay_s <= backoff.delay_s(attempt)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: RetryPolicy(on=("ValueError",)),
        lambda: RetryPolicy(on=ValueError("instance")),
        lambda: RetryPolicy(max_attempts=0),
        lambda: RetryPolicy(max_attempts=True),
        lambda: Fixed(-1),
        lambda: Fixed(float("nan")),
        lambda: Exponential(factor=0.5),
        lambda: Exponential(max=float("inf")),
        lambda: Retry(after=-1),
        lambda: Snooze(float("nan")),
        lambda: seconds_of("10", "delay="),
        lambda: seconds_of(True, "delay="),
    ],
)
def test_values_that_cannot_be_used_are_refused_at_once(wrong):
    """In the declaration, not at the first failure in production."""
    with pytest.raises(InvalidOption):
        wrong()


def test_durations_are_seconds_or_timedeltas():
    """The public API takes both."""
    assert seconds_of(timedelta(minutes=1), "x") == seconds_of(60, "x") == 60.0
    assert Retry(after=timedelta(seconds=2)).after_s == 2.0
    assert Retry().after_s is None
