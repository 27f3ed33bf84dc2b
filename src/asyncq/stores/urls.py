"""Choose a result store by its URL.

Invariant: a message never shows a password, also where the URL cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from asyncq.errors import ConfigurationError
from asyncq.result_store import DEFAULT_TTL_S, ResultStore
from asyncq.stores.merging import StoreOptions, machine_time

__all__ = ["store_of"]

_HELP = (
    "It is one of: none, sqlite:///results.db (sqlite:////var/lib/results.db for an absolute path), "
    "postgresql://user:password@host:5432/database, redis://:password@host:6379/0 (rediss:// for TLS), memory://. "
    "Special characters in user and password are percent-encoded."
)
_POSTGRES = ("postgresql", "postgres", "postgresql+asyncpg")
_EXTRAS = {"memory": "", "sqlite": "sqlite", "redis": "redis", "rediss": "redis"} | dict.fromkeys(_POSTGRES, "postgres")
_DRIVERS = {"sqlalchemy", "greenlet", "aiosqlite", "asyncpg", "redis"}


def store_of(
    url: str,
    *,
    namespace: str = "asyncq",
    ttl_s: float | None = DEFAULT_TTL_S,
    timeout_s: float = 10.0,
    now: Callable[[], datetime] = machine_time,
) -> ResultStore | None:
    """Return the result store of a URL, not open yet; None for "none".

    Args:
        url: `none`, `sqlite:///results.db`, `postgresql://...`, `redis://...`, or `memory://NAME`.
        namespace: The prefix of its tables or keys.
        ttl_s: How long a record is kept after its task's end, in seconds; None for ever.
        timeout_s: How long one call may take, in seconds.
        now: The time that records expire by; aware.

    Raises:
        ConfigurationError: The URL cannot be read, or what the store needs is not installed.
    """
    if url.strip() in {"", "none"}:
        return None
    options = StoreOptions(namespace, ttl_s, timeout_s, now)
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        # Its text is not passed on: it can hold a part of the password.
        raise ConfigurationError(f"The URL of the result store cannot be read. {_HELP}") from None
    if "@" in parts.path + parts.query + parts.fragment and parts.scheme != "sqlite":
        raise ConfigurationError(f"The URL of the result store has an '@' behind its host. {_HELP}")
    if parts.scheme not in _EXTRAS:
        raise ConfigurationError(f"There is no result store of the kind {parts.scheme!r}. {_HELP}")
    try:
        if parts.scheme == "memory":
            return _memory(parts, options)
        if parts.scheme == "sqlite":
            return _sqlite(parts, options)
        if parts.scheme in _POSTGRES:
            return _postgres(parts, port, options)
        return _redis(parts, options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _DRIVERS:
            raise
        raise ConfigurationError(
            f"A result store at {parts.scheme}:// needs {missing}, which is not installed: "
            f"pip install 'asyncq[{_EXTRAS[parts.scheme]}]'"
        ) from None


def _memory(parts: SplitResult, options: StoreOptions) -> ResultStore:
    from asyncq.stores.memory import MemoryStore, shelf_of  # noqa: PLC0415 - each kind is loaded when it is chosen

    return MemoryStore(shelf_of(f"{options.namespace} {parts.netloc}"), f"memory://{parts.netloc}", options)


def _sqlite(parts: SplitResult, options: StoreOptions) -> ResultStore:
    from asyncq.stores.sqlite import SqliteStore  # noqa: PLC0415

    path = unquote(parts.path[1:])
    if parts.netloc or parts.query or not path or path == ":memory:":
        raise ConfigurationError(f"A result store in SQLite is a file, with three slashes before its path. {_HELP}")
    return SqliteStore(path, f"sqlite:///{path}", options)


def _postgres(parts: SplitResult, port: int | None, options: StoreOptions) -> ResultStore:
    from sqlalchemy import URL  # noqa: PLC0415

    from asyncq.stores.postgres import PostgresStore  # noqa: PLC0415

    query = dict(parse_qsl(parts.query))
    if "sslmode" in query:  # libpq's name, which is in most URLs; asyncpg has another one for the same values
        query["ssl"] = query.pop("sslmode")
    url = URL.create(
        "postgresql+asyncpg",
        username=None if parts.username is None else unquote(parts.username),
        password=None if parts.password is None else unquote(parts.password),
        host=parts.hostname,
        port=port,
        database=unquote(parts.path[1:]) or None,
        query=query,
    )
    return PostgresStore(url, _shown(parts), options)


def _redis(parts: SplitResult, options: StoreOptions) -> ResultStore:
    from asyncq.stores.redis import RedisStore  # noqa: PLC0415

    if not parts.hostname or not (parts.path[1:] or "0").isdigit():
        raise ConfigurationError(f"A result store in Redis has a host, and a number as its database. {_HELP}")
    return RedisStore(urlunsplit(parts), _shown(parts), options)


def _shown(parts: SplitResult) -> str:
    """Return a URL for people, without its password and whatever is in its query.

    A Redis URL with one word before its host may mean a password by it.
    """
    user, at, host = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    if parts.scheme not in _POSTGRES and not colon:
        name = ""
    return urlunsplit((parts.scheme, f"{name}{at}{host}" if name else host, parts.path, "", ""))
