"""Headers of a user's own: what may travel beside asyncq's and RabbitMQ's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from asyncq.errors import InvalidOption
from asyncq.message import MAX_HEADERS_BYTES, RESERVED_HEADER_PREFIX, HeaderValue, headers_size

__all__ = ["own_headers", "text_size"]


def own_headers(headers: Any) -> dict[str, HeaderValue]:
    """Check headers of a user's own.

    Raises:
        InvalidOption: A name is not theirs, or a value cannot travel; the message says which and why.
    """
    if not isinstance(headers, Mapping):
        raise InvalidOption(f"headers= takes a mapping of names to values, not {headers!r}.")
    for name, value in headers.items():
        if not isinstance(name, str) or not 1 <= text_size(name) <= 128:
            raise InvalidOption(f"A header's name must be a string of 1 to 128 bytes, not {name!r}.")
        if name.startswith((RESERVED_HEADER_PREFIX, "x-")) or name in {"CC", "BCC"}:
            raise InvalidOption(
                f"The header {name!r} belongs to asyncq or to RabbitMQ. Use a name of your own, such as 'shop-{name}'."
            )
        if not isinstance(value, (str, int, float, bool)):
            raise InvalidOption(
                f"The header {name!r} must be a string, a number or a boolean, not {type(value).__name__}."
            )
        if isinstance(value, str) and value and not text_size(value):
            raise InvalidOption(f"The header {name!r} is no text that UTF-8 can express: {value!r}.")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise InvalidOption(f"The header {name!r} does not fit into 64 bits. Send it as a string.")
        if isinstance(value, float) and not math.isfinite(value):  # RabbitMQ would end the connection for it
            raise InvalidOption(f"The header {name!r} is no finite number: {value!r}. Send it as a string.")
    size = headers_size(headers)
    if size > MAX_HEADERS_BYTES:
        raise InvalidOption(
            f"The headers take {size} bytes; RabbitMQ carries them in one frame, so asyncq allows {MAX_HEADERS_BYTES}. "
            "Put the data into the task's arguments."
        )
    return dict(headers)


def text_size(text: str) -> int:
    """Return the bytes that a text takes as UTF-8; 0 where it has none (a lone surrogate), so that it is refused."""
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return 0
