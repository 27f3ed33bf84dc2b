"""`app.sync`: a second client of the same app, with an event loop in a thread and connections of its own.

So that scripts and `def` routes can send, also beside an app that is entered in somebody's own loop. Invariant:
threads do not survive a fork, so the process id is checked on each call; after a fork a new thread and new
connections are made, and the parent's are left alone.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from asyncq.broker import Broker
from asyncq.client import Client
from asyncq.errors import NotOpen
from asyncq.signature import Signature
from asyncq.sync import LoopBridge, SyncHandle, SyncSender
from asyncq.sync_control import SyncControl

__all__ = ["AppSync"]

R = TypeVar("R")

Connect = Callable[[str], Coroutine[Any, Any, tuple[Broker, Client]]]

_EXIT_TIMEOUT_S = 5.0


class _Running:
    """A loop in a thread, with an open client. Belongs to one process."""

    def __init__(self, connect: Connect) -> None:
        self.pid = os.getpid()
        self._connect = connect
        self._ending = asyncio.Event()
        self._opened: concurrent.futures.Future[asyncio.AbstractEventLoop] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop
        self.client: Client
        # asyncio.run cancels at its end whatever is left in the loop: nobody waits for ever for a call in it.
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()), name="asyncq app.sync", daemon=True)
        self._thread.start()
        try:
            self.bridge = LoopBridge(self._opened.result())
        except BaseException:
            self.close()
            raise

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        opening = asyncio.create_task(self._connect("sync"))
        ending = asyncio.create_task(self._ending.wait())
        await asyncio.wait({opening, ending}, return_when=asyncio.FIRST_COMPLETED)
        if not opening.done():
            return  # given up while connecting
        try:
            broker, self.client = opening.result()
        except BaseException as error:  # noqa: BLE001 - the thread that waits for the connection raises it
            self._opened.set_exception(error)
            return
        try:
            self._opened.set_result(self._loop)
            await ending
            await self.client.close()
        finally:
            await broker.close()

    def close(self) -> None:
        """Close the connections and end the thread, within a few seconds."""
        with contextlib.suppress(RuntimeError, AttributeError):  # the loop has ended, or not begun
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(_EXIT_TIMEOUT_S)


class AppSync(SyncSender):
    """Blocking `send`, `send_many`, `call` and `result` for code without a loop. Safe with threads and after a fork.

    The first call connects. The connections are closed at the interpreter's exit, or by `close()`.

    Args:
        connect: Opens a broker and a client of it, in the loop's thread; takes the role of the connections.
    """

    def __init__(self, connect: Connect) -> None:
        super().__init__(lambda: self._get().bridge, lambda: self._get().client)
        self._connect = connect
        self._running: _Running | None = None
        self._lock = threading.Lock()
        self._lock_pid = os.getpid()

    def send_many(self, signatures: Iterable[Signature[R]]) -> list[SyncHandle[R]]:
        """Publish many signatures with their confirms pipelined; see `AsyncQ.send_many`."""
        LoopBridge.refuse_in_loop("await app.send_many(...)")
        running = self._get()
        handles = running.bridge.run(lambda: running.client.send_many(signatures), "await app.send_many(...)")
        return [SyncHandle(running.bridge, handle) for handle in handles]

    def cancel(self, *ids: str) -> None:
        """Let these tasks not run, or stop them where they run; see `AsyncQ.cancel`."""
        running = self._get()
        running.bridge.run(lambda: running.client.canceller.cancel(ids), "await app.cancel(...)")

    def undo_cancel(self, *ids: str) -> None:
        """Let these tasks run again; see `AsyncQ.undo_cancel`."""
        running = self._get()
        running.bridge.run(lambda: running.client.canceller.undo(ids), "await app.undo_cancel(...)")

    @property
    def control(self) -> SyncControl:
        """What asks workers, and changes them while they run: `app.sync.control.ping()`; see `AsyncQ.control`."""
        return SyncControl(lambda: self._get().bridge, lambda: self._get().client.controller)

    @property
    def is_open(self) -> bool:
        """Whether the connections of this process are open."""
        running = self._running
        return running is not None and running.pid == os.getpid()

    def close(self) -> None:
        """Close the connections and end the thread. The next call connects again."""
        with self._own_lock():
            running, self._running = self._running, None
        if running is not None and running.pid == os.getpid():
            atexit.unregister(self.close)
            running.close()

    def _get(self) -> _Running:
        LoopBridge.refuse_in_loop("await task.send(...)")
        with self._own_lock():
            running = self._running
            if running is None or running.pid != os.getpid():
                try:
                    running = self._running = _Running(self._connect)
                except RuntimeError as error:  # the interpreter is going down: no new threads
                    raise NotOpen(f"Nothing can be sent while the interpreter ends: {error}") from error
                atexit.register(self.close)
            return running

    def _own_lock(self) -> threading.Lock:
        """Return the lock of this process: the parent's may have been held by a thread that the fork left behind."""
        if self._lock_pid != os.getpid():
            self._lock = threading.Lock()
            self._lock_pid = os.getpid()
        return self._lock
