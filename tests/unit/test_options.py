"""The options of one send."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from asyncq.errors import InvalidOption
from asyncq.message import LATEST_MS
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


def test_a_naive_expiry_is_refused_and_the_message_shows_what_to_write():
    """As for an eta."""
    with pytest.raises(InvalidOption, match=r"expires=.*no time zone.*datetime\.now\(UTC\)"):
        Sending.of({"expires": datetime(2026, 1, 1)})  # noqa: DTZ001 - that is the point


def test_an_expiry_in_any_zone_is_the_same_moment():
    """As milliseconds since the epoch, rounded down so that nothing begins late; what was long ago is over."""
    moment = datetime(2026, 1, 1, 12, 0, 0, 1999, tzinfo=UTC)
    east = moment.astimezone(timezone(timedelta(hours=3)))
    wanted = int(datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp() * 1000) + 1
    assert Sending.of({"expires": moment}).times_at(0) == Sending.of({"expires": east}).times_at(0) == (0, wanted)
    assert Sending.of({"expires": datetime(1960, 1, 1, tzinfo=UTC)}).times_at(0) == (0, 1)
    west = timezone(timedelta(hours=-9))
    assert Sending.of({"expires": datetime.max.replace(tzinfo=west)}).times_at(0) == (0, LATEST_MS)


@pytest.mark.parametrize("late", [{"delay": 10, "expires": 10}, {"delay": timedelta(minutes=1), "expires": 0.5}])
def test_an_expiry_that_is_not_after_the_delay_is_refused_at_once(late):
    """Both are counted from the send, so no clock is needed; the message names both with their values."""
    with pytest.raises(
        InvalidOption, match=r"expires= \(.* s from the send\) is not after delay= \(.* s from the send\)"
    ):
        Sending.of(late)
    assert Sending.of({**late, "expires": 60.001}).times_at(1000)[1] == 61_001


def test_an_expiry_that_is_not_after_the_eta_is_refused_at_once():
    """Also in other zones; the message names both moments."""
    moment = datetime(2126, 1, 1, 12, tzinfo=UTC)
    east = moment.astimezone(timezone(timedelta(hours=3)))
    with pytest.raises(InvalidOption, match=r"expires= \(2126-01-01T12:00:00.000\+00:00\) is not after eta= \(2126-"):
        Sending.of({"eta": moment, "expires": east})
    assert Sending.of({"eta": moment, "expires": east + timedelta(milliseconds=1)}).eta_ms is not None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"expires": "soon"}, "expires= takes seconds or a timedelta from the send, or an aware datetime"),
        ({"expires": True}, "expires= takes seconds"),
        ({"expires": 0}, "more than zero and at most 100 years"),
        ({"expires": -1}, "zero or more"),
        ({"expires": timedelta(seconds=-1)}, "zero or more"),
        ({"expires": float("nan")}, "finite"),
        ({"expires": 1e12}, "leave it out"),
        ({"delay": 1, "eta": datetime.now(UTC)}, "not both"),
        ({"delay": -1}, "zero or more"),
        ({"delay": 1e12}, "at most 100 years"),
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
        ({"headers": {"a": float("nan")}}, "no finite number"),
        ({"headers": {"a": float("-inf")}}, "no finite number"),
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
