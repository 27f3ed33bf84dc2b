"""The options of one send."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from asyncq.errors import InvalidOption
from asyncq.options import Sending


def test_a_naive_eta_is_refused_and_the_message_shows_what_to_write():
    """It is unknown which moment a naive datetime means."""
    with pytest.raises(InvalidOption, match=r"datetime\.now\(UTC\)"):
        Sending.of({"eta": datetime(2026, 1, 1)})  # noqa: DTZ001 - that is the point


def test_an_eta_in_any_zone_is_the_same_moment():
    """As milliseconds since the epoch, rounded up so that nothing runs early."""
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC) + timedelta(microseconds=1)
    east = moment.astimezone(timezone(timedelta(hours=3)))
    assert Sending.of({"eta": moment}).eta_ms == Sending.of({"eta": east}).eta_ms
    assert Sending.of({"eta": moment}).eta_ms == int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() * 1000) + 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"delay": 1, "eta": datetime.now(UTC)}, "not both"),
        ({"delay": -1}, "zero or more"),
        ({"delay": "soon"}, "seconds or a timedelta"),
        ({"eta": 5}, "aware datetime"),
        ({"countdown": 5}, "no option 'countdown'"),
        ({"task_id": ""}, "task_id"),
        ({"task_id": "x" * 129}, "task_id"),
        ({"headers": {"asyncq-attempt": 3}}, "belongs to asyncq"),
        ({"headers": {"x-death": "1"}}, "belongs to asyncq or to RabbitMQ"),
        ({"headers": {"CC": "q"}}, "belongs to"),
        ({"task_id": "\ud800"}, "task_id"),
        ({"headers": {"\ud800": "x"}}, "name"),
        ({"headers": {"a": "\ud800"}}, "UTF-8"),
        ({"headers": {"a": object()}}, "must be a string"),
        ({"headers": {"a": 2**64}}, "64 bits"),
        ({"headers": {"a": "x" * 140_000}}, "one frame"),
        ({"headers": "tenant=a"}, "mapping"),
        ({"reply": "no"}, "True or False"),
    ],
)
def test_options_that_cannot_be_used_say_what_is_wanted(options, says):
    """In the producer, before anything is sent."""
    with pytest.raises(InvalidOption, match=says):
        Sending.of(options)


def test_durations_may_be_timedeltas():
    """Seconds or timedelta, as everywhere."""
    assert Sending.of({"delay": timedelta(minutes=1), "timeout": 5}).delay_s == 60
