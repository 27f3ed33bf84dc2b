"""One process of the pool, as the worker sees it: started, spoken to, ended.

It is spawned, never forked: a fork of a process with threads and open connections may hang. It leads a session of its
own, so Ctrl-C at a terminal does not reach it, and killing it takes what it has started with it. It ends when its
socket does, so it does not outlive its worker.

What a task has forked holds a copy of that socket: so the end of the process ends what is left of its session, and the
socket too, where somebody has left the session.

Invariant: `frames` ends soon after the process does, whoever holds its socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

from asyncq.errors import ProcessDied
from asyncq.worker.process_pool.frames import LENGTH, packed, unpacked

__all__ = ["ChildProcess"]

_LAST_FRAMES_S = 1.0

# Its search path is the worker's, so that it finds the same modules, asyncq among them.
_PROGRAM = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from asyncq.worker.process_pool.child import main; main(int(sys.argv[1]), int(sys.argv[3]), sys.argv[4])"
)


class ChildProcess:
    """A running process. `spawn` makes one.

    Attributes:
        pid: Its process id.
        runs: How many tasks it was given.
    """

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.pid = process.pid
        self.runs = 0
        self._process = process
        self._reader = reader
        self._writer = writer
        self._end = asyncio.create_task(self._end_the_rest(), name="asyncq end of a task process")

    @classmethod
    async def spawn(cls, log_level: int, traced_service: str | None = None) -> ChildProcess:
        """Start a process.

        Args:
            log_level: What it logs below this level goes nowhere.
            traced_service: The service name of its tracer provider; None where it gets none from us.

        Raises:
            OSError: The system does not give us one.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-c",
                    _PROGRAM,
                    str(theirs.fileno()),
                    json.dumps(sys.path),
                    str(log_level),
                    traced_service or "",
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def is_alive(self) -> bool:
        """Whether nothing is known of its end."""
        return self._process.returncode is None and not self._reader.at_eof()

    def send(self, frame: object) -> None:
        """Say something to it. Where it is gone, `frames` ends."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.write(packed(frame))

    async def frames(self) -> AsyncIterator[Any]:
        """Iterate what it says, until it is gone."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
                yield unpacked(await self._reader.readexactly(length))

    async def _end_the_rest(self) -> None:
        await self._process.wait()
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        await asyncio.sleep(_LAST_FRAMES_S)  # what it has said is read to its end
        self._writer.transport.abort()

    def kill(self) -> None:
        """End it now, with all that it has started."""
        if self._process.returncode is None:
            with contextlib.suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    async def gone(self) -> None:
        """Wait for its end, and let go of its socket."""
        try:
            await self._process.wait()
        finally:
            self._end.cancel()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    def death(self, what: str) -> ProcessDied:
        """Return the error of who was waiting for it.

        Args:
            what: What it did: `ran task shop.report`.
        """
        code = self._process.returncode
        if code is None:
            how = "its connection to the worker is gone"
        elif code < 0:
            how = f"killed by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                how += "; where nobody did that on purpose, the system was short of memory"
        else:
            how = f"exit code {code}"
        return ProcessDied(f"The process {self.pid} that {what} has died: {how}.")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
