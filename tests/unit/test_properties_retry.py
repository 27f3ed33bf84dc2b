"""Retries for any policy, any attempt and any time: never past a cap or a bound, and never early on the ladder."""

from __future__ import annotations

import asyncio
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from asyncq.broker import Delay
from asyncq.message import ATTEMPT, FIRST_AT
from asyncq.outcome import Failed, RetryLater
from asyncq.rabbitmq.delay_routing import MAX_DELAY_S, UNIT_MS, rounded_units
from asyncq.retry import Exponential, Fixed, Linear, RetryPolicy
from asyncq.signals import Retry
from worker_kit import make_kit

SECONDS = st.floats(0, 1e6) | st.integers(0, 10**6)
BACKOFFS = (
    st.builds(Fixed, SECONDS)
    | st.builds(Linear, first=SECONDS, step=SECONDS, max=SECONDS)
    | st.builds(Exponential, first=SECONDS, factor=st.floats(1, 100), max=SECONDS)
)
POLICIES = st.builds(
    RetryPolicy,
    on=st.sampled_from([(ConnectionError,), (OSError, KeyError), (Exception,)]),
    never=st.sampled_from([(), (ConnectionResetError,), (LookupError,)]),
    max_attempts=st.integers(1, 20) | st.just(10**9),
    max_time=st.none() | SECONDS,
    backoff=BACKOFFS,
    jitter=st.booleans(),
)
ERRORS = st.sampled_from(
    [ConnectionResetError("a"), TimeoutError("b"), KeyError("c"), ExceptionGroup("g", [OSError()])]
)
ATTEMPTS = st.integers(1, 25) | st.just(2**63 - 1)


@given(st.lists(POLICIES, min_size=1, max_size=3), ERRORS, ATTEMPTS, st.none() | SECONDS, st.none() | SECONDS)
def test_a_retry_keeps_the_bounds_of_the_policy_that_made_it(policies, error, number, elapsed_s, after_s):
    """Its attempts, its time, its backoff with jitter, its cap; `Retry(after=)` is exact."""

    async def work() -> None:
        raise error if after_s is None else Retry(after=after_s) from error

    async def outcome():
        kit = await make_kit()
        kit.task(retry=policies)(work)
        headers = {ATTEMPT: number}
        if elapsed_s is not None:
            headers[FIRST_AT] = max(1, kit.clock.now_ms() - int(elapsed_s * 1000))
        return (await kit.execution.execute(kit.delivery("work", headers=headers))).outcome

    ended = asyncio.run(outcome())
    asked = [policy for policy in policies if policy.forbids(error) or policy.matches(error)]
    deciding = asked[0] if asked and not asked[0].forbids(error) else None
    if isinstance(ended, Failed):
        assert ended.reason in {"not retried by the policy", "attempts exhausted", "time for retries exhausted"}
        return
    assert isinstance(ended, RetryLater)
    assert deciding is not None or after_s is not None
    policy = deciding or policies[0]
    assert number < policy.max_attempts
    backoff_s = policy.backoff.delay_s(number)
    if after_s is None:
        assert backoff_s / 2 <= ended.delay_s <= backoff_s <= policy.backoff.cap_s
        assert policy.jitter or ended.delay_s == backoff_s
        assert ended.at_most_s is not None
        assert ended.delay_s <= ended.at_most_s <= policy.backoff.cap_s
    else:
        assert (ended.delay_s, ended.at_most_s) == (after_s, None)
    if policy.max_time is not None:
        assert ended.delay_s <= policy.max_time - (elapsed_s or 0) + 0.002  # headers have whole milliseconds


@given(BACKOFFS, st.integers(1, 50), st.floats(0, 1))
def test_the_ladder_makes_no_backoff_shorter_and_none_longer_than_its_cap(backoff, attempt, draw):
    """Rounded up to few hops, by at most a sixteenth; only a delay of less than a unit must become one."""
    delay_s = RetryPolicy(backoff=backoff).delay_s(attempt, draw=draw)
    if delay_s > MAX_DELAY_S:
        return
    waited_ms = rounded_units(Delay(delay_s, backoff.cap_s)) * UNIT_MS
    asked_ms, cap_ms = (Fraction(str(value)) * 1000 for value in (delay_s, backoff.cap_s))
    assert asked_ms <= waited_ms
    assert waited_ms < max(cap_ms, asked_ms) + UNIT_MS or waited_ms == UNIT_MS
    assert waited_ms <= asked_ms * 17 / 16 + 2 * UNIT_MS
