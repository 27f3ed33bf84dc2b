"""The circuit breaker's state machine: when it opens, what decides after the pause, what it keeps in memory."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncq import AsyncQ, CircuitBreaker, RetryPolicy
from asyncq.breaker import DEFAULT_BREAKER, Breaker
from asyncq.errors import ConfigurationError, InvalidOption

# How fast the machine is, is no property of a breaker.
unhurried = settings(deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])


def counted(breaker: Breaker, outcomes: str, now_s: float = 0.0) -> list[str]:
    """Count deliveries that begin and end at this moment, `x` failed and `.` succeeded, and return the changes."""
    changes = (breaker.count(failed=sign == "x", began_s=now_s, now_s=now_s) for sign in outcomes)
    return [change for change in changes if change is not None]


# --- what can be asked for


def test_durations_are_seconds_or_timedeltas() -> None:
    """As everywhere; equal values are equal breakers."""
    minutes = CircuitBreaker(window=timedelta(minutes=2), pause=timedelta(minutes=15))
    assert (minutes.window_s, minutes.pause_s) == (120, 900)
    assert minutes == CircuitBreaker(window=120, pause=900)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"failures": 0}, r"failures=...\) takes a share"),
        ({"failures": 95}, r"failures=...\) takes a share.*not 95"),
        ({"failures": True}, r"failures=...\) takes a share"),
        ({"failures": "0.9"}, r"failures=...\) takes a share"),
        ({"failures": float("nan")}, r"failures=...\) takes a share"),
        ({"at_least": 0}, r"at_least=...\) must be 1 or more deliveries"),
        ({"at_least": 2.5}, r"at_least=...\) must be 1 or more deliveries"),
        ({"at_least": True}, r"at_least=...\) must be 1 or more deliveries"),
        ({"window": 0}, r"window=...\) must be more than zero.*breaker=None"),
        ({"window": -1}, r"window=...\) must be zero or more"),
        ({"window": "60"}, r"window=...\) takes seconds or a timedelta"),
        ({"pause": 0}, r"pause=...\) must be more than zero"),
        ({"pause": float("inf")}, r"pause=...\) must be zero or more, and finite"),
        ({"pause": 901}, r"pause=...\) must be at most 900 s, not 901 s.*consumer timeout"),
    ],
)
def test_values_that_cannot_be_used_are_refused_at_once(options: Any, words: str) -> None:
    """The message says which one, and what is wanted."""
    with pytest.raises(InvalidOption, match=words):
        CircuitBreaker(**options)


def test_an_app_has_a_breaker_for_all_its_queues_unless_told_otherwise() -> None:
    """By default, for the app, for a queue; None switches it off."""
    mine, mails = CircuitBreaker(pause=5), CircuitBreaker(at_least=100)
    app = AsyncQ("shop", breaker=mine, queues={"mail": {"breaker": mails}, "once": {"breaker": None}, "plain": {}})
    assert app.breakers.of("shop") == app.breakers.of("plain") == mine
    assert app.breakers.of("mail") == mails
    assert app.breakers.of("once") is None
    assert AsyncQ("shop").breakers.of("shop") == DEFAULT_BREAKER == CircuitBreaker()
    off = AsyncQ("shop", breaker=None, queues={"mail": {"breaker": mails}})
    assert off.breakers.of("shop") is None
    assert off.breakers.of("mail") == mails


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"breaker": True}, r"AsyncQ\(breaker=...\) takes a CircuitBreaker, or None"),
        ({"queues": {"mail": {"breaker": RetryPolicy()}}}, r"'mail'.*\['breaker'\] takes a CircuitBreaker"),
        ({"queues": {"mail": {"braker": None}}}, r"no option 'braker'.*Known options: breaker"),
    ],
)
def test_what_is_no_breaker_is_refused_when_the_app_is_made(options: Any, words: str) -> None:
    """The message says where."""
    with pytest.raises(ConfigurationError, match=words):
        AsyncQ("shop", **options)


# --- when it opens


@pytest.mark.parametrize(
    ("rules", "outcomes", "opens_at"),
    [
        ({}, "x" * 20, 20),
        ({}, "x" * 19, None),
        ({}, "." + "x" * 19, 20),  # 19 of 20 are 95 %
        ({}, ".." + "x" * 38, 40),  # 38 of 40
        ({}, ".." + "x" * 37, None),
        ({"failures": 1}, "." + "x" * 200, None),
        ({"failures": 1, "at_least": 3}, "xxx", 3),
        ({"failures": 0.5, "at_least": 4}, "x.x.x", 5),  # only a failure opens it
        ({"failures": 0.7, "at_least": 10}, "..." + "x" * 7, 10),
        ({"failures": 0.01, "at_least": 1}, "x", 1),
    ],
)
def test_it_opens_when_enough_deliveries_ended_and_their_share_is_reached(
    rules: Any, outcomes: str, opens_at: int | None
) -> None:
    """With the very failure that reaches both."""
    breaker = Breaker(CircuitBreaker(**rules))
    before, rest = (outcomes, "") if opens_at is None else (outcomes[: opens_at - 1], outcomes[opens_at - 1 :])
    assert counted(breaker, before) == []
    assert breaker.state == "closed"
    if opens_at is not None:
        assert counted(breaker, rest) == ["open"]
        assert breaker.counts() == (outcomes[:opens_at].count("x"), opens_at)


def test_what_is_older_than_the_window_is_not_counted() -> None:
    """Neither failures nor successes."""
    breaker = Breaker(CircuitBreaker(at_least=10, window=60))
    assert counted(breaker, "x" * 9, now_s=100.0) == []
    assert counted(breaker, "x", now_s=160.0) == []
    assert breaker.counts() == (1, 1)
    assert counted(breaker, "." * 1000, now_s=161.0) == []
    assert counted(breaker, "x" * 10, now_s=222.0) == ["open"]


# --- the pause, and after it


def opened(now_s: float = 100.0) -> Breaker:
    breaker = Breaker(CircuitBreaker())
    assert counted(breaker, "x" * 20, now_s) == ["open"]
    return breaker


def test_nothing_that_ends_in_the_pause_is_counted() -> None:
    """Running attempts finish; they began before it."""
    breaker = opened()
    assert counted(breaker, "x" * 100 + "." * 100, now_s=110.0) == []
    assert breaker.state == "open"
    assert breaker.counts() == (20, 20)


def test_after_the_pause_the_first_success_closes_it_with_an_empty_window() -> None:
    """As many failures as ever are needed to open it again."""
    breaker = opened()
    breaker.half_open(130.0)
    assert breaker.state == "half-open"
    assert counted(breaker, ".", now_s=131.0) == ["closed"]
    assert counted(breaker, "x" * 19, now_s=131.0) == []
    assert counted(breaker, "x", now_s=131.0) == ["open"]


def test_after_the_pause_the_first_failure_opens_it_at_once() -> None:
    """However often; each pause ends in another trial."""
    breaker = opened()
    for n in range(1, 4):
        breaker.half_open(100.0 + 30 * n)
        assert counted(breaker, "x..x", now_s=101.0 + 30 * n) == ["open"]
    breaker.half_open(300.0)
    assert counted(breaker, ".", now_s=300.0) == ["closed"]


@pytest.mark.parametrize("failed", [True, False])
def test_a_delivery_that_began_before_the_pause_decides_nothing_after_it(failed: bool) -> None:
    """It tells how things were. Nor does what began on trial open it, once another one has closed it."""
    breaker = opened()
    breaker.half_open(130.0)
    for _ in range(100):
        assert breaker.count(failed=failed, began_s=99.0, now_s=131.0) is None
    assert breaker.state == "half-open"
    assert breaker.count(failed=False, began_s=130.0, now_s=132.0) == "closed"
    for _ in range(100):
        assert breaker.count(failed=True, began_s=130.5, now_s=133.0) is None
    assert breaker.state == "closed"


# --- the window


@unhurried
@given(
    window_s=st.sampled_from([0.5, 7.0, 60.0, 3600.0]),
    steps=st.lists(st.tuples(st.floats(0, 0.35), st.booleans()), max_size=200),
)
def test_the_window_counts_what_is_young_and_forgets_what_is_old(
    window_s: float, steps: list[tuple[float, bool]]
) -> None:
    """Against a list of all that ended: to a tenth of the window, and in ten slices at most."""
    breaker = Breaker(CircuitBreaker(failures=1, at_least=1_000_000, window=window_s))
    now_s, ended = 1000.0, []
    for step, failed in steps:
        now_s += step * window_s
        ended.append((now_s, failed))
        breaker.count(failed=failed, began_s=now_s, now_s=now_s)
        young = [was_failed for at, was_failed in ended if now_s - at < 0.899 * window_s]
        not_old = [was_failed for at, was_failed in ended if now_s - at < 1.001 * window_s]
        bad, of = breaker.counts()
        assert sum(young) <= bad <= sum(not_old)
        assert len(young) <= of <= len(not_old)
        assert len(breaker._slices) <= 10


@unhurried
@given(
    failures=st.floats(0.01, 1),
    at_least=st.integers(1, 50),
    events=st.lists(st.tuples(st.sampled_from("x.p"), st.floats(0, 10), st.floats(0, 100)), max_size=300),
)
def test_whatever_happens_it_opens_only_with_cause_and_closes_only_by_a_success_on_trial(
    failures: float, at_least: int, events: list[tuple[str, float, float]]
) -> None:
    """`p` is the end of a pause; each delivery has taken some time."""
    breaker, now_s = Breaker(CircuitBreaker(failures=failures, at_least=at_least)), 0.0
    for sign, step, took_s in events:
        now_s += step
        before = breaker.state
        if sign == "p":
            if before == "open":
                breaker.half_open(now_s)
                assert breaker.counts() == (0, 0)
            continue
        change = breaker.count(failed=sign == "x", began_s=now_s - took_s, now_s=now_s)
        assert breaker.state == (change or before)
        match before, change:
            case "closed", "open":
                bad, of = breaker.counts()
                assert sign == "x"
                assert of >= at_least
                assert bad / of >= failures
            case "half-open", "open":
                assert sign == "x"
            case "half-open", "closed":
                assert sign == "."
            case _, unchanged:
                assert unchanged is None
