"""Which errors of drivers no waiting helps against: a person has to change the URL, or the server.

They are told by name and text, so that no driver has to be imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["refusal_in"]

_KINDS = {
    # asyncpg, by SQLSTATE 28 and 3D000
    "InvalidPasswordError",
    "InvalidAuthorizationSpecificationError",
    "InvalidCatalogNameError",
    # redis-py
    "AuthenticationError",
    "AuthenticationWrongNumberOfArgsError",
    "NoPermissionError",
}
_TEXTS = (
    # sqlite3 has one class for all that is wrong
    "unable to open database file",
    "attempt to write a readonly database",
    "file is not a database",
    # Redis
    "NOAUTH",
    "WRONGPASS",
    "DB index is out of range",
    "invalid username-password pair",
)


def refusal_in(error: BaseException) -> str | None:
    """Return what a driver has said, in words, where no waiting helps; else None."""
    for one in _causes(error):
        text = str(one).splitlines()[0] if str(one) else ""
        if type(one).__name__ in _KINDS or any(words in text for words in _TEXTS):
            return f"{type(one).__name__}: {text}".rstrip(". :")
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Return an error and what has led to it, the first cause first: wrappers repeat its text, and add their own."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or getattr(current, "orig", None)
    return reversed(chain)
