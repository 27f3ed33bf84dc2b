"""Retry policies and the signals that a task can raise."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncq.errors import InvalidOption, TimeLimitExceeded
from asyncq.retry import Backoff, Exponential, Fixed, Linear, RetryPolicy, policies_of, policy_for
from asyncq.signals import Retry, Snooze, seconds_of


@pytest.mark.parametrize(
    ("attempt", "delay_s"), [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (6, 10.0), (5000, 10.0)]
)
def test_exponential_backoff_doubles_up_to_its_cap(attempt, delay_s):
    """Without overflow at absurd attempts."""
    assert Exponential(first=1, factor=2, max=10).delay_s(attempt) == delay_s


@pytest.mark.parametrize(("attempt", "delay_s"), [(1, 5.0), (2, 8.0), (3, 11.0), (4, 12.0), (2**63, 12.0)])
def test_linear_backoff_grows_by_its_step_up_to_its_cap(attempt, delay_s):
    """Without overflow at absurd attempts."""
    assert Linear(first=5, step=3, max=12).delay_s(attempt) == delay_s


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


seconds = st.floats(0, 1e300) | st.integers(0, 10**9)
backoffs = (
    st.builds(Fixed, seconds)
    | st.builds(Linear, first=seconds, step=seconds, max=seconds)
    | st.builds(Exponential, first=seconds, factor=st.floats(1, 1e6), max=seconds)
)
attempts = st.integers(1, 100) | st.integers(1, 2**63)


@settings(derandomize=True)
@given(backoffs, attempts)
def test_no_backoff_is_negative_or_past_its_cap_or_shorter_than_the_one_before(backoff: Backoff, attempt: int):
    """Whatever its numbers, and however often the task has run."""
    delay_s = backoff.delay_s(attempt)
    assert 0 <= delay_s <= backoff.cap_s
    assert RetryPolicy(backoff=backoff, jitter=False).delay_s(attempt) == delay_s
    assert delay_s <= backoff.delay_s(attempt + 1)


@settings(derandomize=True)
@given(backoffs, attempts, st.floats(0, 1))
def test_jitter_stays_between_half_the_backoff_and_the_whole_of_it(backoff: Backoff, attempt: int, draw: float):
    """So the cap holds, and tasks that failed together spread."""
    policy = RetryPolicy(backoff=backoff)
    whole_s = backoff.delay_s(attempt)
    assert whole_s / 2 <= policy.delay_s(attempt, draw=draw) <= whole_s
    assert whole_s / 2 <= policy.delay_s(attempt) <= whole_s


def test_never_wins_over_on():
    """Subclasses included."""
    policy = RetryPolicy(on=OSError, never=(PermissionError, FileNotFoundError))
    assert policy.matches(ConnectionResetError())
    assert not policy.matches(PermissionError())
    assert not RetryPolicy(never=TimeoutError, on=TimeLimitExceeded).matches(TimeLimitExceeded("limit"))


def test_a_predicate_is_asked_only_about_errors_that_the_classes_allow():
    """So it may rely on their attributes."""
    asked = []

    def is_temporary(error: BaseException) -> bool:
        asked.append(error)
        return error.args == (503,)

    policy = RetryPolicy(on=(ConnectionError,), never=BrokenPipeError, when=is_temporary)
    assert policy.matches(ConnectionError(503))
    assert not policy.matches(ConnectionError(404))
    assert not policy.matches(KeyError(503))
    assert not policy.matches(BrokenPipeError(503))
    assert [error.args for error in asked] == [(503,), (404,)]


def test_a_group_is_retried_where_every_error_in_it_is():
    """As `asyncio.TaskGroup` raises it, groups in groups included."""
    policy = RetryPolicy(on=(ConnectionError, TimeoutError), never=BrokenPipeError)
    group = ExceptionGroup("g", [ConnectionResetError(), ExceptionGroup("inner", [TimeoutError()])])
    assert policy.matches(group)
    assert not policy.matches(ExceptionGroup("g", [group, KeyError()]))
    assert not policy.matches(ExceptionGroup("g", [ConnectionError(), BrokenPipeError()]))
    assert not RetryPolicy().matches(ExceptionGroup("g", [TimeLimitExceeded("limit")]))
    assert not RetryPolicy().matches(BaseExceptionGroup("g", [SystemExit(1), KeyError()]))


def test_a_predicate_is_asked_about_each_error_of_a_group():
    """It was written for errors, and knows nothing of groups."""
    policy = RetryPolicy(when=lambda error: error.args[0] >= 500)
    assert policy.matches(ExceptionGroup("g", [ValueError(500), ValueError(503)]))
    assert not policy.matches(ExceptionGroup("g", [ValueError(500), ValueError(404)]))


def test_a_policy_may_name_the_group_itself():
    """Then its errors are not looked at, but for `never`."""
    asked = []
    policy = RetryPolicy(on=ExceptionGroup, never=PermissionError, when=lambda error: not asked.append(error))
    group = ExceptionGroup("g", [KeyError()])
    assert policy.matches(group)
    assert asked == [group]
    assert not policy.matches(KeyError())
    assert not policy.matches(ExceptionGroup("g", [PermissionError()]))


def test_the_first_policy_that_matches_decides():
    """And `never` ends the search."""
    quick = RetryPolicy(on=ConnectionError, never=BrokenPipeError)
    busy = RetryPolicy(when=lambda error: error.args == ("busy",))
    slow = RetryPolicy(on=OSError)
    policies = (quick, busy, slow)
    assert policy_for(policies, ConnectionError("busy")) is quick
    assert policy_for(policies, OSError("busy")) is busy
    assert policy_for(policies, OSError("gone")) is slow
    assert policy_for(policies, BrokenPipeError("busy")) is None
    assert policy_for(policies, KeyError("k")) is None
    assert policy_for((), KeyError("k")) is None


def test_one_policy_a_list_or_none_can_be_given():
    """`None` and an empty list both mean that nothing is retried."""
    policy = RetryPolicy()
    assert policies_of(policy, "retry=") == policies_of([policy], "retry=") == (policy,)
    assert policies_of(None, "retry=") == policies_of([], "retry=") == policies_of((), "retry=") == ()


def test_the_time_that_is_left_counts_from_the_first_attempt():
    """Seconds or a timedelta; without `max_time` there is always time."""
    assert RetryPolicy(max_time=60).left_s(elapsed_s=50) == 10
    assert RetryPolicy(max_time=timedelta(minutes=1)).left_s(elapsed_s=70) == -10
    assert RetryPolicy().left_s(elapsed_s=1e12) == float("inf")


async def a_coroutine_function(error: BaseException) -> bool:
    return True


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
        lambda: Exponential(factor="2"),
        lambda: Linear(step=-1),
        lambda: Linear(max=float("inf")),
        lambda: RetryPolicy(never=(3,)),
        lambda: RetryPolicy(when="yes"),
        lambda: RetryPolicy(when=a_coroutine_function),
        lambda: RetryPolicy(max_time=-1),
        lambda: RetryPolicy(max_time="60"),
        lambda: RetryPolicy(backoff=5),
        lambda: policies_of(3, "retry="),
        lambda: policies_of([RetryPolicy(), Fixed(3)], "retry="),
        lambda: policies_of(Fixed(3), "retry="),
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
