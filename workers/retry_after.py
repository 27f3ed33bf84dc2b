"""What an HTTP answer's `Retry-After` asks for, in seconds. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)


def retry_after_s(value: str | None, *, date: str | None, now: datetime, at_most_s: float) -> float | None:
    """Return how long to wait, in seconds; None where the header gives no delay to go by.

    That is so where it is missing, malformed, zero or in the past: "at once" from a service that is in trouble would
    use all attempts up within a moment, so the caller's own backoff decides.

    Args:
        value: The header `Retry-After`: seconds, or an HTTP date.
        date: The header `Date` of the same answer. A date is meant by the service's clock, which need not be ours.
        now: Our time, for an answer without a `Date` that can be read.
        at_most_s: The longest delay, in seconds. A service cannot put a task off for years.
    """
    text = (value or "").strip()
    if SECONDS.fullmatch(text):
        wait_s = float(text)  # never an error: a number of a thousand digits is infinite
    else:
        until = moment(text)
        if until is None:
            return None
        wait_s = (until - (moment(date or "") or now)).total_seconds()
    return min(wait_s, at_most_s) if wait_s > 0 else None


def moment(text: str) -> datetime | None:
    """Return what an HTTP date means, in any of its three forms; None where it is none."""
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
