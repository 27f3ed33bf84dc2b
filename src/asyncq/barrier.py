"""The seam for barriers: the members of a chord arrive, and one of those who brought them goes on.

    open ─▶ members arrive ─▶ the last one gathers them all ─▶ goes on ─▶ done: the barrier is gone

No queue, consumer or count crosses it. The adapters of `asyncq.broker.Broker` stand behind it.

Invariant: an arrival that returned is kept by the broker. When all members have arrived, somebody has got them
gathered, or gets them by arriving again; and they stay until `done`, so that a crash in between repeats what follows,
and never loses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["MOST_MEMBERS", "Barriers", "Gathered", "Member"]

MOST_MEMBERS = 50_000
"""Who gathers holds all members at once, and AMQP counts what a consumer may hold in 16 bits."""


@dataclass(frozen=True, slots=True)
class Member:
    """How one member has ended.

    Attributes:
        index: Its place in the list.
        kind: A `ReplyType`.
        body: Its value, or its error, as JSON; empty where all values together are more than a message may have.
        task_id: The task that it ended with.
        task: That task's name.
    """

    index: int
    kind: str
    body: bytes
    task_id: str
    task: str


class Gathered(Protocol):
    """All members of one chord, held until `done` or `give_back`."""

    @property
    def head(self) -> bytes:
        """What was left when the barrier was opened."""
        ...

    @property
    def members(self) -> Sequence[Member]:
        """The members, in the order of their places. Of one that arrived several times, a success counts most."""
        ...

    @property
    def is_too_large(self) -> bool:
        """Whether the values together are more than a message may have, so that they were not kept."""
        ...

    @property
    def was_held(self) -> bool:
        """Whether somebody has held them before, and may have gone on with them before it died."""
        ...

    async def done(self) -> None:
        """Remove the barrier: what follows is on its way.

        One that was opened more than once stays for those that come late, and takes them in; it goes away by itself.
        """
        ...

    async def give_back(self) -> None:
        """Let the members be gathered again. Nothing happens after `done`."""
        ...


class Barriers(Protocol):
    """The barriers of one namespace."""

    async def open(self, chord: str, head: bytes, *, keep_s: float, timeout_s: float) -> None:
        """Make a barrier. One that stands already is left, and takes the head a second time.

        Args:
            chord: Its id.
            head: For whoever gathers the members.
            keep_s: How long it stands at least, in seconds, when nobody comes.
            timeout_s: How long a confirm is waited for, in seconds.

        Raises:
            BrokerError: It could not be made, or not surely.
        """
        ...

    async def arrive(self, chord: str, size: int, member: Member, *, timeout_s: float) -> Gathered | None:
        """Bring how a member has ended. Bringing it again does no harm.

        Returns:
            All members, where they are complete. While somebody else holds them, that one's end is waited for. None:
            somebody else has gone on, or does so when the last one has come.

        Raises:
            QueueGone: There is no such barrier: what follows is done already, or it stood for too long.
            BrokerError: Bring it again.
        """
        ...

    async def remove(self, chord: str) -> None:
        """Remove a barrier that nobody will come to. Raises nothing: it goes away by itself, later."""
        ...
