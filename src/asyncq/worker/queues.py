"""The queues of a worker: their slots, which others may change while they work.

Invariant: a queue has the slots that were asked for last, or none while it is paused; what runs may finish.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from asyncq.control_values import QueueView
from asyncq.loggers import get_logger
from asyncq.worker.attempts import Attempts
from asyncq.worker.consuming import QueueConsumer
from asyncq.worker.paused_queues import PausedQueues
from asyncq.worker.pausing import QueueBreaker

__all__ = ["WorkerQueues"]

log = get_logger("asyncq.worker")


class WorkerQueues:
    """The queues of one worker.

    Args:
        slots: Slots for each.
        breakers: Their circuit breakers.
        paused: Which of them are paused.
        on_total: Called with the new number of all slots.

    Attributes:
        slots: Slots for each.
        breakers: Their circuit breakers, where they have one.
        consumers: Who consumes them, from the worker's start on.
    """

    def __init__(
        self,
        slots: Mapping[str, int],
        breakers: Mapping[str, QueueBreaker],
        paused: PausedQueues,
        on_total: Callable[[int], object],
    ) -> None:
        self.slots = dict(slots)
        self.breakers = breakers
        self.consumers: dict[str, QueueConsumer] = {}
        self._paused = paused
        self._on_total = on_total
        paused.on_change = self._set

    def begin(self, consumers: Mapping[str, QueueConsumer]) -> Collection[QueueConsumer]:
        """Take in those that will consume, and return them."""
        self.consumers.update(consumers)
        for queue in self.consumers:
            self._set(queue)
        return self.consumers.values()

    def scale(self, queue: str, slots: int) -> None:
        """Give a queue so many slots."""
        if slots == self.slots[queue]:
            return
        log.info("slots changed", queue=queue, slots=slots, before=self.slots[queue])
        self.slots[queue] = slots
        self._on_total(sum(self.slots.values()))
        self._set(queue)

    def views(self, attempts: Attempts) -> tuple[QueueView, ...]:
        """Return how the queues are, with what runs of them."""
        return tuple(view for queue in self.slots if (view := self.view(queue, attempts)) is not None)

    def view(self, queue: str, attempts: Attempts) -> QueueView | None:
        """Return how a queue is; None where this worker does not consume it."""
        if queue not in self.slots:
            return None
        breaker = self.breakers.get(queue)
        return QueueView(
            name=queue,
            slots=self.slots[queue],
            running=sum(attempt.delivery.queue == queue for attempt in attempts),
            paused=self._paused.how(queue),
            breaker=None if breaker is None else breaker.state,
        )

    def _set(self, queue: str) -> None:
        consumer = self.consumers.get(queue)
        if consumer is not None:
            consumer.set_slots(0 if self._paused.how(queue) else self.slots[queue])
