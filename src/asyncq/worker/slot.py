"""A slot: take a delivery, execute it, settle it, take the next one.

Invariant: the loop ends only when its subscription does. One broken delivery, or a bug of ours, costs no other
delivery anything, and a delivery is settled once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from asyncq.broker import Delivery, Subscription
from asyncq.clock import Clock
from asyncq.errors import LeaseLost
from asyncq.loggers import get_logger
from asyncq.outcome import Failed, Failure, LostLease, Outcome
from asyncq.worker.attempt import Attempt
from asyncq.worker.attempts import Attempts
from asyncq.worker.execution import Executed, Execution
from asyncq.worker.pausing import QueueBreaker
from asyncq.worker.report import Report
from asyncq.worker.settlement import Settlement
from asyncq.worker.traces import Traces, current

__all__ = ["Observer", "Slot"]

log = get_logger("asyncq.worker")

_PAUSE_AFTER_BUG_S = 1.0

Observer = Callable[[Executed, Outcome, float], None]
"""Called in the worker's loop after each ack, and must take no time: how a delivery ran; what was settled, which is not
always how its attempt ended, because a result can be too large, or the lease lost; and the seconds since it came."""


class Slot:
    """What a slot does with a delivery. Slots differ by their loop only, so one object serves all of a worker.

    Args:
        execution: Runs deliveries.
        settlement: Settles them.
        attempts: Counts how they ended.
        clock: For durations.
        observers: Hear of each delivery that was settled.
        traces: Makes the spans of what never began.
    """

    def __init__(
        self,
        execution: Execution,
        settlement: Settlement,
        attempts: Attempts,
        clock: Clock,
        observers: Sequence[Observer] = (),
        traces: Traces | None = None,
    ) -> None:
        self._execution = execution
        self._settlement = settlement
        self._outcomes = attempts.outcomes
        self._clock = clock
        self._traces = traces or Traces()
        self._report = Report()
        self._observers = observers

    async def loop(self, subscription: Subscription, breaker: QueueBreaker | None = None) -> None:
        """Work until the subscription ends.

        Args:
            subscription: Where deliveries come from.
            breaker: Hears how each of them has ended.

        Raises:
            QueueGone: Its queue was deleted.
            BrokerError: The broker will not have us any more.
        """
        async for delivery in subscription:
            await self.handle(delivery, breaker)

    async def handle(self, delivery: Delivery, breaker: QueueBreaker | None = None) -> None:
        """Execute one delivery and settle it. Raises nothing."""
        started = self._clock.monotonic()
        executed, parked = Executed(delivery, 1, LostLease()), False
        try:
            executed = await self._execution.execute(delivery)
            if executed.span is None and (span := self._traces.of_end(delivery, executed.number, executed.outcome)):
                executed = replace(executed, span=span)
            with current(executed.span):
                outcome = await self._settlement.settle(executed)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - parked below, with its traceback
            _raise_if_cancelled(error)
            parked = True
            outcome = await self._park(executed, error)
        try:  # it is settled: whatever fails from here on, it must not be settled once more
            self._outcomes[type(outcome).__name__] += 1
            if not parked:
                self._execution.ended(executed, outcome)
            seconds = self._clock.monotonic() - started
            with current(executed.span):
                self._report.write(executed, outcome, seconds)
            if executed.span is not None:
                executed.span.end(outcome)
            for observe in self._observers:
                observe(executed, outcome, seconds)
        except Exception:
            log.exception("the end of a delivery could not be reported", queue=delivery.queue)
        if breaker is not None:  # what it judges is the attempt, not what became of the message
            await breaker.ended(executed.outcome, started)
        if executed.holding is not None:
            await self._keep_place(executed.holding, executed.delivery)

    async def _keep_place(self, attempt: Attempt, delivery: Delivery) -> None:
        """Wait until the thread has returned; until then its slot takes nothing new."""
        await attempt.returned()
        await delivery.free()

    async def _park(self, executed: Executed, error: BaseException) -> Outcome:
        """Put a delivery whose settlement had a bug among the dead letters.

        Given back, it would meet the same bug again, and so for ever. Where our own dead letter fails as well, the
        broker makes one of it, without the error.
        """
        delivery = executed.delivery
        log.error(
            "a delivery could not be settled, it goes among the dead letters",
            queue=delivery.queue,
            task=delivery.message.type,
            task_id=delivery.message.task_id,
            exc_info=error,
        )
        await asyncio.sleep(_PAUSE_AFTER_BUG_S)  # whatever is wrong, it must not become a busy loop
        failed = Failed(Failure.of(error), "internal error")
        try:
            return await self._settlement.settle(replace(executed, outcome=failed))
        except (Exception, asyncio.CancelledError) as again:  # noqa: BLE001 - the first one was told already
            _raise_if_cancelled(again)
            await self._reject(delivery)
            return failed

    async def _reject(self, delivery: Delivery) -> None:
        try:
            await delivery.reject()
        except LeaseLost:
            pass  # it is on its way already
        except Exception:
            log.exception("a delivery could not be rejected; it goes back with the connection", queue=delivery.queue)


def _raise_if_cancelled(error: BaseException) -> None:
    """Pass on a cancellation that somebody has asked for. The AMQP client makes some of its own."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error
