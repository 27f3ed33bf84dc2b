"""Dead letters as values: filters, replayed copies, changed arguments, ages, and where a message was going."""

from __future__ import annotations

import asyncio
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq import DeadLetterFilter
from asyncq.broker import DeadLetter, DeadLetterRecord
from asyncq.cli.dead_options import FilterOptions, read_age, read_changes
from asyncq.cli.dead_text import counts_as_table, shown, whole_as_json
from asyncq.clock import SystemClock
from asyncq.dead_letters.copies import arguments_as_json, replay_of, with_arguments
from asyncq.dead_letters.reports import LetterCount
from asyncq.dead_letters.run import BATCH, Pace
from asyncq.dead_letters.tally import RunTally, SummaryTally
from asyncq.errors import InvalidOption, MalformedMessage
from asyncq.history import FailedAttempt
from asyncq.life import REPLAYS, SENT_AT
from asyncq.message import Message
from asyncq.outcome import Failure
from asyncq.rabbitmq.dead_letters import letter_of, record_headers
from asyncq.rabbitmq.letter_origin import letter_from
from asyncq.rabbitmq.topology import Names
from asyncq.testing.clock import ManualClock

NOW_MS = 1_750_000_000_000
RECORD = DeadLetterRecord(
    Failure("a.b.TimeoutError", "late", "Traceback"),
    "attempts exhausted",
    NOW_MS - 60_000,
    3,
    "mail",
    "host 1",
    (FailedAttempt(1, 1, "a.b.TimeoutError", "late", "host 1"),),
)
MESSAGE = Message(type="shop.mail", body=b'{"n":1}', task_id="1", message_id="m")
LETTER = DeadLetter(MESSAGE, RECORD, "mail", RECORD.failed_at_ms)


@pytest.mark.parametrize(
    ("conditions", "holds"),
    [
        ({}, True),
        ({"task": "shop.mail"}, True),
        ({"task": "shop"}, False),
        ({"task": "*.mail"}, True),
        ({"task": "shop.m[a]il"}, False),
        ({"error": "a.b.TimeoutError"}, True),
        ({"error": "TimeoutError"}, True),
        ({"error": "Timeout*"}, True),
        ({"error": "a.*"}, True),
        ({"error": "b.TimeoutError"}, False),
        ({"reason": "attempts*"}, True),
        ({"reason": "attempts"}, False),
        ({"older_than": 59}, True),
        ({"older_than": timedelta(minutes=1)}, False),
        ({"newer_than": timedelta(minutes=1)}, True),
        ({"newer_than": 59.9}, False),
        ({"ids": ["2", "1"]}, True),
        ({"ids": []}, False),
        ({"task": "shop.mail", "ids": {"2"}}, False),
    ],
    ids=str,
)
def test_a_filter_holds_where_all_its_conditions_do(conditions, holds):
    """`*` is the only wildcard."""
    assert DeadLetterFilter(**conditions).matches(LETTER, NOW_MS) is holds


def test_what_is_not_known_of_a_letter_fits_no_condition():
    """Neither older nor newer, and no error."""
    unknown = DeadLetter(MESSAGE, None)
    for condition in ({"older_than": 0}, {"newer_than": 10**9}, {"error": "*"}):
        assert not DeadLetterFilter(**condition).matches(unknown, NOW_MS)
    assert DeadLetterFilter(reason="*by the broker*").matches(unknown, NOW_MS)


@pytest.mark.parametrize(
    "wrong", [{"task": ""}, {"error": 7}, {"older_than": -1}, {"newer_than": "1h"}, {"ids": "abc"}], ids=str
)
def test_a_filter_that_cannot_be_meant_is_refused(wrong):
    """At once, not at the first letter."""
    with pytest.raises(InvalidOption, match=next(iter(wrong))):
        DeadLetterFilter(**wrong)


def test_nothing_of_a_record_is_left_in_a_replayed_copy_but_the_history():
    """Whatever headers a record has, now and later."""
    letter = letter_of(replace(MESSAGE, headers={"mine": 1}), RECORD)
    assert record_headers(RECORD).keys() <= letter.headers.keys()
    replay = replay_of(letter, 1_000)
    assert replay.headers.keys() == {"mine", "asyncq-history", SENT_AT, REPLAYS}
    assert (replay.headers[SENT_AT], replay.headers[REPLAYS]) == (1_000, 1)
    # The clock of who sends it back once more is behind; it is a later life all the same.
    again = replay_of(replay, 10).headers
    assert (again[SENT_AT], again[REPLAYS]) == (1_001, 2)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=5), st.dictionaries(st.text(max_size=3), JSON, max_size=3))
def test_changed_arguments_are_merged_over_the_others(body, changes):
    """As dictionaries are, whatever names and values they have."""
    wanted = {name: value for name, value in changes.items() if not name.startswith("$")}
    for written in (json.dumps(body), json.dumps(body, indent=2, ensure_ascii=False)):
        merged = with_arguments(written.encode("utf-8", "replace"), arguments_as_json(wanted))
        expected = {**json.loads(written.encode("utf-8", "replace")), **wanted}
        assert json.loads(merged) == expected


def test_arguments_that_are_not_changed_keep_their_very_text():
    """No number is rounded on the way."""
    body = b' { "a" : 1.10, "b":123456789012345678901234567890.5 ,"c" :[1, 2]} '
    assert with_arguments(body, {"c": "3"}) == b'{"a":1.10,"b":123456789012345678901234567890.5,"c":3}'
    assert with_arguments(b"{ }", {"c": "3"}) == b'{"c":3}'


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"a"}', b'{"a":1,}', b'{"a":1} x', b"{1:2}", b"\xff", b"[" * 9999]
)
def test_a_body_that_is_no_json_object_cannot_be_changed(body):
    """And says so."""
    with pytest.raises(MalformedMessage, match="no JSON object"):
        with_arguments(body, {"a": "1"})


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1d12h", 129_600), ("1w", 604_800)]
)
def test_ages_are_read(text, seconds):
    """As people write them."""
    assert read_age(text, "--older-than") == seconds


@pytest.mark.parametrize("text", ["", "h", "2 h", "-1h", "two", "1h2", "1y"])
def test_what_is_no_age_is_refused_with_an_example(text):
    """The option is named."""
    with pytest.raises(InvalidOption, match=r"--older-than takes an age, for example 90s"):
        read_age(text, "--older-than")


def test_changes_are_read_from_both_options():
    """JSON each; a text without its quotes is explained."""
    assert read_changes('{"a": 1}', ["b=[2]", 'c="x=y"']) == {"a": 1, "b": [2], "c": "x=y"}
    for arguments, settings, said in [
        (None, ["a"], "NAME=JSON"),
        (None, ["a=blue"], """--set a='"blue"'"""),
        ('{"a": 1}', ["a=2"], "given twice"),
        ("[1]", [], "JSON object"),
    ]:
        with pytest.raises(InvalidOption, match=said.replace("[", r"\[")):
            read_changes(arguments, settings)
    empty = {"task": None, "error": None, "reason": None, "older_than": None, "newer_than": None, "ids": []}
    assert FilterOptions(**empty).read() is None


# --- where a message came from

NAMES = Names()


def unroutable(key: str, exchange: str = "", **headers) -> DeadLetter:
    message = replace(MESSAGE, headers=headers)
    return letter_from(message, None, names=NAMES, parked="asyncq.unroutable", exchange=exchange, key=key)


def test_the_key_of_an_unroutable_message_tells_its_queue():
    """With the digits of a delay before it, or as it is."""
    assert unroutable("0.0.0.0.0.0.1.f.a.mail", "asyncq.delay.v1.deliver").queue == "a.mail"
    assert unroutable("mail", "asyncq.dead").queue == "mail"
    assert unroutable("0.0.0.0.0.0.1.f.mail", "asyncq.dead").queue == "0.0.0.0.0.0.1.f.mail"
    assert unroutable("asyncq.unroutable").queue is None
    assert unroutable("").queue is None


def test_the_latest_death_tells_queue_time_and_reason():
    """A queue of the ladder is no task queue."""
    died = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    deaths = [{"queue": "mail", "reason": "rejected", "time": died}, {"queue": "asyncq.delay.v1.level0.1"}]
    letter = unroutable("x", **{"x-death": deaths})
    assert (letter.queue, letter.broker_reason, letter.failed_at_ms) == ("mail", "rejected", died.timestamp() * 1000)
    assert unroutable("0.0.0.0.0.0.0.1.mail", **{"x-death": deaths[1:]}).queue == "mail"
    for odd in (7, [], [7], [{"queue": 7, "time": "soon", "reason": None}]):
        letter = letter_from(replace(MESSAGE, headers={"x-death": odd}), None, names=NAMES, parked="mail.dead")
        assert (letter.queue, letter.broker_reason, letter.failed_at_ms) == ("mail", None, None)


# --- counting, printing, pacing


def test_a_summary_of_garbage_takes_bounded_memory():
    """Beyond a thousand kinds they are counted together."""
    tally = SummaryTally()
    for number in range(3000):
        tally.add(DeadLetter(replace(MESSAGE, type=f"garbage {number}"), None, "mail"))
    counts = tally.counts()
    assert len(counts) == 1001
    assert (counts[0].count, counts[0].task) == (2000, "(others)")
    run = RunTally(DeadLetterFilter(), dry_run=False, limit=None)
    for number in range(3000):
        run.fails(LETTER, f"reason {number}")
    assert len(run.replay_report().failures) == 21
    assert sum(run.replay_report().failures.values()) == 3000


def test_a_letter_with_the_oddest_headers_can_be_printed():
    """For people without control characters, for programs as JSON."""
    odd = {
        "bytes": b"\xff",
        "time": datetime(2026, 1, 1, tzinfo=UTC),
        "nested": {"list": [1, None, math.inf]},
        "half": "\ud800",
        "bell": "\x07",
    }
    letter = replace(LETTER, message=replace(MESSAGE, headers=odd, body=b"\xff"))
    json.dumps(whole_as_json(letter), ensure_ascii=False).encode()
    text = shown(letter)
    text.encode()
    assert "\x07" not in text
    assert "in base64" in text
    assert "Traceback" in text


def test_counts_are_a_table_with_one_row_a_kind():
    """What is unroutable says what it was for."""
    table = counts_as_table(
        {
            "mail": [LetterCount("mail", "shop.mail", "builtins.ValueError", "why", 1200, 1, 2)],
            "asyncq.unroutable": [LetterCount(None, "", None, "by the broker", 3, None, None)],
        }
    )
    heads, first, second = table.splitlines()
    assert heads.split() == ["QUEUE", "TASK", "ERROR", "COUNT", "OLDEST", "NEWEST"]
    assert first.split() == ["mail", "shop.mail", "builtins.ValueError", "1200", *["1970-01-01T00:00:00Z"] * 2]
    assert second.split("  ")[0] == "asyncq.unroutable (for an unknown queue)"
    assert "(by the broker)" in second


@pytest.mark.parametrize("rate", [0, -1, 0.001, math.inf, math.nan, "10", True])
def test_a_rate_that_cannot_be_kept_is_refused(rate):
    """Slower than one in 100 seconds would hold letters for too long."""
    with pytest.raises(InvalidOption, match="letters a second"):
        Pace(rate, SystemClock())


async def test_a_rate_is_kept_by_the_clock():
    """The first batch goes at once, each further one when its time has come."""
    clock = ManualClock()
    pace = Pace(50, clock)
    assert (pace.batch, Pace(None, clock).batch, Pace(0.5, clock).batch) == (5, BATCH, 1)
    await pace.wait(5)
    second = asyncio.create_task(pace.wait(5))
    await asyncio.sleep(0)
    assert not second.done()
    await clock.advance(0.099)
    assert not second.done()
    await clock.advance(0.002)
    await second
