"""How a sender's workflow gets to the broker: with the confirms of many messages pipelined, and each tried once.

Invariant: what returns has been confirmed. Where only a part was, the error says so, and sending the workflow again
with the same `task_id` is safe where its tasks may run twice: it makes the same ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from asyncq.barrier import Gathered, Member
from asyncq.broker import Broker, Publication, ReplyTo
from asyncq.clock import Clock
from asyncq.ending import Ending
from asyncq.errors import MessageTooLarge, NotSent, PartlySent, PublishError, Unroutable
from asyncq.message import Message, new_id
from asyncq.program import Arrival, Workflow

__all__ = ["Publish", "PublishMany", "SendingRoad", "one_by_one"]

Publish = Callable[[Publication], Awaitable[None]]
PublishMany = Callable[[Sequence[Publication]], Awaitable[Sequence[PublishError | None]]]

_AT_ONCE = 100


def one_by_one(publish: Publish) -> PublishMany:
    """Return how many messages are published by a way that takes one, some at a time."""

    async def publish_many(items: Sequence[Publication]) -> Sequence[PublishError | None]:
        outcomes: list[PublishError | None] = []
        for start in range(0, len(items), _AT_ONCE):
            some = items[start : start + _AT_ONCE]
            for ended in await asyncio.gather(*map(publish, some), return_exceptions=True):
                if ended is not None and not isinstance(ended, PublishError):
                    raise ended
                outcomes.append(ended)
        return outcomes

    return publish_many


class SendingRoad:
    """See `asyncq.interpreter.Road`.

    Args:
        broker: An open broker.
        clock: For timestamps.
        app: For `app_id`.
        timeout_s: How long one publish waits for its confirm.
        note: Hears of what was confirmed.
        publish_many: Publishes messages, and returns what became of each.
        is_new: Whether nobody can have sent this workflow before.
    """

    def __init__(  # noqa: PLR0913 - put together by the sending alone
        self,
        broker: Broker,
        clock: Clock,
        app: str,
        timeout_s: float,
        note: Callable[[Sequence[Publication]], Awaitable[None]],
        publish_many: PublishMany,
        *,
        is_new: bool,
    ) -> None:
        self._broker = broker
        self._clock = clock
        self._app = app
        self._timeout_s = timeout_s
        self._note = note
        self._publish_many = publish_many
        self._is_new = is_new
        self._opened: list[str] = []
        self._sent = 0

    async def publish(self, item: Publication) -> None:
        """See `asyncq.interpreter.Road.publish`. Raises what `publish_many` raises."""
        await self.publish_many([item])

    async def publish_many(self, items: Sequence[Publication]) -> Sequence[PublishError | None]:
        """See `asyncq.interpreter.Road.publish_many`. What was not sent is raised.

        Raises:
            PublishError: Nothing of the workflow was taken.
            PartlySent: Some of its messages were.
        """
        outcomes = await self._publish_many(items)
        taken = [item for item, error in zip(items, outcomes, strict=True) if error is None]
        self._sent += len(taken)
        if taken:
            await self._note(taken)
        if errors := [error for error in outcomes if error is not None]:
            await self._fail(errors)
        return outcomes

    async def _fail(self, errors: Sequence[PublishError]) -> None:
        if all(isinstance(error, (NotSent, Unroutable, MessageTooLarge)) for error in errors) and not self._sent:
            for chord in self._opened if self._is_new else ():  # nobody will come to them
                await self._broker.barriers().remove(chord)
            raise errors[0]
        if len(errors) == 1 and not self._sent:
            raise errors[0]
        raise PartlySent(
            f"{self._sent} first tasks of the workflow were sent, and {len(errors)} were not, or perhaps not; what "
            "follows them all cannot run. Send it again with the same task_id=, or cancel it by its id. The first "
            f"error: {errors[0]}",
            list(errors),
        ) from errors[0]

    async def open_barrier(self, chord: str, head: bytes, keep_s: float) -> None:
        """See `asyncq.interpreter.Road.open_barrier`."""
        await self._broker.barriers().open(chord, head, keep_s=keep_s, timeout_s=self._timeout_s)
        self._opened.append(chord)

    async def arrive(self, arrival: Arrival, member: Member, *, is_repeat: bool) -> Gathered | None:
        """See `asyncq.interpreter.Road.arrive`: for members that are empty, and have their value at once."""
        del is_repeat  # a barrier that is gone is always told to whoever sends
        return await self._broker.barriers().arrive(arrival.chord, arrival.size, member, timeout_s=self._timeout_s)

    async def end(self, workflow: Workflow, ending: Ending) -> None:
        """See `asyncq.interpreter.Road.end`: of workflows that hold no task at all."""
        if workflow.reply_to is None:
            return
        answer = Message(
            type=ending.kind,
            body=ending.body,
            task_id=workflow.id,
            message_id=new_id(),
            timestamp_ms=self._clock.now_ms(),
            app_id=self._app,
        )
        await self._broker.publish(answer, ReplyTo(workflow.reply_to), timeout_s=self._timeout_s)
