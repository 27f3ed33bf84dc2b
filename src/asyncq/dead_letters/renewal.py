"""The status of a task whose dead letter is sent back: its life begins anew.

That is written before the message goes, because what its worker writes may come at once, and must come after it.
Where the message could not go, the end of its life is put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from asyncq.broker import DeadLetter, Publication
from asyncq.errors import MalformedMessage
from asyncq.keeping import Keeping, keeping_of
from asyncq.message import Message
from asyncq.recording import Recorder, moment_of, sent_update
from asyncq.status import StatusUpdate, TaskState

__all__ = ["Renewal"]


class Renewal:
    """Writes it.

    Args:
        recorder: The app's way to its result store; None where it has none.
    """

    def __init__(self, recorder: Recorder | None) -> None:
        self._recorder = recorder

    async def begin(self, items: Sequence[Publication]) -> None:
        """Note that these are about to be sent. Raises nothing."""
        if self._recorder is None or not items:
            return
        now_ms = self._recorder.clock.now_ms()
        await self._recorder.note(
            [
                sent_update(item.message, getattr(item.to, "name", ""), keeping, now_ms, anew=True)
                for item in items
                if (keeping := _keeping(item.message)).failures
            ]
        )

    async def undo(self, letters: Iterable[DeadLetter]) -> None:
        """Note that these stay dead letters. Raises nothing."""
        updates = [_failed(letter) for letter in letters]
        if self._recorder is not None and updates:
            await self._recorder.note(updates)


def _failed(letter: DeadLetter) -> StatusUpdate:
    record, message = letter.record, letter.message
    return StatusUpdate(
        id=message.task_id,
        state=TaskState.FAILED,
        at=moment_of(letter.failed_at_ms or message.timestamp_ms or 0),
        attempt=0 if record is None else record.attempts,
        task=message.type,
        queue=letter.queue,
        worker=None if record is None else record.worker,
        error=None if record is None else record.failure,
        reason=letter.broker_reason if record is None else record.reason,
        ttl_s=_keeping(message).ttl_s,
    )


def _keeping(message: Message) -> Keeping:
    try:
        return keeping_of(message)
    except MalformedMessage:
        return Keeping()
