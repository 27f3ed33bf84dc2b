"""Sending: from a signature to a confirmed message, and from replies to handles.

    signature ─▶ message (ids, reply_to, headers) ─▶ broker.publish ─▶ handle
    mailbox ─▶ reply ─▶ the pending reply of its task id ─▶ whoever waits at a handle

Invariant: a handle is returned only for a message that the broker has confirmed. Replies are kept only as long as
a handle for them lives, so replies that nobody claims take no memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakValueDictionary

from asyncq.body import ON_FAILURE, with_key
from asyncq.broker import Broker, Delay, Exchange, Mailbox, Publication
from asyncq.canceller import Canceller
from asyncq.clock import Clock
from asyncq.context import TaskContext, current_context
from asyncq.controller import Controller
from asyncq.errors import (
    BrokerError,
    BrokerUnavailable,
    InvalidOption,
    NoContext,
    NotSent,
    PartlySent,
    PublishError,
    ReplyLost,
)
from asyncq.life import SENT_AT
from asyncq.loggers import get_logger
from asyncq.message import (
    DEADLINE_AT,
    DUE_AT,
    EXPIRES_AT,
    PARENT_ID,
    ROOT_ID,
    SOFT_LIMIT_MS,
    TIME_LIMIT_MS,
    HeaderValue,
    Message,
    deadline_ms_of,
    new_id,
    root_id_of,
)
from asyncq.options import Sending
from asyncq.outbox import Outbox
from asyncq.pending_reply import PendingReply
from asyncq.queue_names import check_queue_name
from asyncq.recording import Recorder, sent_update
from asyncq.results import ResultHandle
from asyncq.settings import Settings
from asyncq.signature import Signature
from asyncq.stages import first_leg

if TYPE_CHECKING:
    from asyncq.tracing.spans import Tracing

__all__ = ["Client"]

log = get_logger("asyncq.client")

R = TypeVar("R")

_IN_FLIGHT = 1000
"""How many confirms `send_many` waits for at once: enough to fill the pipe, few enough to bound the memory."""


class Client:
    """Sends signatures through a broker; the `Sender` that tasks know.

    Args:
        app: The app's name, for `app_id`.
        broker: An open broker.
        settings: Timeouts and names.
        clock: For timestamps, `eta` and `expires`.
        recorder: Writes what was sent into the result store; None where there is none.
        tracing: Makes the spans of what is sent; None for none.

    Attributes:
        recorder: The same.
        tracing: The same.
        canceller: Cancels tasks by their ids.
        controller: Asks workers.
        outbox: Publishes what it sends.
    """

    def __init__(
        self,
        app: str,
        broker: Broker,
        settings: Settings,
        clock: Clock,
        recorder: Recorder | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.recorder = recorder
        self.tracing = tracing
        self.canceller = Canceller(broker, settings, clock)
        self.controller = Controller(app, broker, settings, clock)
        self.outbox = Outbox(broker, settings.publish_timeout_s, tracing)
        self._app = app
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._tasks_exchange = f"{settings.namespace}.tasks"
        self._checked_queues: set[str] = set()
        self._pending: WeakValueDictionary[str, PendingReply] = WeakValueDictionary()
        self._mailbox: Mailbox | None = None
        self._opened: asyncio.Future[Mailbox]
        self._reader: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """Stop reading replies. Whoever still waits for one is told."""
        self._closed = True
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        self._mailbox = None
        self._lose(ReplyLost("The app was closed, and its reply queue with it."))
        if self.recorder is not None:
            await self.recorder.close()

    async def send_signature(self, signature: Signature[R]) -> ResultHandle[R]:
        """Publish the signature, and return once the broker has confirmed it.

        Raises:
            Unroutable: There is no such queue.
            InvalidOption: It would expire before it is due.
            PublishError: One of its other subclasses says what happened, and whether sending again is safe.
        """
        publication, handle = await self._prepare(signature)
        await self._send(signature, publication)
        return handle

    async def call_signature(self, signature: Signature[R]) -> R:
        """Publish the signature and wait for its result.

        Raises:
            TaskFailed: The task has finally failed.
            TaskExpired: Its `expires=` was over before it could run, or run again.
            ResultTimeout: No result within the send's `timeout=`, or `call_timeout_s` of the settings.
            PublishError: As `send_signature`.
        """
        publication, handle = await self._prepare(signature, reply=True)
        await self._send(signature, publication)
        timeout_s = signature.sending.timeout_s
        return await handle.result(self._settings.call_timeout_s if timeout_s is None else timeout_s)

    async def send_by(self, signature: Signature[Any], publish: Callable[[Publication], Awaitable[None]]) -> None:
        """Send the signature by another way to the broker, without a reply.

        Args:
            signature: What to send.
            publish: Returns once the broker has confirmed it. What it raises passes unchanged.

        Raises:
            InvalidOption: It would expire before it is due.
        """
        publication, _ = await self._prepare(signature, reply=False)
        await self._send(signature, publication, publish)

    async def send_many(self, signatures: Iterable[Signature[R]]) -> list[ResultHandle[R]]:
        """Publish many signatures with their confirms pipelined. The iterable is read as it is needed.

        Returns:
            A handle for each, in order.

        Raises:
            PartlySent: Some were not taken; its `outcomes` tell which, and why.
        """
        outcomes: list[ResultHandle[R] | PublishError] = []
        source = iter(signatures)
        try:
            while batch := list(islice(source, _IN_FLIGHT)):
                outcomes += await self._send_batch(batch)
        except Exception as error:
            if not outcomes:
                raise
            raise PartlySent(
                f"The first {len(outcomes)} tasks were handled, and `outcomes` of this error has a handle or an error "
                f"for each. None after them was sent, because one of those cannot be: {error}",
                outcomes,
            ) from error
        errors = [item for item in outcomes if isinstance(item, PublishError)]
        if errors:
            raise PartlySent(
                f"{len(errors)} of {len(outcomes)} tasks were not, or perhaps not, sent; `outcomes` of this error has "
                f"a handle or an error for each. The first error: {errors[0]}",
                outcomes,
            ) from errors[0]
        return [item for item in outcomes if isinstance(item, ResultHandle)]

    async def _send_batch(self, batch: Sequence[Signature[R]]) -> list[ResultHandle[R] | PublishError]:
        prepared = [await self._prepare(signature) for signature in batch]
        errors = await self.outbox.publish_many([publication for publication, _ in prepared])
        sent = [
            (signature, publication.message)
            for signature, (publication, _), error in zip(batch, prepared, errors, strict=True)
            if error is None
        ]
        await self._note(sent)
        return [handle if error is None else error for (_, handle), error in zip(prepared, errors, strict=True)]

    async def _send(
        self,
        signature: Signature[Any],
        publication: Publication,
        publish: Callable[[Publication], Awaitable[None]] | None = None,
    ) -> None:
        await self.outbox.publish(publication, publish)
        await self._note([(signature, publication.message)])

    async def _note(self, sent: Sequence[tuple[Signature[Any], Message]]) -> None:
        """Write into the result store that the broker has these: only now is it known."""
        if self.recorder is None:
            return
        now_ms = self._clock.now_ms()
        updates = [
            sent_update(message, signature.sending.queue or signature.queue, keeping, now_ms)
            for signature, message in sent
            if (keeping := signature.sending.keeping.over(signature.keeping)).states
        ]
        if updates:
            await self.recorder.note(updates)

    def handle_of(self, task_id: str, task: str | None, decode: Callable[[bytes], R]) -> ResultHandle[R]:
        """Return a handle for a task that anybody has sent.

        Args:
            task_id: Its id.
            task: Its name, where another one's id is to be refused.
            decode: Reads the result's JSON.
        """
        # The store knows more than the first reply: a dead letter may have been sent back since, and lives again.
        pending = self._pending.get(task_id) if self.recorder is None else None
        return ResultHandle(
            task_id,
            pending,
            decode,
            self.recorder,
            task,
            is_sent=False,
            cancel=lambda: self.canceller.cancel([task_id]),
        )

    # --- messages

    async def _prepare(
        self, signature: Signature[R], *, reply: bool | None = None
    ) -> tuple[Publication, ResultHandle[R]]:
        if not isinstance(signature, Signature):
            raise InvalidOption(f"A signature is sent, such as `task.s(1, 2)`, not {signature!r}.")
        sending = signature.sending
        queue = sending.queue or signature.queue
        if queue not in self._checked_queues:
            check_queue_name(queue)
            self._checked_queues.add(queue)
        if reply is None:
            reply = signature.reply if sending.reply is None else sending.reply
        task_id = sending.task_id or new_id()
        now_ms = self._clock.now_ms()
        delay_s, expires_ms = sending.times_at(now_ms)
        keeping = sending.keeping.over(signature.keeping)
        headers: dict[str, HeaderValue] = {
            SENT_AT: now_ms,  # before the headers: a tick was sent at its fire time, and users have no such header
            **sending.headers,
            **keeping.headers(),
            **_lineage(),
            **_limits(sending, now_ms),
        }
        if delay_s > 0:
            due_ms = headers[DUE_AT] = now_ms + round(delay_s * 1000)
            delay_s, staged = first_leg(delay_s, due_ms)
            headers.update(staged)
        if expires_ms is not None:
            headers[EXPIRES_AT] = expires_ms
        pending, reply_to = None, None
        if reply:
            reply_to = (await self._open_mailbox()).address
            pending = self._expect(task_id)
        body = signature.body
        if sending.says_on_failure:
            body = with_key(body, ON_FAILURE, b"null" if sending.on_failure is None else sending.on_failure.to_json())
        message = Message(
            type=signature.name,
            body=body,
            task_id=task_id,
            message_id=new_id(),
            reply_to=reply_to,
            headers=headers,
            timestamp_ms=now_ms,
            app_id=self._app,
        )
        publication = Publication(
            message, Exchange(self._tasks_exchange, queue), Delay(delay_s) if delay_s > 0 else None
        )
        due_at_ms = headers.get(DUE_AT)

        async def cancel() -> None:
            await self.canceller.cancel([task_id], due_at_ms)

        # Of a task whose states are not kept, its replies know more than the store.
        recorder = self.recorder if keeping.states else None
        return publication, ResultHandle(task_id, pending, signature.decode, recorder, signature.name, cancel=cancel)

    def _expect(self, task_id: str) -> PendingReply:
        pending = self._pending.get(task_id)
        # Sent again: what was lost before is lost for the old handle, and what came before is that one's end.
        if pending is None or pending.lost is not None or pending.final is not None:
            pending = self._pending[task_id] = PendingReply()
        return pending

    # --- replies

    async def _open_mailbox(self) -> Mailbox:
        """Return the reply queue; the first send that wants a reply opens it.

        Raises:
            NotSent: It cannot be had, or not in time.
        """
        if self._mailbox is not None:
            return self._mailbox
        if self._closed:
            raise NotSent("Nothing was sent: the app is closed.")
        if self._reader is None or self._reader.done():
            self._opened = asyncio.get_running_loop().create_future()
            self._reader = asyncio.create_task(self._read_replies(self._opened), name="asyncq replies")
        timeout_s = self._settings.publish_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                # Shielded: the one who came first may be cancelled, and others wait for the same queue.
                return await asyncio.shield(self._opened)
        except TimeoutError:
            raise NotSent(f"Nothing was sent: no reply queue could be opened within {timeout_s:g} s.") from None
        except BrokerError as error:
            raise NotSent(f"Nothing was sent, because no reply queue could be opened: {error}") from error

    async def _read_replies(self, opened: asyncio.Future[Mailbox]) -> None:
        cause: Exception = BrokerUnavailable("The app was closed.")
        try:
            async with self._broker.mailbox() as mailbox:
                self._mailbox = mailbox
                opened.set_result(mailbox)
                await self._take_replies(mailbox)
        except Exception as error:
            cause = error if isinstance(error, BrokerError) else BrokerUnavailable(str(error))
            if opened.done():
                log.exception("replies can no longer be read")
                self._lose(ReplyLost(f"Replies can no longer be read: {error}"))
        finally:
            self._mailbox = None
            if not opened.done():
                opened.set_exception(cause)
                opened.exception()  # seen: perhaps nobody waits any more, and asyncio would complain

    async def _take_replies(self, mailbox: Mailbox) -> None:
        while True:
            try:
                async for message in mailbox:
                    pending = self._pending.get(message.task_id)
                    if pending is not None:
                        pending.feed(message)
            except ReplyLost as error:
                self._lose(error)
            else:
                return

    def _lose(self, error: ReplyLost) -> None:
        for pending in list(self._pending.values()):
            pending.lose(error)


def _lineage() -> dict[str, Any]:
    """Return the headers that tell which task has sent this one."""
    context = _sending_task()
    return {} if context is None else {PARENT_ID: context.task_id, ROOT_ID: root_id_of(context.message)}


def _limits(sending: Sending, now_ms: int) -> dict[str, Any]:
    """Return the headers of a send's limits; mostly there are none.

    A task that has a deadline passes it on to what it sends: a later one does not help anybody who waits for it.
    """
    seconds = {TIME_LIMIT_MS: sending.time_limit_s, SOFT_LIMIT_MS: sending.soft_time_limit_s}
    found: dict[str, Any] = {name: round(limit_s * 1000) for name, limit_s in seconds.items() if limit_s is not None}
    context, own_ms = _sending_task(), sending.deadline_at(now_ms)
    declines = sending.says_deadline and own_ms is None
    inherited_ms = None if context is None or declines else deadline_ms_of(context.message)
    ends = [end for end in (own_ms, inherited_ms) if end is not None]
    return {**found, DEADLINE_AT: min(ends)} if ends else found


def _sending_task() -> TaskContext | None:
    try:
        return current_context()
    except NoContext:
        return None
