"""A supervised connection: opened again for ever, with its state in view.

    connecting ──connected──▶ ready ──lost──▶ connecting
        │                       │
        │ refused (password,    └─ blocked: the broker's memory or disk alarm; it takes no publishes
        ▼  vhost, permission)
      fatal                     closed: we closed it

Publishing, consuming, journals and administration each have a connection of their own: an error on one channel with
publishes in flight makes the broker close the whole connection (AMQP 0-9-1: frames for a channel that is
already closed are a connection error), a blocked publisher must not stop acks, and a lost stream must not end anything
else (see `journals`).

Invariant: `Link.ready()` returns an open connection or raises; it never returns a dead one twice, because the
supervisor learns of every loss from the connection's own `closing` future.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from aiormq.connection import Connection

from asyncq.broker import BrokerStatus
from asyncq.errors import BrokerError, BrokerRefused, BrokerUnavailable, NotOpen
from asyncq.loggers import get_logger
from asyncq.rabbitmq.connection import ConnectOptions, close_connection, connect, release_writers
from asyncq.rabbitmq.failures import broker_text, connect_error, safe_url
from asyncq.rabbitmq.undisturbed import undisturbed

__all__ = ["Link", "is_unblocked"]

log = get_logger("asyncq.rabbitmq")

_FIRST_PAUSE_S = 0.2
_LONGEST_PAUSE_S = 10.0
_STEADY_S = 1.0
"""A connection that is lost sooner counts as one that could not be had."""


class Link:
    """One supervised connection.

    Args:
        name: For the management UI.
        options: How to connect.
        on_open: Called with each new connection before anybody else gets it. Its failure is logged only.
    """

    def __init__(
        self, name: str, options: ConnectOptions, on_open: Callable[[Connection], Awaitable[None]] | None = None
    ) -> None:
        self._name = name
        self._options = options
        self._on_open = on_open
        self._status = BrokerStatus("closed")
        self._connection: asyncio.Future[Connection] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._giving_up: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to connect, and keep the connection up from then on. `ready` waits for it."""
        self._status = BrokerStatus("connecting")
        self._connection = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"asyncq supervisor of {self._name}")

    async def open(self) -> None:
        """Start, and wait for the first connection.

        Raises:
            BrokerUnavailable: Nobody answered within the connect timeout.
            BrokerRefused: Wrong credentials, no such virtual host, no permission.
        """
        self.start()
        try:
            async with asyncio.timeout(self._options.timeout_s):
                await self.ready()
        except TimeoutError:
            cause = self._status.cause
            await self.close()
            raise cause or connect_error(TimeoutError(), self._options.urls[0]) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the connection and stop supervising, also when the caller is cancelled meanwhile. Idempotent."""
        await undisturbed(self._close())

    async def _close(self) -> None:
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        if self._giving_up is not None:
            await asyncio.gather(self._giving_up, return_exceptions=True)
        future, self._connection = self._connection, None
        self._status = BrokerStatus("closed")
        if future is None:
            return
        if not future.done():
            future.set_exception(NotOpen("The connection to the broker was closed."))
            future.exception()
        elif future.exception() is None:
            await close_connection(future.result())

    def status(self) -> BrokerStatus:
        """Return the present state."""
        if self.is_blocked():
            return BrokerStatus("blocked", BrokerUnavailable("The broker's memory or disk alarm is on."))
        return self._status

    async def ready(self) -> Connection:
        """Return the open connection; wait for it while it is down. Apply a timeout outside.

        Raises:
            BrokerRefused: It will not come back by itself.
            NotOpen: It was closed by us.
        """
        while True:
            if self._connection is None:
                raise NotOpen("The connection to the broker is closed.")
            connection = await asyncio.shield(self._connection)
            if not connection.is_closed:
                return connection
            await asyncio.sleep(0)  # the supervisor has not seen the loss yet; it is next

    async def unblocked(self) -> Connection:
        """Like `ready`, but wait for the end of the broker's alarm as well."""
        while True:
            connection = await self.ready()
            if is_unblocked(connection):
                return connection
            loss = connection.closing
            calm = asyncio.ensure_future(connection.ready())
            try:
                await asyncio.wait({calm, loss}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                calm.cancel()
                loss.cancel()

    def is_blocked(self) -> bool:
        """Tell whether the broker's alarm is on, so that it reads nothing that is published."""
        future = self._connection
        if self._status.state != "ready" or future is None or not future.done() or future.exception() is not None:
            return False
        return not is_unblocked(future.result())

    def give_up(self, why: str) -> None:
        """Close the open connection, which lives and is of no use; the supervisor opens the next. Returns at once.

        Args:
            why: In words, for the log.
        """
        future = self._connection
        if future is None or not future.done() or future.exception() is not None or self._giving_up is not None:
            return
        log.warning("connection to the broker is given up", name=self._name, cause=why)
        self._giving_up = asyncio.create_task(close_connection(future.result()), name=f"asyncq gives up {self._name}")
        self._giving_up.add_done_callback(self._given_up)

    def _given_up(self, closing: asyncio.Task[None]) -> None:
        self._giving_up = None
        if not closing.cancelled():
            closing.exception()  # seen: what cannot be closed is gone

    async def _supervise(self) -> None:
        tries = 0
        while True:
            url = self._options.urls[tries % len(self._options.urls)]
            try:
                connection = await connect(url, self._name, self._options)
            except BrokerRefused as error:
                self._end_fatally(error)
                return
            except BrokerError as error:
                tries += 1
                self._status = BrokerStatus("connecting", error)
                log.warning("broker not reachable, trying again", name=self._name, tries=tries, cause=str(error))
                await asyncio.sleep(_pause_s(tries))
                continue
            began = asyncio.get_running_loop().time()
            cause = await self._serve(connection)
            log.warning("connection to the broker lost", name=self._name, cause=cause)
            tries = 0
            if asyncio.get_running_loop().time() - began < _STEADY_S:
                tries = 1  # the next broker of the list, and not at once: this must not become a busy loop
                await asyncio.sleep(_pause_s(tries))

    async def _serve(self, connection: Connection) -> str:
        """Give the connection to everybody and return why it ended."""
        loss = connection.closing
        await self._greet(connection)
        assert self._connection is not None  # noqa: S101 - set by open(), and only close() unsets it, after us
        self._status = BrokerStatus("ready")
        self._connection.set_result(connection)
        log.info("connected to the broker", name=self._name, broker=safe_url(connection.url))
        await asyncio.wait({loss})
        error = None if loss.cancelled() else loss.exception()
        cause = broker_text(error) if error is not None else "closed"
        self._connection = asyncio.get_running_loop().create_future()
        self._status = BrokerStatus("connecting", BrokerUnavailable(f"The connection to the broker was lost: {cause}"))
        await release_writers(connection)
        return cause

    async def _greet(self, connection: Connection) -> None:
        if self._on_open is None:
            return
        try:
            await self._on_open(connection)
        except BrokerError as error:
            log.warning("queues could not be declared again", name=self._name, cause=str(error))
        except Exception:
            log.exception("queues could not be declared again", name=self._name)
        except BaseException:
            await close_connection(connection)  # nobody else has it yet
            raise

    def _end_fatally(self, error: BrokerRefused) -> None:
        self._status = BrokerStatus("fatal", error)
        log.error("the broker refuses us, giving up", name=self._name, cause=str(error))
        if self._connection is not None and not self._connection.done():
            self._connection.set_exception(error)
            self._connection.exception()  # seen: nobody may be waiting, and asyncio would complain


def is_unblocked(connection: Connection) -> bool:
    """Tell whether the broker reads what is published on this connection."""
    # aiormq tells of the alarm only by a coroutine that waits for its end: one step of it is the answer.
    step = connection.ready()
    try:
        step.send(None)
    except StopIteration:
        return True
    finally:
        step.close()
    return False


def _pause_s(tries: int) -> float:
    # Jitter, so that a restarted broker does not meet all its clients in one moment.
    longest: float = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries, 8))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
