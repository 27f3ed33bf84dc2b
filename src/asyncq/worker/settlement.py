"""Make an outcome durable, then ack.

    succeeded          store and reply -> what follows in its workflow -> ack
    retry              copy with the next attempt number, delayed -> ack
    snoozed, postponed, deferred, staged, throttled   copy with the same attempt number, delayed -> ack
    failed, rejected   dead letter with the error -> store and reply -> error callback -> its workflow hears of it ->
                       ack; where the dead letter cannot be published because of the message itself, the broker's own
                       reject stands for the ack
    cancelled          store and reply -> its workflow hears of it -> ack
    expired            store and reply -> its workflow hears of it -> ack; after a failed attempt as failed, with its
                       own kind of reply
    drained            copy with the same attempt number -> ack
    repeated           ack: all of it was done for the first message
    lease lost         nothing: the broker delivers it again

"Store" is for apps with a result store. One that is away for as long as the lease lasts has the task handed back, as
when a worker stops: it runs again.

What would run again only after it has expired ends as expired at once: its sender need not wait to hear of it. Its
error is kept among the dead letters: a failure that nobody sees would be lost.

Invariant: every publish is confirmed and mandatory before the ack. A crash between the two duplicates, never loses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Mapping

from asyncq.broker import DeadLetterRecord, Delay
from asyncq.clock import Clock
from asyncq.errors import (
    ConfigurationError,
    LeaseLost,
    MalformedMessage,
    MessageTooLarge,
    Refused,
    ResultTooLarge,
)
from asyncq.history import FailedAttempt, history_of, history_text, last_failure
from asyncq.life import RUNS, runs_of
from asyncq.loggers import get_logger
from asyncq.message import (
    ATTEMPT,
    DUE_AT,
    FIRST_AT,
    HISTORY,
    STAGED_UNTIL,
    TURN_AT,
    UNKNOWN_SINCE,
    HeaderValue,
    ReplyType,
    copy_of,
    cut_text,
    first_at_ms_of,
    too_late_ms_of,
    turn_at_ms_of,
)
from asyncq.outcome import (
    Cancelled,
    Deferred,
    Drained,
    Expired,
    Failed,
    Failure,
    LostLease,
    Outcome,
    Postponed,
    Rejected,
    Repeated,
    RetryLater,
    Snoozed,
    Staged,
    Succeeded,
    Throttled,
)
from asyncq.stages import first_leg
from asyncq.status import TaskState
from asyncq.worker.continuing import Continuing, Following
from asyncq.worker.execution import Executed
from asyncq.worker.publishing import Publishing
from asyncq.worker.recording import End, NotKept, Recording

__all__ = ["Settlement"]

log = get_logger("asyncq.worker")

_Again = RetryLater | Snoozed | Postponed | Deferred | Staged | Throttled

_ERROR_BYTES = 500
_REASON_BYTES = 4 * 1024


class Settlement:
    """Settles what was executed.

    Args:
        publishing: Publishes what follows from an outcome.
        continuing: Sends the error callbacks, and goes on with the workflows that tasks belong to.
        recording: Writes into the result store.
        clock: For the time of a failure, and when a copy is due.
        worker: Host and process id, for dead letters.
        max_result_bytes: A larger result makes a failure of a success; None for what a message may have.
    """

    def __init__(
        self,
        publishing: Publishing,
        continuing: Continuing,
        recording: Recording,
        clock: Clock,
        worker: str,
        max_result_bytes: int | None = None,
    ) -> None:
        self._publishing = publishing
        self._callbacks = continuing.callbacks
        self._continuing = continuing
        self._recording = recording
        self._clock = clock
        self._worker = worker
        self._max_result_bytes = max_result_bytes

    async def settle(self, executed: Executed) -> Outcome:
        """Publish what follows from the outcome, then ack.

        Returns:
            The outcome that was settled: a result too large to send makes a failure of a success, and a lease that
            is gone leaves nothing to settle.
        """
        try:
            return await self._settle_or_hand_back(executed)
        except LeaseLost as error:
            message = executed.delivery.message
            log.warning(
                "lease lost before the ack, so the broker delivers it again",
                task=message.type,
                task_id=message.task_id,
                cause=str(error),
            )
            return LostLease()

    async def _settle_or_hand_back(self, executed: Executed) -> Outcome:
        try:
            return await self._settle(executed, executed.outcome)
        except NotKept as error:
            log.error(  # noqa: TRY400 - the traceback of our own waiting says nothing more
                "the end of a task could not be kept, so its message goes back and it runs again",
                task=executed.delivery.message.type,
                task_id=executed.delivery.message.task_id,
                cause=str(error),
            )
            await self._hand_back(executed)
            return Drained()

    async def _tell(self, executed: Executed, end: End, reply: Callable[[], Awaitable[None]]) -> None:
        """Write the end into the result store, and tell the sender."""
        await self._recording.tell(executed.delivery, executed.number, executed.record, end, reply)

    async def _settle(self, executed: Executed, outcome: Outcome) -> Outcome:
        match outcome:
            case Succeeded(result):
                return await self._succeed(executed, outcome, result)
            case RetryLater() | Snoozed() | Postponed() | Deferred() | Staged() | Throttled():
                return await self._run_again(executed, outcome)
            case Failed(failure, reason):
                await self._fail(executed, ReplyType.FAILED, failure, reason)
            case Rejected(failure, reason):
                await self._fail(executed, ReplyType.REJECTED, failure, reason)
            case Cancelled(attempts):
                await self._cancel(executed, attempts)
            case Expired():
                await self._expire(executed, outcome)
            case Drained():
                await self._hand_back(executed)
            case Repeated():
                await executed.delivery.ack()
            case LostLease():
                pass
        return outcome

    async def _succeed(self, executed: Executed, outcome: Outcome, result: bytes) -> Outcome:
        delivery = executed.delivery
        if self._max_result_bytes is not None and len(result) > self._max_result_bytes:
            limit = MessageTooLarge(f"max_result_bytes is {self._max_result_bytes}")
            return await self._settle(executed, _too_large(limit, len(result)))

        async def reply() -> None:
            await self._publishing.reply(delivery, ReplyType.SUCCEEDED, result)

        following = self._continuing.following(delivery)
        if following is not None:
            try:
                following.check(result)
            except (ResultTooLarge, MalformedMessage) as error:
                return await self._settle(executed, Failed(Failure.of(error), "the result cannot be passed on"))
        try:
            await self._tell(executed, End(TaskState.SUCCEEDED, result), reply)
        except MessageTooLarge as error:
            return await self._settle(executed, _too_large(error, len(result)))
        if following is not None:
            await following.succeeded(result)
        await delivery.ack()
        return outcome

    async def _cancel(self, executed: Executed, attempts: int | None) -> None:
        delivery = executed.delivery

        async def reply() -> None:
            await self._publishing.reply(delivery, ReplyType.CANCELLED, b"null")

        await self._tell(executed, End(TaskState.CANCELLED, attempts=attempts), reply)
        if (following := self._continuing.following(delivery)) is not None:
            await following.ended(ReplyType.CANCELLED, b"null")
        await delivery.ack(hold=executed.hold)

    async def _run_again(self, executed: Executed, outcome: _Again) -> Outcome:
        """Publish the copy that runs later; where that cannot be, a dead letter with the task's own error."""
        delivery, now_ms = executed.delivery, self._clock.now_ms()
        failed_now = isinstance(outcome, RetryLater)
        failure = outcome.failure if isinstance(outcome, RetryLater) else last_failure(delivery.message.headers)
        at_most_s = outcome.at_most_s if isinstance(outcome, RetryLater) else None
        # Nothing is early: a part of a millisecond counts as one, and a leg does not shorten the whole.
        if isinstance(outcome, (Staged, Throttled)):
            due_ms, delay_s = outcome.until_ms, max(0, outcome.until_ms - now_ms) / 1000
        else:
            due_ms, delay_s = now_ms + math.ceil(outcome.delay_s * 1000), outcome.delay_s
        expires_ms = too_late_ms_of(delivery.message)
        if expires_ms is not None and not isinstance(outcome, Deferred):  # an unknown task may be known elsewhere
            if due_ms >= expires_ms:
                attempts = executed.number if failed_now else executed.number - 1
                return await self._settle(executed, Expired(expires_ms, now_ms, failure, attempts))
            if at_most_s is not None:
                at_most_s = min(at_most_s, (expires_ms - now_ms) / 1000)
        try:
            leg_s, staged = first_leg(delay_s, due_ms)
            headers = {**self._next_headers(executed, outcome), **staged, DUE_AT: due_ms}
            copy = copy_of(delivery.message, headers=headers, drop=_dropped_by(outcome))
            await self._publishing.copy(delivery, copy, Delay(leg_s, at_most_s))
        except (MessageTooLarge, Refused, ConfigurationError) as error:  # the last one: nobody waits for so long
            failure = outcome.failure if isinstance(outcome, RetryLater) else Failure.of(error)
            failed = Failed(failure, f"could not be published again: {error}")
            return await self._settle(executed, failed)
        noted = outcome.failure if isinstance(outcome, RetryLater) else None
        await self._recording.again(delivery, executed.number, executed.record, due_ms, noted)
        await delivery.ack(hold=executed.hold)
        return outcome

    def _next_headers(self, executed: Executed, outcome: _Again) -> dict[str, HeaderValue]:
        attempt = executed.number
        match outcome:
            case RetryLater(failure, first_ms=first_ms):
                history = history_text(self._history(executed, failure, self._clock.now_ms()))
                return {ATTEMPT: attempt + 1, HISTORY: history, **({} if first_ms is None else {FIRST_AT: first_ms})}
            case Snoozed(delay_s) | Postponed(delay_s):
                message = executed.delivery.message
                first_ms = first_at_ms_of(message)
                # A snooze must not use up the time that the policy gives to retries.
                moved = {} if first_ms is None else {FIRST_AT: first_ms + round(delay_s * 1000)}
                # What waits for a place has had its turn, and keeps it.
                turn_ms = turn_at_ms_of(message) or self._clock.now_ms()
                turn = {TURN_AT: turn_ms} if isinstance(outcome, Postponed) else {}
                return {ATTEMPT: attempt, RUNS: runs_of(message) + 1, **moved, **turn}
            case Deferred(since_ms):
                return {ATTEMPT: attempt, UNKNOWN_SINCE: since_ms}
            case Staged():
                return {ATTEMPT: attempt}
            case Throttled(until_ms):
                return {ATTEMPT: attempt, TURN_AT: until_ms}

    def _history(self, executed: Executed, failure: Failure, now_ms: int) -> tuple[FailedAttempt, ...]:
        """Return the attempts that failed, this one included."""
        last = FailedAttempt.of(failure, attempt=executed.number, failed_at_ms=now_ms, worker=self._worker)
        return (*history_of(executed.delivery.message.headers), last)

    async def _expire(self, executed: Executed, expired: Expired) -> None:
        """Tell the sender that the task does not run any more, and ack.

        Nobody wants the task now, so it is no dead letter; but an attempt that has failed is told of there.
        """
        delivery, failure = executed.delivery, expired.failure
        times = {"expires_at": expired.expires_ms, "met_at": expired.met_ms}
        body: dict[str, object] = dict(times)
        if failure is not None:
            texts = {"type": failure.type, "message": failure.message}
            body["error"] = {name: cut_text(text, _ERROR_BYTES) for name, text in texts.items()}

        async def reply() -> None:
            try:
                await self._publishing.reply(delivery, ReplyType.EXPIRED, _json(body))
            except MessageTooLarge:
                await self._publishing.reply(delivery, ReplyType.EXPIRED, _json(times))

        end = End(TaskState.EXPIRED, failure=failure, reason="expired", attempts=expired.attempts)

        async def go_on(following: Following) -> None:
            await following.ended(ReplyType.EXPIRED, _json(body))

        if failure is None:
            await self._tell(executed, end, reply)
            if (following := self._continuing.following(delivery)) is not None:
                await go_on(following)
            await delivery.ack(hold=executed.hold)
        else:
            record = self._record(executed, failure, "expired", expired.attempts)
            await self._bury(executed, record, end, reply, go_on)

    async def _hand_back(self, executed: Executed) -> None:
        """Publish the message again, to the end of its queue: a requeue would count as a delivery before 4.3."""
        delivery = executed.delivery
        headers = {ATTEMPT: executed.number, RUNS: runs_of(delivery.message) + 1}
        copy = copy_of(delivery.message, headers=headers)
        try:
            await self._publishing.copy(delivery, copy, None)
        except (MessageTooLarge, Refused) as error:
            log.warning(
                "the task could not be handed back, the broker does it with the end of the connection",
                task=delivery.message.type,
                task_id=delivery.message.task_id,
                cause=str(error),
            )
            return
        now_ms = self._clock.now_ms()
        await self._recording.again(delivery, executed.number, executed.record, now_ms, None)
        await delivery.ack(hold=executed.hold)

    async def _fail(self, executed: Executed, kind: str, failure: Failure, reason: str) -> None:
        async def reply() -> None:
            await self._publishing.failure_reply(executed.delivery, kind, failure)

        async def go_on(following: Following) -> None:
            await following.failed(kind, failure)

        end = End(TaskState.FAILED, failure=failure, reason=reason, rejected=kind == ReplyType.REJECTED)
        await self._bury(executed, self._record(executed, failure, reason, executed.number), end, reply, go_on)

    async def _bury(
        self,
        executed: Executed,
        record: DeadLetterRecord,
        end: End,
        reply: Callable[[], Awaitable[None]],
        go_on: Callable[[Following], Awaitable[None]],
    ) -> None:
        """Put the message among the dead letters, tell store and sender, send the callback, tell the workflow, ack."""
        delivery, message = executed.delivery, executed.delivery.message
        buried = True
        try:
            await self._publishing.dead_letter(delivery, record)
        except (MessageTooLarge, Refused) as error:
            buried = False
            log.warning(
                "the dead letter could not be published, so the broker dead-letters the message, without the error",
                task=message.type,
                task_id=message.task_id,
                reason=record.reason,
                error=record.failure.type,
                cause=str(error),
            )
        try:
            await self._tell(executed, end, reply)
        except NotKept as error:  # it must not run again: it is a dead letter already
            log.error(  # noqa: TRY400 - the traceback of our own waiting says nothing more
                "the result store never took the end of a task that has failed; its dead letter tells of it",
                task=message.type,
                task_id=message.task_id,
                cause=str(error),
            )
        await self._callbacks.call(delivery, record)
        if (following := self._continuing.following(delivery)) is not None:
            await go_on(following)
        if buried:
            await delivery.ack(hold=executed.hold)
        else:
            await delivery.reject()

    def _record(self, executed: Executed, failure: Failure, reason: str, attempts: int) -> DeadLetterRecord:
        now_ms = self._clock.now_ms()
        # A message that was met too late for its next attempt has this failure in its history already.
        is_told = attempts < executed.number
        return DeadLetterRecord(
            failure=failure,
            reason=cut_text(reason, _REASON_BYTES),
            failed_at_ms=now_ms,
            attempts=attempts,
            queue=executed.delivery.queue,
            worker=self._worker,
            history=history_of(executed.delivery.message.headers)
            if is_told
            else self._history(executed, failure, now_ms),
        )


def _dropped_by(outcome: _Again) -> tuple[str, ...]:
    """Return the headers that the copy does not take over: each attempt needs a turn, and counts runs, of its own."""
    always = (UNKNOWN_SINCE, STAGED_UNTIL)
    match outcome:
        case RetryLater():
            return (*always, TURN_AT, RUNS)
        case Snoozed():
            return (*always, TURN_AT)
        case _:
            return always


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _too_large(error: MessageTooLarge, size: int) -> Failed:
    too_large = ResultTooLarge(
        f"The task has succeeded, but its result of {size} bytes is too large for a reply ({error}). Return less: put "
        "large data into a file or an object store, and return its name. Or declare the task with reply=False."
    )
    too_large.__cause__ = error
    return Failed(Failure.of(too_large), "result too large")
