"""The seam for leadership: of many processes one leads, and its state outlives it.

    candidate ──the leader is gone──▶ leads: one term ──connection or queue lost──▶ candidate again

No candidate, tag or queue argument crosses it. The adapters of `asyncq.broker.Broker` stand behind it as well.

Invariant: what a term publishes goes out on the very connection by which it leads. A leader that was frozen or cut off
finds that connection closed, so nothing of its old term arrives after its successor has begun. Only effects
elsewhere are not fenced.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable

from asyncq.broker import Address, Delay
from asyncq.message import Message

__all__ = ["Leadership", "Note", "Term"]


class Note(Protocol):
    """A message for whoever leads."""

    @property
    def message(self) -> Message:
        """What was sent."""
        ...

    async def done(self) -> None:
        """Take it away. What is not done when a term ends comes to the next one.

        Raises:
            LeaseLost: The term is over.
        """
        ...


class Term(Protocol):
    """The time during which this process leads."""

    @property
    def states(self) -> Mapping[str, bytes]:
        """What was saved last, by name, in this term or by predecessors. A crash may leave the one before."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether the term is known to be over."""
        ...

    async def save(self, name: str, state: bytes, *, timeout_s: float) -> None:
        """Keep a state for this term and its successors.

        Raises:
            LeaseLost: The term is over.
            PublishError: It may not have been kept.
        """
        ...

    async def publish(self, message: Message, to: Address, *, delay: Delay | None = None, timeout_s: float) -> None:
        """Publish as `Broker.publish` does, but only while this process leads.

        Raises:
            LeaseLost: The term is over. Whether the message was taken is not known.
            PublishError: Its subclasses say what happened.
        """
        ...

    async def note(self) -> Note:
        """Wait for the next message for the leader.

        Raises:
            LeaseLost: The term is over.
        """
        ...

    async def lost(self) -> None:
        """Return when the term is over; never, while it lasts."""
        ...


@runtime_checkable
class Leadership(Protocol):
    """A broker by which processes agree on who leads."""

    def campaign(self, name: str) -> AbstractAsyncContextManager[AsyncIterator[Term]]:
        """Stand for the leadership of this name, again and again until the block ends.

        Each step of the iteration waits until this process leads. It ends the term before, so that another candidate
        may follow at once. Connections that cannot be had are tried again.

        Args:
            name: Letters, digits, `.`, `_`, `-`. Those who use one name have one leader.

        Raises:
            BrokerRefused: By the iteration: the broker will not have us.
        """
        ...

    async def tell_leader(self, name: str, message: Message, *, timeout_s: float) -> None:
        """Send a message to whoever leads, or will lead next.

        Raises:
            Unroutable: Nobody ever stood for it.
            PublishError: As for `Broker.publish`.
        """
        ...
