"""The seam of a journal: short notes that many write, and that everybody reads from the first to the last.

    append ─▶ [ entry | entry | entry ] ─▶ each follower: all that is there, then `CaughtUp`, then what comes
                 older ones go              after a lost connection: `Interrupted`, what it has missed, `CaughtUp`

Two adapters stand behind it, as behind `asyncq.broker`: a RabbitMQ stream, and memory.

Invariant: when a follower hears `CaughtUp`, it has heard every entry whose `append` had returned before the follower
began, or, after `Interrupted`, before it began again. The order is the same for all. After `Interrupted` entries may
come a second time: so whoever follows must not mind.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

__all__ = ["CaughtUp", "Entry", "Following", "Heard", "Interrupted", "Journal"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One note.

    Attributes:
        body: As it was appended.
    """

    body: bytes


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The follower knows all that had been appended before it began. What comes now is new."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """From now on until the next `CaughtUp` there may be entries that the follower does not know."""


Heard = Entry | CaughtUp | Interrupted


class Following(Protocol):
    """One follower's reading."""

    def __aiter__(self) -> AsyncIterator[Heard]:
        """Iterate until the following is closed. A lost connection is mended by the adapter.

        Raises:
            BrokerRefused: The journal may not be read or declared by this user.
            TopologyMismatch: It exists with other arguments, or the broker has no journals.
            QueueGone: It does not exist, and is not for this app to declare.
            NotOpen: The broker was closed.
        """
        ...


class Journal(Protocol):
    """A journal of one broker, by its name."""

    async def append(self, body: bytes, *, timeout_s: float) -> None:
        """Append an entry, and wait until the broker has confirmed it. The journal is declared where there is none.

        Raises:
            PublishError: As from `asyncq.broker.Broker.publish`.
            AccessRefused: It could not be declared, for want of a permission.
            TopologyMismatch: It exists with other arguments, or the broker has no journals.
            QueueGone: It does not exist, and is not for this app to declare.
        """
        ...

    def follow(self) -> AbstractAsyncContextManager[Following]:
        """Read it from its first entry on."""
        ...
