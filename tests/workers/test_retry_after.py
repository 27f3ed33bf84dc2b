"""What a `Retry-After` means: by a table."""

from datetime import UTC, datetime

import pytest

from retry_after import retry_after_s

NOW = datetime(2025, 1, 1, 12, 0, 0, tzinfo=UTC)
IN_A_MINUTE = "Wed, 01 Jan 2025 12:01:00 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1", 1),
        (" 120 ", 120),
        ("1.5", 1.5),
        (IN_A_MINUTE, 60),
        ("Wednesday, 01-Jan-25 12:01:00 GMT", 60),  # RFC 850
        ("Wed Jan  1 12:01:00 2025", 60),  # asctime
        ("Wed, 01 Jan 2025 13:01:00 +0100", 60),
        ("3600", 3600),
        ("3601", 3600),
        ("9" * 5000, 3600),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 3600),
        (None, None),
        ("", None),
        ("0", None),
        ("0.0", None),
        ("-5", None),
        ("soon", None),
        ("1e3", None),
        ("inf", None),
        ("nan", None),
        ("\u0663", None),  # a digit, but not one of HTTP's
        ("1, 2", None),
        ("Wed, 01 Jan 2025 12:00:00 GMT", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", None),
        ("Wed, 32 Jan 2025 12:00:00 GMT", None),
        ("Wed, 01 Jan 99999 12:00:00 GMT", None),
    ],
)
def test_a_retry_after_is_seconds_or_nothing(value, seconds):
    """Malformed, now or in the past is nothing; too long is the longest."""
    assert retry_after_s(value, date=None, now=NOW, at_most_s=3600) == seconds


@pytest.mark.parametrize(
    ("date", "seconds"),
    [
        ("Wed, 01 Jan 2025 12:00:50 GMT", 10),  # its clock is ahead of ours
        ("Wed, 01 Jan 2025 09:01:00 GMT", 10_800),  # hours behind
        ("Wed, 01 Jan 2025 12:01:00 GMT", None),
        ("yesterday", 60),
        (None, 60),
    ],
)
def test_a_date_is_meant_by_the_clock_of_the_service(date, seconds):
    """Which the answer's own `Date` tells."""
    assert retry_after_s(IN_A_MINUTE, date=date, now=NOW, at_most_s=100_000) == seconds
