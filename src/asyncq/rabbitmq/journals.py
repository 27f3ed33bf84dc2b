"""The journals of one process, and the connection that they have to themselves.

A stream that the broker has lost ends the whole connection of whoever consumes it or publishes to it, again at each
try (see `lost_streams`). On the connection for consuming that would hand back whatever runs, again and again; on the
one for publishing it would make uncertain whatever is under way. Nothing can be asked beforehand, for RabbitMQ 4.3
declares a lost stream as if it stood; and to move away only after the first cut would let each process pay once. So a
process that follows a journal or appends to one has a connection more, opened with the first of both.

    the consumers' connection is back ──▶ each following is in doubt: Interrupted ─▶ a new mark is read ─▶ CaughtUp

Invariant: see `asyncq.journal`; and where the connection for consuming was lost, followers hear `Interrupted` before it
delivers again. The two connections are not lost in the same moment, and a task that was cancelled in between must not
run because the journal's one still looks well.
"""

from __future__ import annotations

from asyncq.rabbitmq.journal import JournalWires, RabbitJournal
from asyncq.rabbitmq.link import Link
from asyncq.rabbitmq.publisher import Publisher
from asyncq.rabbitmq.topology import Names, OpenChannel
from asyncq.settings import Settings

__all__ = ["Journals"]


class Journals:
    """All journals of one process.

    Args:
        names: Of what asyncq declares.
        link: The journals' connection, not open yet. It is closed with them.
        open_channel: Gives channels for declaring.
        settings: Limits and timeouts.
    """

    def __init__(self, names: Names, link: Link, open_channel: OpenChannel, settings: Settings) -> None:
        self._names = names
        self._link = link
        self._started = False
        self._journals: dict[tuple[str, float], RabbitJournal] = {}
        self._wires = JournalWires(
            Publisher(link, settings.max_message_bytes, _nothing_to_declare),
            self._connect,
            open_channel,
            may_declare=settings.declare,
            timeout_s=settings.publish_timeout_s,
        )

    def get(self, name: str, keep_s: float) -> RabbitJournal:
        """Return a journal: the same one for the same arguments.

        Args:
            name: Its name, without the namespace.
            keep_s: How long entries are kept at least, in seconds.
        """
        if (name, keep_s) not in self._journals:
            self._journals[name, keep_s] = RabbitJournal(self._names.journal(name), keep_s, self._wires)
        return self._journals[name, keep_s]

    def doubt(self) -> None:
        """Let all followers read up to the present end before they count as current again."""
        for journal in self._journals.values():
            journal.doubt()

    async def close(self) -> None:
        """Close the connection; it is not opened again. Idempotent."""
        self._started = True
        await self._link.close()

    def _connect(self) -> Link:
        if not self._started:
            self._started = True
            self._link.start()
        return self._link


async def _nothing_to_declare() -> None:
    """Journals are appended to by the default exchange, which nobody can delete."""
