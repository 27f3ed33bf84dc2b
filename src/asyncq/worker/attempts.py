"""Which attempts run here, and which redelivery belongs to one of them.

A lost lease does not stop the code: the broker gives the message out again, often to this same worker. Then the
running attempt takes the redelivery as its new lease. Where it does not come back within `LEASE_PATIENCE_S` of a
working connection, another worker has it, and the attempt here is cancelled.

Invariant: an attempt is in the table from its start until its code has ended or was given up, so the table is as
small as the number of slots and of those orphans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator

from asyncq.broker import Broker, Delivery
from asyncq.clock import Clock
from asyncq.loggers import get_logger
from asyncq.message import Message
from asyncq.outcome import LostLease
from asyncq.worker.attempt import Attempt
from asyncq.worker.revocations import is_of_any

__all__ = ["LEASE_PATIENCE_S", "Attempts"]

log = get_logger("asyncq.worker")

LEASE_PATIENCE_S = 60.0
_LOOKS = 6


class Attempts:
    """The attempts whose code runs in this worker.

    Args:
        broker: Only its status is read: while there is no connection, nothing can come back.
        clock: What that patience goes by.
        lease_patience_s: How long a lost lease may take to come back, in seconds of a working connection.

    Attributes:
        outcomes: How many deliveries ended how.
        started: How many attempts have begun.
        on_start: Called when one begins.
        on_given_up: Called when there is one attempt more that goes on although it was given up.
    """

    def __init__(self, broker: Broker, clock: Clock, lease_patience_s: float = LEASE_PATIENCE_S) -> None:
        self._broker = broker
        self._clock = clock
        self._look_after_s = lease_patience_s / _LOOKS
        self._running: set[Attempt] = set()
        self._by_message: dict[str, Attempt] = {}
        self._overdue: set[Attempt] = set()
        self.outcomes: Counter[str] = Counter()
        self.started = 0
        self.on_start: Callable[[], None] | None = None
        self.on_given_up: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._running))

    def __len__(self) -> int:
        return len(self._running)

    @property
    def overdue(self) -> int:
        """How many attempts go on although they were given up."""
        return len(self._overdue)

    def given_up(self) -> tuple[Attempt, ...]:
        """Return the attempts that go on although they were given up."""
        return tuple(self._overdue)

    def add(self, attempt: Attempt) -> None:
        """Take in an attempt that starts."""
        self.started += 1
        attempt.on_orphaned = self._orphaned
        attempt.on_late_end = self._ended_late
        self._running.add(attempt)
        message_id = attempt.delivery.message.message_id
        if message_id is not None:
            self._by_message.setdefault(message_id, attempt)
        if self.on_start is not None:
            self.on_start()

    def remove(self, attempt: Attempt) -> None:
        """Let go of an attempt that is concluded; one whose code goes on is only counted from now on."""
        self._running.discard(attempt)
        message_id = attempt.delivery.message.message_id
        if message_id is not None and self._by_message.get(message_id) is attempt:
            del self._by_message[message_id]
        if not attempt.finished:
            self._overdue.add(attempt)
            if self.on_given_up is not None:
                self.on_given_up()

    def cancel(self, ids: Container[str]) -> None:
        """Tell the attempts of these tasks and workflows to stop."""
        for attempt in self:
            if attempt.interrupted != "cancel" and is_of_any(attempt.delivery.message, ids):
                log.info("a running task is cancelled", seconds=round(attempt.seconds, 3), **_keys(attempt))
                attempt.interrupt("cancel")

    def adopt(self, delivery: Delivery) -> Attempt | None:
        """Return the running attempt that this redelivery belongs to, with its lease renewed; mostly there is none.

        The id alone does not tell: a producer may use one twice. So the message must be the same, and the lease
        of the attempt lost.
        """
        message_id = delivery.message.message_id
        attempt = None if message_id is None else self._by_message.get(message_id)
        if attempt is None or not _same(attempt.delivery.message, delivery.message):
            return None
        if not attempt.orphaned and not attempt.delivery.is_lost:
            return None
        if attempt.finished or attempt.interrupted is not None or attempt not in self._running:
            return None
        attempt.adopt(delivery)
        log.info("a running attempt got its lease back", **_keys(attempt))
        return attempt

    def _orphaned(self, attempt: Attempt) -> None:
        log.warning("lease lost while the task runs; it goes on, and the broker delivers it again", **_keys(attempt))
        self._expect_back(attempt, attempt.delivery, _LOOKS)

    def _expect_back(self, attempt: Attempt, lost: Delivery, looks: int) -> None:
        if attempt.finished or attempt.delivery is not lost:
            return
        if looks == 0:
            log.warning("the lease did not come back: another worker has it, cancelled here", **_keys(attempt))
            attempt.interrupt("lease")
            return
        looks -= self._broker.status().state in {"ready", "blocked"}
        self._clock.call_later(self._look_after_s, self._expect_back, attempt, lost, looks)

    def _ended_late(self, attempt: Attempt) -> None:
        self._overdue.discard(attempt)
        self.remove(attempt)
        if attempt.span is not None and attempt.orphaned:  # else its slot has said how it ended
            attempt.span.end(LostLease())
        event = (
            "the task ended without a lease, so its outcome is dropped and it runs again"
            if attempt.orphaned
            else "code that was given up has ended"
        )
        log.warning(event, seconds=round(attempt.seconds, 3), **_keys(attempt))


def _same(first: Message, second: Message) -> bool:
    return first.task_id == second.task_id and first.type == second.type and first.body == second.body


def _keys(attempt: Attempt) -> dict[str, object]:
    return {
        "task": attempt.task.name,
        "task_id": attempt.delivery.message.task_id,
        "attempt": attempt.number,
        "queue": attempt.delivery.queue,
    }
