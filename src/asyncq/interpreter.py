"""Going on with a program: what is published when a task of a workflow has ended, or when a workflow is sent.

    a value ─▶ what follows? ─┬─ a step ──▶ its message, with the rest of the program
                              ├─ a fork ──▶ its barrier, if anybody wants the list; then the messages of its members
                              └─ nothing ─┬─ inside a joined fork ──▶ arrives at its barrier
                                          └─ else ──▶ the workflow's end
    an error ─▶ the rest does not run: it arrives at the barrier, or is the workflow's end

    the last arrival ─▶ all members ─┬─ all have a value, or errors="collect" ──▶ the list is the value of the fork
                                     └─ some have failed ──▶ the fork has failed, and so on, outwards

The same code serves the sender and the workers; how things get to the broker is the `Road`'s.

Invariant: what is published has ids from the program, so doing all of it once more, after a crash, makes no new task.
The barrier is removed after what follows it is confirmed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pydantic_core import to_json

from asyncq.barrier import MOST_MEMBERS, Gathered, Member
from asyncq.body import ITEMS, ON_FAILURE, object_of
from asyncq.broker import Exchange, Publication
from asyncq.clock import Clock
from asyncq.ending import Ending, chord_expired, chord_failed, failed_of, in_short, list_of
from asyncq.errors import (
    BrokerError,
    InvalidOption,
    LeaseLost,
    MalformedMessage,
    MessageTooLarge,
    PublishError,
    QueueGone,
)
from asyncq.life import RUNS
from asyncq.loggers import get_logger
from asyncq.message import HeaderValue, Message, ReplyType, new_id
from asyncq.outcome import Failure
from asyncq.outgoing import Lineage, headers_and_delay
from asyncq.program import WHOLE, Arrival, Fork, Place, Program, Step, Workflow
from asyncq.program_json import place_in, with_next_read, with_place, with_raw_key
from asyncq.program_steps import has_step, is_joined, longest_s, members, next_messages, over_ms

__all__ = ["FlowRules", "Interpreter", "Road", "Source"]

log = get_logger("asyncq.workflow")

_AT_ONCE = 500
"""How many members are published together: enough to fill the pipe, few enough to bound the memory."""

_PLACE_BYTES = 2048
"""More than the place of a member has that its fork's did not."""


@dataclass(frozen=True, slots=True)
class FlowRules:
    """What holds for all workflows of an app.

    Attributes:
        exchange: Where tasks are sent to.
        max_bytes: How much a message may have.
        chord_kept_s: How long a barrier stands beyond what its members may take by their options, in seconds.
    """

    exchange: str
    max_bytes: int
    chord_kept_s: float


@dataclass(frozen=True, slots=True)
class Source:
    """Who goes on.

    Attributes:
        app_id: The app.
        parent_id: The task that has ended; None for a sender.
        headers: What its messages have beside their own: a trace.
        is_repeat: Whether this may have been done before, by somebody who has died in the middle.
    """

    app_id: str | None
    parent_id: str | None = None
    headers: Mapping[str, HeaderValue] = field(default_factory=dict)
    is_repeat: bool = False


class Road(Protocol):
    """How what follows gets to the broker. What a method raises ends the going on; it can be done again."""

    async def publish(self, item: Publication) -> None:
        """Publish a message; it is confirmed when this returns."""
        ...

    async def publish_many(self, items: Sequence[Publication]) -> Sequence[PublishError | None]:
        """Publish messages, and return for each None, which is confirmed, or why it can finally not be sent."""
        ...

    async def open_barrier(self, chord: str, head: bytes, keep_s: float) -> None:
        """See `asyncq.barrier.Barriers.open`."""
        ...

    async def arrive(self, arrival: Arrival, member: Member, *, is_repeat: bool) -> Gathered | None:
        """See `asyncq.barrier.Barriers.arrive`.

        Args:
            arrival: Where to.
            member: What is brought.
            is_repeat: Whether it may have been brought before.

        Raises:
            QueueGone: The barrier is gone, and what follows it has not been done.
        """
        ...

    async def end(self, workflow: Workflow, ending: Ending) -> None:
        """Tell and record how a workflow has ended."""
        ...


class Interpreter:
    """Goes on with the programs of workflows.

    Args:
        road: The way to the broker.
        clock: For timestamps, delays, and how long barriers stand.
        rules: What holds for all workflows.
        source: Who goes on.
    """

    def __init__(self, road: Road, clock: Clock, rules: FlowRules, source: Source) -> None:
        self._road = road
        self._clock = clock
        self._rules = rules
        self._source = source
        self._is_start = False

    async def start(self, program: Program, workflow: Workflow) -> None:
        """Publish what a program begins with.

        What cannot be sent is raised, and is no failure of the workflow's: whoever sends it hears of it here.

        Raises:
            Exception: What the road raises.
            MessageTooLarge: One of its messages is more than a message may be.
            InvalidOption: One would expire before it is due; or a fork has too many members.
        """
        self._is_start = True
        await self._run(Place(workflow, program), None)

    async def go_on(self, place: Place, ending: Ending) -> None:
        """Publish what follows from the end of a task.

        Args:
            place: The task's.
            ending: How it has ended.

        What follows and cannot be sent, because the broker finally refuses it, or its time is over, is a failure: it
        goes outwards, as that of a task does.

        Raises:
            LeaseLost: Whoever gets the task now goes on.
            BrokerError: The failure itself could not be brought to where it belongs.
        """
        if not (ending.is_success and place.has_more):
            await self._go_outwards(place, ending)
            return
        try:
            place = with_next_read(place)
            await self._run(place, ending.body)
        except LeaseLost:
            raise
        except (BrokerError, MalformedMessage, InvalidOption) as error:
            if self._is_start:
                raise
            await self._go_outwards(place, self._not_sent(place, ending, error))

    async def _go_outwards(self, place: Place, ending: Ending) -> None:
        """Take an end, after which nothing follows here, to the fork around it, or to the workflow."""
        if place.chord is not None:
            await self._arrive(place.workflow, place.chord, ending)
        elif place.ends or not ending.is_success:
            await self._road.end(place.workflow, ending)

    def _not_sent(self, place: Place, ending: Ending, error: Exception) -> Ending:
        """Return the end of what was to go on, and could not be sent: as that of the task in `ending`."""
        log.error(
            "what follows in a workflow could not be sent",
            task=ending.task,
            task_id=ending.task_id,
            workflow=place.workflow.id,
            cause=str(error),
        )
        now_ms = self._clock.now_ms()
        expired_ms = over_ms(place, now_ms) if isinstance(error, InvalidOption) else None
        if expired_ms is not None:  # the workflow's time is over, before its turn
            body = to_json({"expires_at": expired_ms, "met_at": now_ms})
            return Ending(ReplyType.EXPIRED, body, ending.task_id, ending.task)
        failure = Failure.of(error)
        return Ending.of_failure(ReplyType.FAILED, failure, task_id=ending.task_id, task=ending.task)

    def check(self, place: Place, value: bytes, carried: int) -> None:
        """See whether what follows can take this value, before anybody is told that there is one.

        Args:
            place: The task's.
            value: Its value.
            carried: How many bytes the message has that brought this place: what follows has no more, but the value.

        Raises:
            MessageTooLarge, MalformedMessage: It cannot.
        """
        place, limit = with_next_read(place), self._rules.max_bytes
        if not place.has_more:
            if place.chord is not None and len(value) > limit:
                raise MessageTooLarge(
                    f"It would arrive at its chord in a message of {len(value)} bytes, and at most {limit} may be "
                    "(max_message_bytes)."
                )
            return
        may_be_too_large = len(value) + carried + _PLACE_BYTES > limit
        if not may_be_too_large and _is_object(value):
            return
        for step, inside in next_messages(place):
            if step.into == WHOLE:
                _body(step, value)
            without = len(with_place(_body(step, None), inside)) if may_be_too_large else 0
            size = without if step.into is None else without + len(value)
            if size > limit:
                raise _too_large(step, size, limit)

    # --- what follows

    async def _run(self, place: Place, value: bytes | None) -> None:
        """Publish the first element of what follows, and give it the rest."""
        if not place.has_more:
            await self.go_on(place, Ending(ReplyType.SUCCEEDED, b"null" if value is None else value))
            return
        element, place = place.then[0], replace(place, then=place.then[1:])
        if isinstance(element, Step):
            await self._road.publish(self._publication(element, place, value))
        else:
            await self._fork(element, place, value)

    async def _fork(self, fork: Fork, place: Place, value: bytes | None) -> None:
        size = len(fork.members)
        if size > MOST_MEMBERS:
            raise InvalidOption(f"A group has {MOST_MEMBERS} members at most, and not {size}. Use chunks.")
        if not size:
            await self.go_on(place, Ending(ReplyType.SUCCEEDED, b"[]"))
            return
        kept_until_ms = await self._open(fork, place) if is_joined(fork, place) else 0
        # What holds no task has its value now. First, so that it is a worker that brings the last member.
        if not all(map(has_step, fork.members)):
            for member, inside in members(fork, place, kept_until_ms):
                if not has_step(member):
                    await self._run(replace(inside, then=member), value)
        await self._begin(fork, place, value, kept_until_ms)

    async def _open(self, fork: Fork, place: Place) -> int:
        """Make the barrier of a fork, and return until when it stands, in milliseconds since the epoch."""
        now_ms = self._clock.now_ms()
        keep_s = self._rules.chord_kept_s + longest_s(fork, now_ms)
        await self._road.open_barrier(fork.id, _head(fork, place), keep_s)
        return now_ms + round(keep_s * 1000)

    async def _begin(self, fork: Fork, place: Place, value: bytes | None, kept_until_ms: int) -> None:
        """Publish what the members of a fork begin with."""
        later: list[Place] = []
        batch: list[tuple[Place, Publication]] = []
        for member, inside in members(fork, place, kept_until_ms):
            begins = replace(inside, then=member)
            if member and isinstance(member[0], Step):
                batch.append((begins, self._publication(member[0], inside, value)))
            elif has_step(member):  # it begins with a fork of its own
                later.append(begins)
            if len(batch) == _AT_ONCE:
                await self._publish_members(batch)
                batch = []
        if batch:
            await self._publish_members(batch)
        for begins in later:
            try:
                await self._run(begins, value)
            except LeaseLost:
                raise
            except BrokerError as error:
                await self._not_begun(begins, error)

    async def _publish_members(self, batch: Sequence[tuple[Place, Publication]]) -> None:
        errors = await self._road.publish_many([item for _, item in batch])
        for (begins, _), error in zip(batch, errors, strict=True):
            if error is not None:
                await self._not_begun(begins, error)

    async def _not_begun(self, begins: Place, error: BrokerError) -> None:
        """Let a member that could not be sent have failed, as one does that has run; a sender is told of it instead."""
        if self._is_start:
            raise error
        step, _ = next(next_messages(begins))
        unsent = Ending(ReplyType.FAILED, b"null", step.id, step.task)
        await self._go_outwards(begins, self._not_sent(begins, unsent, error))

    def _publication(self, step: Step, place: Place, value: bytes | None) -> Publication:
        """Return the message of a step.

        Args:
            step: The step.
            place: What it carries.
            value: What came before.
        """
        workflow, now_ms = place.workflow, self._clock.now_ms()
        lineage = Lineage(self._source.parent_id, workflow.id, workflow.deadline_ms)
        headers, delay = headers_and_delay(step.sending, step.keeping, lineage, now_ms)
        headers.update(self._source.headers)
        if self._source.is_repeat:
            headers[RUNS] = 1
        message = Message(
            type=step.task,
            body=with_place(_body(step, value), place),
            task_id=step.id,
            message_id=new_id(),
            reply_to=workflow.reply_to if step.reply else None,
            headers=headers,
            timestamp_ms=now_ms,
            app_id=self._source.app_id,
        )
        return Publication(message, Exchange(self._rules.exchange, step.queue), delay)

    # --- barriers

    async def _arrive(self, workflow: Workflow, arrival: Arrival, ending: Ending) -> None:
        member = Member(arrival.index, ending.kind, in_short(ending), ending.task_id, ending.task)
        try:
            gathered = await self._road.arrive(arrival, member, is_repeat=self._source.is_repeat)
        except QueueGone as error:
            await self._road.end(workflow, chord_expired(arrival, ending, error))
            return
        if gathered is None:
            return
        try:
            await self._join(gathered)
            await gathered.done()
        finally:
            await gathered.give_back()

    async def _join(self, gathered: Gathered) -> None:
        """Go on with what all members have brought."""
        if gathered.was_held:
            self._source = replace(self._source, is_repeat=True)
        place, errors = _read_head(gathered.head)
        failed = [failed_of(member) for member in gathered.members if member.kind != ReplyType.SUCCEEDED]
        if failed and errors == "stop":
            await self.go_on(place, chord_failed(failed, len(gathered.members)))
            return
        limit = self._rules.max_bytes
        if gathered.is_too_large:
            too_large = Failure(
                "asyncq.errors.ResultTooLarge",
                f"The values of {len(gathered.members)} members together are more than a message may have, {limit} "
                "bytes. Let each return less: the name of a file, or of an object in a store.",
            )
            await self.go_on(place, Ending.of_failure(ReplyType.FAILED, too_large))
            return
        value = list_of(gathered.members)
        try:
            self.check(place, value, len(gathered.head))
        except (MessageTooLarge, MalformedMessage) as error:
            await self.go_on(place, Ending.of_failure(ReplyType.FAILED, Failure.of(error)))
        else:
            await self.go_on(place, Ending(ReplyType.SUCCEEDED, value))


def _body(step: Step, value: bytes | None) -> bytes:
    """Return the arguments of a step, with the value of what came before."""
    body = step.arguments
    if step.into == WHOLE and value is not None:
        body = value.strip()
        if not _is_object(body):
            raise MalformedMessage(
                f"Task {step.task!r} takes one model as its message, and what comes before it returns no object."
            )
    elif step.into is not None and value is not None:
        body = with_raw_key(body, step.into, value)
    if step.items is not None:
        body = with_raw_key(body, ITEMS, step.items)
    sending = step.sending
    if sending.says_on_failure:
        callback = sending.on_failure
        body = with_raw_key(body, ON_FAILURE, b"null" if callback is None else callback.to_json())
    return body


def _is_object(value: bytes) -> bool:
    return value.lstrip().startswith(b"{")


def _head(fork: Fork, place: Place) -> bytes:
    return with_place(to_json({"errors": fork.errors}), place)


def _read_head(head: bytes) -> tuple[Place, str]:
    place = place_in(head)
    if place is None:
        raise MalformedMessage("The queue of a chord does not say what follows.")
    return place, str(object_of(head).get("errors", "stop"))


def _too_large(step: Step, size: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(
        f"The message of task {step.task!r}, which follows, would have {size} bytes with this result, and at most "
        f"{limit} may be (max_message_bytes)."
    )
