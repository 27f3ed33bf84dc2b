"""Asking workers, from the side of who asks: `app.control`, and the command line.

    ping, active, stats, scale, drain ──▶ all workers, or those of one host, or one ──▶ their answers, and who is silent
    pause, resume ──▶ the journal, for workers that start later ──▶ all workers, for their answers

Invariant: a pause or a resume of all workers returns only when the broker has confirmed its entry in the journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from asyncq.asking import ask_workers, names_of
from asyncq.broker import Broker
from asyncq.cancellations import JOURNAL
from asyncq.clock import Clock
from asyncq.control_values import (
    MOST_SLOTS,
    Act,
    Answers,
    Drained,
    Draining,
    Order,
    QueueState,
    WorkerAnswer,
    WorkerPing,
    WorkerStatistics,
    WorkerTasks,
)
from asyncq.draining import wait_until_ended
from asyncq.errors import AccessRefused, BrokerUnavailable, InvalidOption, QueueGone, UnknownQueue
from asyncq.journal import CaughtUp, Entry
from asyncq.message import new_id
from asyncq.pauses import PauseNote, Pauses
from asyncq.queue_names import check_queue_name
from asyncq.settings import Settings

__all__ = ["ANSWER_S", "Controller"]

A = TypeVar("A", bound=WorkerAnswer)

ANSWER_S = 2.0
"""How long answers are waited for, where nobody says another time."""
_READ_S = 30.0


class Controller:
    """Asks the workers of one app, or of all apps in its namespace.

    Every question takes these arguments:

    - `host`: only workers on this host are meant;
    - `worker`: only this worker is meant, by its name as `ping` tells it, `host:pid`;
    - `timeout`: how long answers are waited for, in seconds. It ends sooner when all have answered.

    and returns `asyncq.control_values.Answers`: what was answered, and which workers were silent. With nobody there
    both are empty.

    Args:
        app: The app's name; None for the workers of all apps.
        broker: An open broker.
        settings: Timeouts, and for how long the journal keeps its entries.
        clock: For the times of its entries.
    """

    def __init__(self, app: str | None, broker: Broker, settings: Settings, clock: Clock) -> None:
        self._app = app
        self._broker = broker
        self._settings = settings
        self._clock = clock

    @property
    def everybody(self) -> Controller:
        """The same for the workers of all apps in this namespace."""
        return Controller(None, self._broker, self._settings, self._clock)

    # --- looking

    async def ping(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[WorkerPing]:
        """Return which workers are there.

        Raises:
            UnknownWorker: There are workers, and none of this name, or on this host.
            AnswersLost: The connection was lost while the answers came. Asking again is safe.
            BrokerError: The broker cannot be used for it.
        """
        return await self._ask(Order(do="ping", **self._whom(host, worker)), WorkerPing, timeout)

    async def active(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[WorkerTasks]:
        """Return what workers run at the moment. Raises what `ping` raises."""
        return await self._ask(Order(do="active", **self._whom(host, worker)), WorkerTasks, timeout)

    async def stats(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[WorkerStatistics]:
        """Return what workers have done since their start, and how they are. Raises what `ping` raises."""
        return await self._ask(Order(do="stats", **self._whom(host, worker)), WorkerStatistics, timeout)

    async def paused(self) -> Mapping[str, PauseNote]:
        """Return the queues that are paused everywhere, with what was noted. Workers need not be there.

        Raises:
            InvalidOption: Nothing of the kind is kept: `cancellations_kept_s` is 0.
            BrokerError: It cannot be read.
        """
        return (await self._pauses()).current

    async def _pauses(self) -> Pauses:
        self._check_journal()
        pauses = Pauses()
        journal = self._broker.journal(JOURNAL, keep_s=self._settings.cancellations_kept_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_S), journal.follow() as following:
                async for heard in following:
                    match heard:
                        case Entry(body):
                            if (note := PauseNote.read(body)) is not None:
                                pauses.take(note)
                        case CaughtUp():
                            return pauses
        raise BrokerUnavailable(
            f"Which queues are paused could not be read from the broker within {_READ_S:g} s; nothing was changed. Try "
            "again when the connection holds."
        )

    # --- changing

    async def pause(
        self, queue: str, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[QueueState]:
        """Let workers take nothing from a queue. What runs may finish, and what waits stays in the queue.

        It lasts until `resume`, also for workers that start later, whatever their app. With `host` or `worker` only
        those are meant that are there, until they are resumed or end.

        Raises:
            UnknownQueue: There is no such queue.
            InvalidOption: Pauses cannot be kept, because `cancellations_kept_s` is 0.
            PublishError: The broker did not take it, or it is unknown whether it did. Pausing again is safe.
            UnknownWorker: As for `ping`.
        """
        await self._check_queue(queue)
        return await self._pause_or_resume("pause", queue, host, worker, timeout)

    async def resume(
        self, queue: str, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[QueueState]:
        """Let workers take from a queue again. That of a queue that is not paused changes nothing.

        Without `host` and `worker` all pauses of the queue end. With one of them only what was paused there: a pause of
        all workers goes on.

        Raises:
            Exception: What `pause` raises.
        """
        check_queue_name(queue)
        return await self._pause_or_resume("resume", queue, host, worker, timeout)

    async def _pause_or_resume(
        self, do: Act, queue: str, host: str | None, worker: str | None, timeout: float
    ) -> Answers[QueueState]:
        order = Order(do=do, queue=queue, host=host, worker=worker, at_ms=self._clock.now_ms())
        if host is None and worker is None:
            note = await self._note(do, queue, order.at_ms)
            order = order.model_copy(update={"everywhere": True, "pause_id": note.id, "ends": note.ends})
        else:
            order = order.model_copy(update={"app": self._app})
        found = await self._ask(order, QueueState, timeout)
        if not order.everywhere and found.complete:
            _check_consumed(queue, found)
        return found

    async def _note(self, do: Act, queue: str, at_ms: int) -> PauseNote:
        """Append an entry to the journal, and return it."""
        self._check_journal()
        note = PauseNote(queue, at_ms, id=new_id())
        if do == "resume":
            note = PauseNote(queue, at_ms, ends=tuple((await self._pauses()).of(queue)))
            if not note.ends:
                return note
        journal = self._broker.journal(JOURNAL, keep_s=self._settings.cancellations_kept_s)
        await journal.append(note.to_json(), timeout_s=self._settings.publish_timeout_s)
        return note

    async def scale(
        self, queue: str, slots: int, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S
    ) -> Answers[QueueState]:
        """Let each worker process that consumes a queue run so many tasks of it at once. What runs may finish.

        It lasts until the worker ends: one that is started again has the slots of its command line.

        Args:
            queue: The queue.
            slots: 1 or more, for each worker process.
            host: See the class.
            worker: See the class.
            timeout: See the class.

        Raises:
            InvalidOption: The number cannot be used.
            UnknownQueue: Workers have answered, and none of them consumes the queue.
            UnknownWorker: As for `ping`.
        """
        check_queue_name(queue)
        if isinstance(slots, bool) or not isinstance(slots, int) or not 1 <= slots <= MOST_SLOTS:
            raise InvalidOption(f"A queue has 1 to {MOST_SLOTS} slots, not {slots!r}; to have none, pause it.")
        order = Order(do="scale", queue=queue, slots=slots, **self._whom(host, worker))
        found = await self._ask(order, QueueState, timeout)
        _check_consumed(queue, found)
        return found

    async def drain(
        self, *, host: str | None = None, worker: str | None = None, timeout: float = ANSWER_S, wait: float = 0
    ) -> Drained:
        """Let workers take nothing new, finish what runs, and end with their normal exit code.

        The answers come when they begin to drain. A supervisor starts no process in place of one that ends so.

        Args:
            host: See the class.
            worker: See the class.
            timeout: See the class.
            wait: For how long it waits, after the answers, until they have ended, in seconds; 0 for not at all. A few
                seconds are needed to see that one has ended.

        Returns:
            The answers; with `wait` also who has ended, and who has not.

        Raises:
            InvalidOption: `wait` is no time to wait.
            Exception: What `ping` raises.
        """
        if not 0 <= wait < math.inf:
            raise InvalidOption(f"wait= is a number of seconds, 0 or more, not {wait!r}.")
        order = Order(do="drain", **self._whom(host, worker))
        asked = await ask_workers(self._broker, order, Draining, timeout)
        drained = Drained(**dict(asked.answers))
        if not wait:
            return drained
        remaining = await wait_until_ended(self._broker, asked.meant, wait)
        ended = [name for name in asked.meant if name not in remaining]
        return drained.model_copy(update={"ended": names_of(ended), "remaining": names_of(remaining)})

    # --- inside

    def _whom(self, host: str | None, worker: str | None) -> dict[str, Any]:
        return {"app": self._app, "host": host, "worker": worker}

    async def _ask(self, order: Order, kind: type[A], timeout_s: float) -> Answers[A]:
        return (await ask_workers(self._broker, order, kind, timeout_s)).answers

    def _check_journal(self) -> None:
        if self._settings.cancellations_kept_s <= 0:
            raise InvalidOption(
                "Pauses are kept with cancellations, and these are switched off in this app: cancellations_kept_s is 0 "
                "(ASYNCQ_CANCELLATIONS_KEPT_S). One worker, or one host, can be paused all the same: worker=, host=."
            )

    async def _check_queue(self, queue: str) -> None:
        check_queue_name(queue)
        try:
            await self._broker.dead_letters(queue).count()  # each task queue has one
        except QueueGone:
            raise UnknownQueue(
                f"There is no queue {queue!r} on this broker. Check its name; the first worker of a queue declares it."
            ) from None
        except AccessRefused:  # then this user cannot know
            return


def _check_consumed(queue: str, found: Answers[QueueState]) -> None:
    if found.answers and all(answer.queue is None for answer in found.answers):
        raise UnknownQueue(
            f"None of the {len(found.answers)} workers that answered consumes queue {queue!r}. "
            "`asyncq ping` tells which queues they consume."
        )
