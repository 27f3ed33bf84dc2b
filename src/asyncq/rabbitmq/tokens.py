"""What a leader does with the messages in its queue: states, of which the newest counts, seeds, probes and notes.

The queue has one active consumer at a time. It holds one message for each state, unsettled, so that its successor gets
it back. A new state is published first, and the old message acked when the new one has arrived: a crash in between
leaves two, so each has an epoch, and the newest wins.

    a candidate starts      publishes a seed: else a queue that holds nothing would never tell anybody that it leads
    the first message       it leads. It publishes a probe, and when that arrives it has seen all that was there. It
                            holds its probe: else who follows on a leader without states would hear nothing
    many notes are there    those above `_NOTES_AT_START` go to the end of the queue, behind the probe: held, they would
                            use up the prefetch, and what is behind them would never come
    later                   states that are older than the one held, seeds and others' probes are acked at once

Shared by the adapters: it knows neither connections nor tags.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from asyncq.errors import BrokerError, LeaseLost
from asyncq.message import Message, new_id

__all__ = ["HELD_AT_ONCE", "TokenNote", "Tokens", "seed"]

HELD_AT_ONCE = 1000
"""The prefetch: states and notes that are not done yet. The broker's most is 2,000."""

_NOTES_AT_START = HELD_AT_ONCE // 2

EPOCH = "asyncq-epoch"
STATE = "asyncq-state"
_STATE, _SEED, _PROBE = "asyncq.state", "asyncq.seed", "asyncq.probe"

T = TypeVar("T")
Ack = Callable[[], Awaitable[None]]


def seed() -> Message:
    """Return the message that tells a candidate that it leads, where there is nothing else."""
    return _message(_SEED, b"{}", {})


def _message(kind: str, body: bytes, headers: Mapping[str, Any]) -> Message:
    unique = new_id()
    return Message(type=kind, body=body, task_id=unique, message_id=unique, headers=headers)


@dataclass(frozen=True, slots=True)
class TokenNote:
    """See `asyncq.leadership.Note`."""

    message: Message
    done: Ack


@dataclass(frozen=True, slots=True)
class _Held:
    epoch: int
    state: bytes
    ack: Ack


class Tokens:
    """The messages of one term.

    Args:
        put: Publishes into the term's own queue, and waits for the confirm.
        lost: Returns when the term is over.
    """

    def __init__(
        self, put: Callable[[Message], Awaitable[None]], lost: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self._put = put
        self._lost = lost
        self._held: dict[str, _Held] = {}
        self._saved: dict[str, bytes] = {}  # what was saved last; it may not have arrived yet
        self._epoch = 0
        self._notes: asyncio.Queue[TokenNote] = asyncio.Queue()
        self._leads = asyncio.Event()
        self._probed = asyncio.Event()
        self._seen_all = asyncio.Event()
        self._probe = ""
        self._probe_held: Ack | None = None

    @property
    def states(self) -> Mapping[str, bytes]:
        """The newest states, by name."""
        return {name: held.state for name, held in self._held.items()}

    async def arrived(self, message: Message, ack: Ack) -> None:
        """Take in a delivery. Deliveries come in order: nothing is awaited before each has its place."""
        self._leads.set()
        name, epoch = message.headers.get(STATE), message.headers.get(EPOCH)
        if message.type == _STATE and isinstance(name, str) and isinstance(epoch, int):
            held = self._held.get(name)
            newer = held is None or epoch >= held.epoch
            if newer:
                self._held[name] = _Held(epoch, message.body, ack)
                self._epoch = max(self._epoch, epoch)
            if not newer:
                await ack()
            elif held is not None:
                await held.ack()
        elif message.type == _PROBE:
            if message.message_id == self._probe:
                self._seen_all.set()
                ack, self._probe_held = self._probe_held or _nothing, ack
            await ack()
        elif message.type == _SEED:
            await ack()
        elif self._notes.qsize() < _NOTES_AT_START or self._seen_all.is_set() or not await self._put_back(message):
            self._notes.put_nowait(TokenNote(message, ack))
        else:
            await ack()

    async def _put_back(self, note: Message) -> bool:
        """Put a note behind our probe, in the order in which they come; return whether that was done."""
        await self._probed.wait()
        try:
            await self._put(replace(note, message_id=new_id()))
        except BrokerError:
            return False
        return True

    async def begin(self) -> None:
        """Wait until we lead, and have seen all that predecessors left.

        Raises:
            LeaseLost: The connection was lost before.
        """
        await self.unless_lost(self._leads.wait())
        await self._put_probe()
        self._probed.set()
        await self.unless_lost(self._seen_all.wait())

    async def _put_probe(self) -> None:
        probe = _message(_PROBE, b"{}", {})
        self._probe = probe.message_id or ""
        await self._put(probe)

    async def save(self, name: str, state: bytes) -> None:
        """See `asyncq.leadership.Term.save`."""
        self._saved[name] = state
        self._epoch += 1
        await self._put(_message(_STATE, state, {STATE: name, EPOCH: self._epoch}))

    async def renew(self) -> None:
        """Publish all that is held anew, so that nothing is held for longer than the broker's consumer timeout."""
        await self._put_probe()
        for name, state in self.states.items():
            await self.save(name, self._saved.get(name, state))

    async def note(self) -> TokenNote:
        """See `asyncq.leadership.Term.note`."""
        return await self.unless_lost(self._notes.get())

    async def unless_lost(self, waiting: Coroutine[Any, Any, T]) -> T:
        """Wait for something, as long as the term lasts.

        Raises:
            LeaseLost: It is over.
        """
        wanted, over = asyncio.ensure_future(waiting), asyncio.ensure_future(self._lost())
        try:
            await asyncio.wait({wanted, over}, return_when=asyncio.FIRST_COMPLETED)
            if wanted.done() and not over.done():
                return wanted.result()
            raise over_message()
        finally:
            for task in (wanted, over):
                task.cancel()
            await asyncio.gather(wanted, over, return_exceptions=True)


async def _nothing() -> None:
    pass


def over_message() -> LeaseLost:
    """Return the error of a term that is over."""
    return LeaseLost("This process leads no longer: its connection or its queue is gone. Another one may lead now.")
