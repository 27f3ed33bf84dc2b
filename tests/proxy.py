"""A TCP proxy before the broker, which a test can cut, freeze and close without touching the broker."""

import asyncio
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit


class Proxy:
    """Passes bytes on, until it is told otherwise.

    Args:
        url: The broker's AMQP URL.

    Attributes:
        url: The same, through the proxy.
        accepted: How many connections there were so far.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._port = 0
        self.url = ""
        self.accepted = 0

    async def listen(self) -> None:
        """Accept connections, at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]
        user = self._parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{self._port}"))

    async def refuse(self) -> None:
        """Cut all, and accept no connections until `listen`."""
        if self._server is not None:
            self._server.close()
        self.cut()

    def cut(self) -> int:
        """Cut all connections, without a word to either side; return how many."""
        writers, self._writers = self._writers, set()
        for writer in writers:
            writer.transport.abort()
        return len(writers) // 2

    def freeze(self) -> None:
        """Pass nothing on; connections stay, and new ones are accepted."""
        self._flowing.clear()

    def thaw(self) -> None:
        """Pass on again, also what has come meanwhile."""
        self._flowing.set()

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._writers) // 2

    async def close(self) -> None:
        """End everything."""
        await self.refuse()
        self.thaw()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            broker_reader, broker_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, broker_writer}
        self._writers |= both
        tasks = {
            asyncio.create_task(self._pump(reader, broker_writer)),
            asyncio.create_task(self._pump(broker_reader, writer)),
        }
        self._tasks |= tasks
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            self._tasks -= tasks
            self._writers -= both
            for each in both:
                each.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        except OSError:
            pass


@asynccontextmanager
async def proxy_of(url: str):
    """Yield a listening `Proxy`."""
    proxy = Proxy(url)
    await proxy.listen()
    try:
        yield proxy
    finally:
        await proxy.close()
