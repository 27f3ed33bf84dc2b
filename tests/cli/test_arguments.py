"""What is typed on the command line becomes values, or a message that says what is wrong."""

import io
import json
import sys
from datetime import UTC, datetime, timedelta, timezone

import pytest

from asyncq.cli.arguments import read_eta, read_expires, read_headers, read_json_object, read_queues
from asyncq.errors import InvalidOption, InvalidQueueName


def test_a_json_object_goes_as_it_was_typed():
    """No number is rounded and no key is reordered on the way."""
    text = ' {"b": 1.10, "a": 0.1000000000000000055511151231257827, "ü": "日本"}\n'
    assert read_json_object(text) == text.strip().encode()


def test_a_dash_reads_standard_input(monkeypatch):
    """Large arguments come by a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": [1, 2]}\n')))
    assert json.loads(read_json_object("-")) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("{to: a}", "line 1, column 2"),
        ('{"a": 1', "not JSON"),
        ('{"a": 1} x', "Extra data"),
        ("{'a': 1}", "single quotes"),
        ("[1, 2]", "not an array"),
        ('"text"', "not a string"),
        ("17", "not a number"),
        ("1.5", "not a number"),
        ("true", "not a boolean"),
        ("null", "not null"),
        ('{"$then": []}', "belong to asyncq"),
        ('{"a": NaN}', "JSON has no NaN"),
        ('{"a": -Infinity}', "JSON has no -Infinity"),
        ("{" + '"a":{' * 100_000, "nested too deeply"),
        ('{"a": "\udcff"}', "not UTF-8"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read: Exceeds the limit"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_place(text, said):
    """The message says what is wrong, and where."""
    with pytest.raises(InvalidOption, match=said):
        read_json_object(text)


def test_standard_input_that_is_not_utf_8_is_refused(monkeypatch):
    """A file in another encoding is no JSON."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": "\xff"}')))
    with pytest.raises(InvalidOption, match="Standard input: this is not UTF-8"):
        read_json_object("-")


def test_headers_are_names_and_values():
    """The value may hold `=` and may be empty."""
    assert read_headers(["tenant=blue", "query=a=b", "empty="]) == {"tenant": "blue", "query": "a=b", "empty": ""}


@pytest.mark.parametrize(
    ("pairs", "said"), [(["tenant"], "NAME=VALUE"), (["=x"], "NAME=VALUE"), (["a=1", "a=2"], "given twice")]
)
def test_a_header_that_cannot_be_read_is_refused(pairs, said):
    """No guess is made."""
    with pytest.raises(InvalidOption, match=said):
        read_headers(pairs)


def test_an_eta_is_a_moment_with_a_time_zone():
    """Both ISO forms work: Z and an offset."""
    assert read_eta(None) is None
    assert read_eta("2030-01-31T08:00:00Z") == datetime(2030, 1, 31, 8, tzinfo=UTC)
    assert read_eta("2030-01-31T08:00:00+03:00") == datetime(2030, 1, 31, 8, tzinfo=timezone(timedelta(hours=3)))


@pytest.mark.parametrize(("text", "said"), [("tomorrow", "ISO 8601"), ("2030-01-31T08:00:00", "no time zone")])
def test_an_eta_that_means_no_moment_is_refused(text, said):
    """A local time without zone could mean any of 24."""
    with pytest.raises(InvalidOption, match=said):
        read_eta(text)


def test_an_expiry_is_seconds_or_a_moment_with_a_time_zone():
    """What is a number is seconds."""
    assert read_expires(None) is None
    assert read_expires("0.5") == 0.5
    assert read_expires("2030-01-31T08:00:00Z") == datetime(2030, 1, 31, 8, tzinfo=UTC)


@pytest.mark.parametrize(("text", "said"), [("soon", "seconds, or a moment"), ("2030-01-31T08:00:00", "no time zone")])
def test_an_expiry_that_is_neither_is_refused(text, said):
    """The message shows a moment that works."""
    with pytest.raises(InvalidOption, match=said):
        read_expires(text)


def test_queues_may_name_their_slots():
    """Those that do not get the default, in the order that was given."""
    assert read_queues(["mail:10", "a.b-c_d"], 3) == {"mail": 10, "a.b-c_d": 3}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["mail:0"], "from 1 to 2000"),
        (["mail:-1"], "from 1 to 2000"),
        (["mail:2001"], "from 1 to 2000"),
        (["mail:999999999999999"], "from 1 to 2000"),
        (["mail:"], "from 1 to 2000"),
        (["mail:ten"], "'ten'"),
        (["mail:²"], "from 1 to 2000"),
        (["mail:1:2"], "'1:2'"),
        ([":3"], "NAME or NAME:SLOTS"),
        ([""], "NAME or NAME:SLOTS"),
        (["mail", "mail:2"], "given twice"),
        (["mail box"], "cannot be used"),
        (["mail.dead"], "cannot be used"),
    ],
)
def test_a_queue_option_that_cannot_be_used_is_refused(names, said):
    """The message shows the option's own text."""
    with pytest.raises((InvalidOption, InvalidQueueName), match=said):
        read_queues(names, 3)
