"""The replies of one process: a reply queue, opened by the first send that wants a reply, and who waits for what.

    mailbox ─▶ reply ─▶ the pending reply of its task id ─▶ whoever waits at a handle

Invariant: replies are kept only as long as a handle for them lives, so replies that nobody claims take no memory.
"""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from asyncq.broker import Broker, Mailbox
from asyncq.errors import BrokerError, BrokerUnavailable, NotSent, ReplyLost
from asyncq.loggers import get_logger
from asyncq.pending_reply import PendingReply
from asyncq.workflow_progress.replies import WorkflowReplies

__all__ = ["ReplyReader"]

log = get_logger("asyncq.client")

_FIRST_PAUSE_S = 0.2


class ReplyReader:
    """Reads the replies of one process.

    Args:
        broker: An open broker.
        timeout_s: How long a send waits until there is a reply queue, in seconds.
    """

    def __init__(self, broker: Broker, timeout_s: float) -> None:
        self.pending: WeakValueDictionary[str, PendingReply | WorkflowReplies] = WeakValueDictionary()
        self._broker = broker
        self._timeout_s = timeout_s
        self._mailbox: Mailbox | None = None
        self._opened: asyncio.Future[Mailbox]
        self._reading: asyncio.Task[None] | None = None
        self._closed = False

    async def close(self) -> None:
        """Stop reading. Whoever still waits for a reply is told."""
        self._closed = True
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self._mailbox = None
        self._lose(ReplyLost("The app was closed, and its reply queue with it."))

    def expect(self, task_id: str) -> PendingReply:
        """Return what will be told of a task that is sent now."""
        pending = self.pending.get(task_id)
        # Sent again: what was lost before is lost for the old handle, and what came before is that one's end.
        if not isinstance(pending, PendingReply) or pending.lost is not None or pending.final is not None:
            pending = self.pending[task_id] = PendingReply()
        return pending

    async def address(self) -> str:
        """Return where replies go. Where the connection is lost meanwhile, the next one goes on: nothing was sent yet.

        Raises:
            NotSent: There is no reply queue, or not in time.
        """
        if self._mailbox is not None:
            return self._mailbox.address
        lost, pause_s = "", _FIRST_PAUSE_S
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    try:
                        return (await self._open()).address
                    except BrokerUnavailable as error:
                        lost = f": {error}"
                    # Growing, because a broker may answer each try by ending the connection that others use as well.
                    await asyncio.sleep(pause_s)
                    pause_s *= 2
        except TimeoutError:
            raise NotSent(
                f"Nothing was sent: no reply queue could be opened within {self._timeout_s:g} s{lost or '.'}"
            ) from None
        except NotSent:
            raise
        except BrokerError as error:
            raise NotSent(f"Nothing was sent, because no reply queue could be opened: {error}") from error

    async def _open(self) -> Mailbox:
        if self._mailbox is not None:
            return self._mailbox
        if self._closed:
            raise NotSent("Nothing was sent: the app is closed.")
        if self._reading is None or self._reading.done():
            self._opened = asyncio.get_running_loop().create_future()
            self._reading = asyncio.create_task(self._read(self._opened), name="asyncq replies")
        # Shielded: the one who came first may be cancelled, and others wait for the same queue.
        return await asyncio.shield(self._opened)

    async def _read(self, opened: asyncio.Future[Mailbox]) -> None:
        cause: Exception = BrokerUnavailable("The app was closed.")
        try:
            async with self._broker.mailbox() as mailbox:
                self._mailbox = mailbox
                opened.set_result(mailbox)
                await self._take(mailbox)
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

    async def _take(self, mailbox: Mailbox) -> None:
        while True:
            try:
                async for message in mailbox:
                    pending = self.pending.get(message.task_id)
                    if pending is not None:
                        pending.feed(message)
            except ReplyLost as error:
                self._lose(error)
            else:
                return

    def _lose(self, error: ReplyLost) -> None:
        for pending in list(self.pending.values()):
            pending.lose(error)
