"""The circuit breaker of one queue at work: it counts how deliveries end, and pauses the queue's slots.

    delivery ends ─▶ `asyncq.breaker` counts ──opens──▶ subscription.pause() ──the clock──▶ subscription.resume()

Running attempts finish undisturbed, and what was brought and not started is kept by the subscription. Where there is
no subscription, because the queue was deleted or the broker is away, the pause goes on: the next one begins paused.

Invariant: only the work of the queue is judged. What was not run, or asked for something else than an attempt more,
counts neither as failed nor as done.
"""

from __future__ import annotations

import asyncio

from asyncq.breaker import Breaker, BreakerState, CircuitBreaker
from asyncq.broker import Subscription
from asyncq.clock import Clock, Timer
from asyncq.loggers import get_logger
from asyncq.outcome import Failed, Failure, Outcome, RetryLater, Succeeded

__all__ = ["QueueBreaker"]

log = get_logger("asyncq.worker")

_NOT_THE_WORK = frozenset({"delivered too often", "result not serialisable"})
"""Reasons of a `Failed` that say nothing about the work: it did not run, or it ran to its end."""


class QueueBreaker:
    """Pauses the slots of one queue while nearly every delivery fails.

    Args:
        queue: The queue's name, for the log.
        rules: When to pause, and for how long.
        clock: What the pause goes by.
    """

    def __init__(self, queue: str, rules: CircuitBreaker, clock: Clock) -> None:
        self._queue = queue
        self._rules = rules
        self._clock = clock
        self._breaker = Breaker(rules)
        self._subscription: Subscription | None = None
        self._timer: Timer | None = None
        self._resuming: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def state(self) -> BreakerState:
        """The present state."""
        return self._breaker.state

    async def attach(self, subscription: Subscription) -> None:
        """Pause this subscription from now on, before any slot takes from it; at once, where the pause goes on."""
        self._subscription = subscription
        if self.state == "open":
            await subscription.pause()

    def detach(self) -> None:
        """Let go of the subscription: it has ended."""
        self._subscription = None

    def close(self) -> None:
        """Count and pause no more: the slots stop."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in self._resuming:
            task.cancel()

    async def ended(self, outcome: Outcome, began_s: float) -> None:
        """Count a delivery that has ended, and pause the slots where it was one failure too many. Raises nothing.

        Args:
            outcome: How its attempt ended.
            began_s: When it began, by the monotonic clock, in seconds.
        """
        failure = _failure_of(outcome)
        if self._closed or (failure is None and not isinstance(outcome, Succeeded)):
            return
        now_s = self._clock.monotonic()
        state = self._breaker.count(failed=failure is not None, began_s=began_s, now_s=now_s)
        if state == "closed":
            log.info("a delivery has succeeded, so the slots of this queue go on as before", queue=self._queue)
        elif state == "open" and failure is not None:
            self._warn(failure)
            await self._pause()

    def _warn(self, failure: Failure) -> None:
        failed, of = self._breaker.counts()
        pause_s, error = self._rules.pause_s, failure.type
        if not of:
            event = "the first delivery after the pause has failed too, so the slots of this queue pause again"
            log.warning(event, queue=self._queue, pause_s=pause_s, error=error)
            return
        log.warning(
            "nearly every delivery of this queue fails, so its slots pause",
            queue=self._queue,
            failed=failed,
            of=of,
            share=round(failed / of, 3),
            pause_s=pause_s,
            error=error,
        )

    async def _pause(self) -> None:
        self._timer = self._clock.call_later(self._rules.pause_s, self._half_open)
        try:
            if self._subscription is not None:
                await self._subscription.pause()
        except Exception:
            log.exception("the slots could not be paused", queue=self._queue)

    def _half_open(self) -> None:
        self._breaker.half_open(self._clock.monotonic())
        log.info("the pause is over: the slots of this queue work, and the first delivery decides", queue=self._queue)
        if self._subscription is not None:
            task = asyncio.get_running_loop().create_task(self._resume(self._subscription))
            self._resuming.add(task)
            task.add_done_callback(self._resuming.discard)

    async def _resume(self, subscription: Subscription) -> None:
        try:
            await subscription.resume()
        except Exception:
            log.exception("the slots could not be resumed", queue=self._queue)


def _failure_of(outcome: Outcome) -> Failure | None:
    match outcome:
        case RetryLater(failure):
            return failure
        case Failed(failure, reason) if reason not in _NOT_THE_WORK:
            return failure
        case _:
            return None
