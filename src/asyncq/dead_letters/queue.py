"""`DeadLetterQueue`: the dead letters of one task queue, for whoever has to repair what failed.

Invariant: looking changes nothing, and no letter is lost by sending it back; see run.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import ValidationError

from asyncq.broker import Broker, DeadLetter, Publication, Queue
from asyncq.clock import Clock
from asyncq.dead_letters.copies import arguments_as_json, replay_of, with_arguments
from asyncq.dead_letters.filters import DeadLetterFilter
from asyncq.dead_letters.reports import LetterCount, PurgeReport, ReplayReport
from asyncq.dead_letters.run import Pace, Run
from asyncq.dead_letters.tally import RunTally, SummaryTally
from asyncq.errors import BrokerError, InvalidOption, MalformedMessage, NotSent, PartlyDone
from asyncq.keeping import keeping_or_default
from asyncq.message import Message
from asyncq.queue_names import check_queue_name
from asyncq.recording import Recorder, sent_update

__all__ = ["DeadLetterQueue"]

Report = TypeVar("Report", ReplayReport, PurgeReport)

Check = Callable[[str, bytes], None]
"""Checks a body against the task of this name, where that is known. Raises `pydantic.ValidationError`."""

_EVERYTHING = DeadLetterFilter()
_SAFE = (
    "No letter is lost: what was not done is where it was. Run it again to go on; at most the letters of one batch "
    "(100) may be sent twice, with the same task ids."
)


class DeadLetterQueue:
    """The dead letters of one task queue. Made by `AsyncQ.dead_letters`.

    Args:
        queue: The task queue.
        broker: An open broker.
        clock: For ages and rates.
        check: Checks changed arguments.
        timeout_s: How long a publish waits for its confirm, in seconds.
        recorder: The way to the app's result store; None where it has none.
    """

    def __init__(
        self,
        queue: str,
        broker: Broker,
        clock: Clock,
        check: Check,
        timeout_s: float,
        recorder: Recorder | None = None,
    ) -> None:
        self.queue = queue
        self._broker = broker
        self._letters = broker.dead_letters(queue)
        self._clock = clock
        self._check = check
        self._timeout_s = timeout_s
        self._recorder = recorder

    # --- looking

    async def count(self) -> int:
        """Return how many letters there are: exact and cheap. Those that somebody looks at just now are not counted.

        Raises:
            QueueGone: There is no such dead-letter queue.
            BrokerError: The broker could not be asked.
        """
        return await self._letters.count()

    async def browse(
        self, where: DeadLetterFilter | None = None, limit: int | None = None
    ) -> AsyncGenerator[DeadLetter, None]:
        """Look at letters, oldest first. They stay where they are, however many there are and however often.

        They are read as they are asked for, and are out of others' sight until the iteration ends: leave it early
        with `contextlib.aclosing`.

        Args:
            where: Which letters; all of them without it.
            limit: How many at most.

        Raises:
            QueueGone: There is no such dead-letter queue.
            BrokerError: The broker could not be asked, or the connection was lost.
        """
        where, now_ms = where or _EVERYTHING, self._clock.now_ms()
        if where == _EVERYTHING:
            browsing = self._letters.browse(limit=limit)
        elif limit == 0:
            return
        else:
            browsing = self._letters.browse()
        left = limit
        async with aclosing(browsing) as letters:  # type: ignore[type-var]
            async for letter in letters:
                if not where.matches(letter, now_ms):
                    continue
                yield letter
                left = None if left is None else left - 1
                if left == 0:
                    return

    async def summary(self, where: DeadLetterFilter | None = None) -> list[LetterCount]:
        """Return how many letters there are of each kind: by queue, task, error type and reason; the most first.

        All letters are read for it, and none is kept in memory.

        Args:
            where: Which letters; all of them without it.

        Raises:
            QueueGone: There is no such dead-letter queue.
            BrokerError: The broker could not be asked, or the connection was lost.
        """
        tally = SummaryTally()
        async with aclosing(self.browse(where)) as letters:
            async for letter in letters:
                tally.add(letter)
        return tally.counts()

    async def get(self, task_id: str) -> DeadLetter | None:
        """Return the oldest letter of a task; None where there is none.

        Args:
            task_id: The task's id.

        Raises:
            QueueGone: There is no such dead-letter queue.
            BrokerError: The broker could not be asked, or the connection was lost.
        """
        async with aclosing(self.browse(DeadLetterFilter(ids=[task_id]), limit=1)) as letters:
            async for letter in letters:
                return letter
        return None

    # --- repairing

    async def replay(  # noqa: PLR0913 - each is an answer to "which, where to, how"
        self,
        where: DeadLetterFilter | None = None,
        *,
        to: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        rate: float | None = None,
        limit: int | None = None,
        dry_run: bool = False,
        progress: Callable[[ReplayReport], object] | None = None,
    ) -> ReplayReport:
        """Send letters back, to the queue that they came from: the same tasks, with the same ids, attempts from 1.

        Each is published, and confirmed, before it leaves the dead-letter queue. One that cannot be sent stays, is
        counted with the reason, and the others go on. No more letters are looked at than were there at the
        beginning, so what fails again at once does not go round. Where the call is cancelled, what is under way is
        finished, and the rest stays.

        Args:
            where: Which letters; all of them without it.
            to: Another queue for all of them.
            arguments: Arguments that are changed or added, by name. Where the app knows the task, they are checked.
            rate: How many a second at most.
            limit: How many at most, oldest first.
            dry_run: Only look what would be done.
            progress: Called with the report so far, after each batch and from time to time.

        Returns:
            What was done.

        Raises:
            InvalidOption: An argument cannot be used.
            InvalidQueueName: `to` can be no queue.
            QueueGone: There is no such dead-letter queue.
            PartlyDone: It ended in the middle, with the connection for example. Doing it again is safe.
        """
        if to is not None:
            check_queue_name(to)
        changed = arguments_as_json(arguments or {})
        pace = Pace(rate, self._clock)
        tally = _tally(where, limit, dry_run=dry_run)
        run = self._run(where, tally, progress, tally.replay_report)

        def prepared(letter: DeadLetter) -> Publication | str:
            return self._replay_of(letter, to, changed)

        def reason_of(letter: DeadLetter) -> str | None:
            made = prepared(letter)
            return made if isinstance(made, str) else None

        async def publish(letters: Sequence[DeadLetter]) -> list[str | None]:
            return await self._publish([prepared(letter) for letter in letters])

        try:
            await (run.look(reason_of) if dry_run else run.act(publish, pace))
        except BrokerError as error:
            if not tally.examined:
                raise
            report = tally.replay_report()
            raise self._ended(error, report, f"{report.replayed} replayed") from error
        return tally.replay_report()

    async def purge(
        self,
        where: DeadLetterFilter | None = None,
        *,
        limit: int | None = None,
        dry_run: bool = False,
        progress: Callable[[PurgeReport], object] | None = None,
    ) -> PurgeReport:
        """Remove letters for good.

        Args:
            where: Which letters; all of them without it.
            limit: How many at most, oldest first.
            dry_run: Only look what would be done.
            progress: Called with the report so far, after each batch and from time to time.

        Returns:
            What was done.

        Raises:
            InvalidOption: An argument cannot be used.
            QueueGone: There is no such dead-letter queue.
            PartlyDone: It ended in the middle, with the connection for example. Doing it again is safe.
        """
        tally = _tally(where, limit, dry_run=dry_run)
        run = self._run(where, tally, progress, tally.purge_report)

        async def nothing(letters: Sequence[DeadLetter]) -> list[str | None]:
            return [None] * len(letters)

        try:
            await (run.look(lambda _: None) if dry_run else run.act(nothing, Pace(None, self._clock)))
        except BrokerError as error:
            if not tally.examined:
                raise
            report = tally.purge_report()
            raise self._ended(error, report, f"{report.purged} purged") from error
        return tally.purge_report()

    # --- inside

    def _run(
        self,
        where: DeadLetterFilter | None,
        tally: RunTally,
        progress: Callable[[Report], object] | None,
        report: Callable[[], Report],
    ) -> Run:
        def told() -> None:
            if progress is not None:
                progress(report())

        return Run(self._letters, where or _EVERYTHING, tally, self._clock, told)

    def _replay_of(self, letter: DeadLetter, to: str | None, changed: Mapping[str, str]) -> Publication | str:
        """Return what is published for a letter, or why it cannot be."""
        queue = to or letter.queue
        if queue is None:
            return "it is not known which queue it was for: name one"
        message = replay_of(letter.message, self._clock.now_ms())
        if changed:
            try:
                message = self._changed(message, changed)
            except (MalformedMessage, ValidationError) as error:
                return f"task {message.type}: {_in_one_line(error)}"
        return Publication(message, Queue(queue))

    def _changed(self, message: Message, changed: Mapping[str, str]) -> Message:
        body = with_arguments(message.body, changed)
        self._check(message.type, body)
        return dataclasses.replace(message, body=body)

    async def _publish(self, prepared: Collection[Publication | str]) -> list[str | None]:
        items = [item for item in prepared if not isinstance(item, str)]
        errors = await self._broker.publish_many(items, timeout_s=self._timeout_s)
        await self._note([item for item, error in zip(items, errors, strict=True) if error is None])
        if items and all(isinstance(error, NotSent) for error in errors):
            raise next(error for error in errors if error is not None)  # the broker takes nothing: the next fail too
        published = iter(errors)
        return [
            item if isinstance(item, str) else None if (error := next(published)) is None else str(error)
            for item in prepared
        ]

    async def _note(self, sent: Sequence[Publication]) -> None:
        """Write into the result store that these tasks are queued again."""
        recorder = self._recorder
        if recorder is None or not sent:
            return
        now_ms = self._clock.now_ms()
        await recorder.note(
            [
                sent_update(item.message, item.to.queue, keeping, now_ms)
                for item in sent
                if isinstance(item.to, Queue) and (keeping := keeping_or_default(item.message)).failures
            ]
        )

    def _ended(self, error: BrokerError, report: ReplayReport | PurgeReport, done: str) -> PartlyDone:
        return PartlyDone(
            f"It ended in the middle: of {report.total} dead letters of queue {self.queue!r}, {report.examined} were "
            f"looked at and {done}. {error} {_SAFE}",
            report,
        )


def _tally(where: DeadLetterFilter | None, limit: int | None, *, dry_run: bool) -> RunTally:
    if where is not None and not isinstance(where, DeadLetterFilter):
        raise InvalidOption(f"A DeadLetterFilter(task=..., error=...) says which letters are meant, not {where!r}.")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise InvalidOption(f"limit= takes a number of letters, not {limit!r}.")
    return RunTally(where or _EVERYTHING, dry_run=dry_run, limit=limit)


def _in_one_line(error: MalformedMessage | ValidationError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or '(all of it)'}: {fault['msg']}" for fault in faults)
