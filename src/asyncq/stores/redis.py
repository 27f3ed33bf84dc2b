"""Redis, by redis-py: quick, and as durable as that Redis is.

    <namespace>:results:schema           the version
    <namespace>:results:task:<id>        a hash: version, record, result; expires by itself
    <namespace>:results:all              sorted sets of `<created>:<id>`, by their text: that is the order of listings
    <namespace>:results:state:<state>
    <namespace>:results:of:<task>
    <namespace>:results:names            the names of tasks that have such a set
    <namespace>:results:expiring         the same entries by the time when they expire, for cleaning
    <namespace>:results:changed          a channel that tells of each change, by the id

A record, its entries and the message on the channel are changed by one script, which is one step for all others. It
checks the version first: see `asyncq.stores.merging`. A record that has expired leaves its entries; listings pass over
them, and cleaning removes them.

One Redis, or one that Sentinel or a proxy stands for; not Redis Cluster, where these keys would be on many nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import redis.asyncio as client
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError, RedisError

from asyncq.errors import ResultStoreError
from asyncq.loggers import get_logger
from asyncq.status import TaskState
from asyncq.stores.merging import Change, Decide, Listing, MergingStore, Row, StoreOptions, other_schema
from asyncq.stores.record import key_of, micros
from asyncq.stores.redis_scripts import FORGET, PUT, READ, Script

__all__ = ["RedisStore"]

log = get_logger("asyncq.stores")

_VERSION = 1
_AT_ONCE = 100  # records that one script reads or changes: nobody else is served meanwhile
_MAX_CONNECTIONS = 20
_RETRIES = 3
_LISTEN_PAUSE_S = 1.0
_FIELDS = ("version", "created", "expires", "data")
_ENDED = [state.value for state in TaskState if state.final]


class RedisStore(MergingStore):
    """See `asyncq.result_store.ResultStore`. `open` prepares an empty Redis.

    Args:
        url: Its URL.
        shown: It without a password.
        options: See there.
    """

    def __init__(self, url: str, shown: str, options: StoreOptions) -> None:
        super().__init__(shown, options)
        self._url = url
        self._prefix = f"{options.namespace}:results"
        self._connected: Any = None
        self._heard: Any = None
        self._hearing: asyncio.Task[None] | None = None
        self._start_hearing = asyncio.Lock()

    # --- life

    @property
    def _redis(self) -> Any:  # redis-py's own types cannot tell that its answers are bytes here
        if self._connected is None:
            timeout_s = self._options.timeout_s
            pool = client.BlockingConnectionPool.from_url(
                self._url,
                max_connections=_MAX_CONNECTIONS,
                timeout=timeout_s,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                client_name="asyncq-results",
                # A connection that a restart has ended is noticed when it is used; all calls here may be made again.
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.02), _RETRIES),
            )
            self._connected = client.Redis.from_pool(pool)
        return self._connected

    async def _connect(self) -> None:
        await self._prepare()

    async def _prepare(self) -> None:
        name = f"{self._prefix}:schema"
        await self._redis.set(name, _VERSION, nx=True)
        found = await self._redis.get(name)
        if found is None or not found.isdigit() or int(found) != _VERSION:
            version = int(found) if found is not None and found.isdigit() else None
            raise other_schema(self.shown, version, _VERSION)

    async def _disconnect(self) -> None:
        await self._stop_hearing()
        connected, self._connected = self._connected, None
        if connected is not None:
            with contextlib.suppress(RedisError, OSError):
                await connected.aclose()

    # --- records

    async def _read(self, keys: Sequence[str]) -> Mapping[str, Row]:
        return await self._rows(keys, (*_FIELDS, "result"))

    async def _rows(self, keys: Sequence[str], fields: Sequence[str]) -> dict[str, Row]:
        found = await self._fields(keys, fields)
        return {key: _row(key, values) for key, values in zip(keys, found, strict=True) if values[0] is not None}

    async def _fields(self, keys: Sequence[str], fields: Sequence[str]) -> list[list[bytes | None]]:
        found: list[list[bytes | None]] = []
        for begin in range(0, len(keys), _AT_ONCE):
            found += await self._call(READ, len(fields), *fields, *keys[begin : begin + _AT_ONCE])
        return found

    async def _exchange(self, keys: Sequence[str], decide: Decide) -> set[str]:
        changes = decide(await self._rows(keys, (*_FIELDS, "result")))
        put: set[str] = set()
        for begin in range(0, len(changes), _AT_ONCE):
            some = changes[begin : begin + _AT_ONCE]
            arguments = [argument for change in some for argument in _arguments(change)]
            taken = await self._call(PUT, *arguments)
            put |= {change.row.key for change, one in zip(some, taken, strict=True) if one}
        return put

    async def _call(self, script: Script, *arguments: Any) -> Any:
        try:
            return await self._redis.evalsha(script.sha, 0, self._prefix, *arguments)
        except NoScriptError:  # the first time, and after a restart
            await self._redis.script_load(script.text)
            return await self._redis.evalsha(script.sha, 0, self._prefix, *arguments)

    # --- listing and cleaning

    async def _list(self, listing: Listing) -> Sequence[Row]:
        if listing.state is not None:
            source = f"{self._prefix}:state:{listing.state.value}"
        elif listing.task is not None:
            source = f"{self._prefix}:of:{listing.task}"
        else:
            source = f"{self._prefix}:all"
        top = "+" if listing.after is None else f"({listing.after}"
        bottom = "-" if listing.since is None else f"[{listing.since:016d}"
        rows: list[Row] = []
        while len(rows) < listing.limit:
            entries = await self._redis.zrevrangebylex(source, top, bottom, 0, max(listing.limit, _AT_ONCE))
            if not entries:
                break
            top = f"({entries[-1].decode()}"
            rows += await self._listed(entries, listing)
        return rows[: listing.limit]

    async def _listed(self, entries: Sequence[bytes], listing: Listing) -> list[Row]:
        """Return the records that entries stand for and that are wanted."""
        places = [_place(entry) for entry in entries]
        found = await self._fields([key for _, key in places], (*_FIELDS, "task", "state"))
        rows = []
        for (created, key), values in zip(places, found, strict=True):
            task, state = (None if value is None else value.decode() for value in values[4:])
            if values[0] is None or (listing.task is not None and task != listing.task):
                continue
            if listing.state is not None and state != listing.state.value:
                continue  # it has changed since the entries were read
            row = _row(key, values[:4])
            if row.created == created and (row.expires is None or row.expires > listing.now):
                rows.append(row)
        return rows

    async def _clean(self, now: int, ended_before: int | None) -> AsyncIterator[int]:
        expiring = f"{self._prefix}:expiring"
        while entries := await self._redis.zrangebyscore(expiring, "-inf", now // 1000, 0, _AT_ONCE):
            gone = await self._call(FORGET, now, "", *entries)
            yield gone
            if not gone:
                break
        for state in _ENDED if ended_before is not None else ():
            source, bottom, top = f"{self._prefix}:state:{state}", "-", f"[{ended_before:016d}"
            while entries := await self._redis.zrangebylex(source, bottom, top, 0, _AT_ONCE):
                bottom = f"({entries[-1].decode()}"
                yield await self._call(FORGET, now, ended_before, *entries)

    # --- listening

    async def _listen(self) -> bool:
        async with self._start_hearing:
            if self._hearing is None or self._hearing.done():
                await self._stop_hearing()
                self._heard = self._redis.pubsub(ignore_subscribe_messages=True)
                await self._heard.subscribe(f"{self._prefix}:changed")
                self._hearing = asyncio.create_task(self._hear(self._heard))
        return True

    async def _hear(self, heard: Any) -> None:
        """Ring for each message, until the connection is lost."""
        try:
            while True:
                message = await heard.get_message(ignore_subscribe_messages=True, timeout=_LISTEN_PAUSE_S)
                if message is not None:
                    self._bell.ring(message["data"].decode())
        except (RedisError, OSError) as error:  # whoever watches makes a new connection
            log.info("the connection that tells of changes was lost", store=self.shown, error=str(error))
        finally:
            self._bell.ring_all()  # what came meanwhile was not told

    async def _stop_hearing(self) -> None:
        hearing, self._hearing = self._hearing, None
        heard, self._heard = self._heard, None
        if hearing is not None:
            hearing.cancel()
            await asyncio.wait([hearing])
        if heard is not None:
            with contextlib.suppress(RedisError, OSError):
                await heard.aclose()

    def _error(self, error: Exception) -> ResultStoreError | None:
        if not isinstance(error, RedisError | OSError):
            return None
        return self._unavailable(f"{type(error).__name__}: {error}".splitlines()[0].rstrip("."))


def _row(key: str, values: Sequence[bytes | None]) -> Row:
    version, created, expires, data = (value or b"" for value in values[:4])
    return Row(key, int(version), int(created), int(expires) if expires else None, data, *values[4:])


def _place(entry: bytes) -> tuple[int, str]:
    created, _, key = entry.decode().partition(":")
    return int(created), key


def _arguments(change: Change) -> tuple[Any, ...]:
    row, status = change.row, change.status
    return (
        row.key,
        "" if change.replaced is None else change.replaced,
        row.version,
        f"{row.created:016d}",
        "" if row.expires is None else row.expires,
        row.data,
        0 if row.result is None else 1,
        row.result or b"",
        "" if status.task is None else key_of(status.task),
        status.state.value,
        micros(status.updated_at) if status.updated_at is not None else row.created,
    )
