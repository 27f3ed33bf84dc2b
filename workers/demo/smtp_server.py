"""A mail server on loopback that keeps mails on disk and, like many real ones, puts strangers off at first.

It refuses the first RCPT commands of each sender and recipient with 451, "try again later": greylisting. It is also a
program of its own, which outlives the demo where that is asked for:

    python -m demo.smtp_server MAILS_FOLDER LOG_FILE [REFUSALS]
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from email.parser import BytesHeaderParser
from pathlib import Path
from time import time

from aiosmtpd.smtp import SMTP, Envelope, Session

from demo import loopback

REFUSALS = 2


class Greylisting(loopback.Kept):
    """What the server answers; aiosmtpd calls the `handle_*` methods.

    Args:
        folder: The folder that gets one `.eml` file for each mail.
        log: The log file.
        refusals: How often each pair of sender and recipient is put off.
    """

    def __init__(self, folder: Path, log: Path, refusals: int = REFUSALS) -> None:
        super().__init__(folder, log, refusals)
        self.seen: Counter[tuple[str, str]] = Counter()

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's names and arguments
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        """Put the sender off, or take the recipient."""
        pair = (envelope.mail_from or "", address)
        self.seen[pair] += 1
        if self.seen[pair] <= self.refusals:
            self.note("refused", to=address, code=451, time_no=self.seen[pair])
            return "451 4.7.1 Greylisted, please try again later"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - theirs
        """Keep the mail."""
        content = envelope.content or b""
        content = content.encode() if isinstance(content, str) else content
        message_id = BytesHeaderParser().parsebytes(content).get("Message-ID", "")
        await asyncio.to_thread(self.keep, content, message_id)
        return "250 2.0.0 OK, kept"

    def keep(self, content: bytes, message_id: str) -> None:
        """Write a mail to disk, completely or not at all, and then into the log."""
        target = self.folder / f"{int(time() * 1000)}.eml"
        temporary = target.with_suffix(".tmp")
        temporary.write_bytes(content)
        temporary.replace(target)
        self.note("accepted", code=250, file=target.name, size_bytes=len(content), message_id=message_id)


@contextlib.asynccontextmanager
async def listening(handler: Greylisting) -> AsyncIterator[int]:
    """Serve on a free port of the loopback interface, which is what it yields, until the block ends."""
    server = await asyncio.get_running_loop().create_server(
        lambda: SMTP(handler, enable_SMTPUTF8=True, hostname="localhost", data_size_limit=64 * 1024 * 1024),
        host="127.0.0.1",
        port=0,
    )
    async with server:
        port = server.sockets[0].getsockname()[1]
        handler.note("listening", port=port)
        yield port


if __name__ == "__main__":
    loopback.main(Greylisting, listening)
