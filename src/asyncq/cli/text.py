"""Text from elsewhere, made safe and readable for a terminal."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from asyncq.errors import ConfigurationError

__all__ = ["moment", "printable", "safe_urls"]

# Control characters move the cursor and change colours; what a remote message holds must not.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return the text with control characters shown as escapes; newlines and tabs stay."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def moment(epoch_ms: int) -> str:
    """Return a moment in ISO 8601, UTC, to the second; the bare number where it is no possible moment."""
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return str(epoch_ms)


def safe_urls(urls: str) -> str:
    """Return the broker URLs of a comma-separated list without their passwords."""
    # Most commands show no URL: they need not load the AMQP client for it.
    from asyncq.rabbitmq.connection import parse_urls, urls_in_words  # noqa: PLC0415

    try:
        return urls_in_words(parse_urls(urls))
    except ConfigurationError:
        return "a broker URL that cannot be read"  # none of it: the password may be anywhere in it
