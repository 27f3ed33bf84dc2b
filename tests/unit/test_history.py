"""The history of a task's failed attempts: one bounded header, whatever is in it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncq.history import MAX_BYTES, MAX_ENTRIES, FailedAttempt, history_of, history_text
from asyncq.message import HISTORY
from asyncq.outcome import Failure


def attempt(number: int, message: str = "no luck") -> FailedAttempt:
    failure = Failure("builtins.ValueError", message, "Traceback ...")
    return FailedAttempt.of(failure, attempt=number, failed_at_ms=1_750_000_000_000 + number, worker="host:1")


def test_a_history_is_json_that_people_can_read():
    """In the management UI, newest last."""
    text = history_text([attempt(1, "Grüße"), attempt(2)])
    assert text == (
        '[{"attempt":1,"at":1750000000001,"type":"builtins.ValueError","message":"Grüße","worker":"host:1"},'
        '{"attempt":2,"at":1750000000002,"type":"builtins.ValueError","message":"no luck","worker":"host:1"}]'
    )
    assert history_of({HISTORY: text}) == (attempt(1, "Grüße"), attempt(2))


def test_only_the_last_attempts_are_kept():
    """Ten of them."""
    text = history_text([attempt(number) for number in range(1, 31)])
    assert [entry.attempt for entry in history_of({HISTORY: text})] == list(range(21, 31))


@settings(derandomize=True, max_examples=50)
@given(st.lists(st.text(max_size=2000) | st.sampled_from(["\0" * 2000, "\ud800", "ä" * 2000]), max_size=20))
def test_a_history_of_any_errors_fits_and_can_be_read_back(messages: list[str]):
    """Control characters take six bytes each in JSON, and half a surrogate pair none that could be sent."""
    attempts = [attempt(number, message) for number, message in enumerate(messages, 1)]
    text = history_text(attempts)
    assert len(text.encode()) <= MAX_BYTES
    kept = history_of({HISTORY: text})
    assert len(kept) <= MAX_ENTRIES
    assert list(kept) == attempts[len(attempts) - len(kept) :]
    assert kept or not attempts


ENTRY = {"attempt": 1, "at": 2, "type": "t", "message": "m", "worker": "w"}


@pytest.mark.parametrize(
    "value",
    [
        None,
        5,
        b"[]",
        "",
        "not json",
        "null",
        "{}",
        "[1]",
        "[{}]",
        "[" * 30_000,
        "[" + "9" * 5_000 + "]",
        json.dumps([ENTRY] * 1000),
        json.dumps([{**ENTRY, "attempt": True}]),
        json.dumps([{**ENTRY, "at": "now"}]),
        json.dumps([{**ENTRY, "at": 2**63}]),
        json.dumps([{**ENTRY, "at": -1}]),
        json.dumps([{**ENTRY, "message": None}]),
        json.dumps([ENTRY, {**ENTRY, "worker": 5}]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_no_history_counts_as_none(value: object):
    """A foreign client may put anything there, and a task must not fail for it."""
    assert history_of({HISTORY: value}) == ()


def test_what_a_foreign_client_wrote_is_cut_and_can_be_written_again():
    """Long texts, and text that UTF-8 cannot express."""
    (entry,) = history_of({HISTORY: json.dumps([{**ENTRY, "message": "\ud800" + "x" * 5000}])})
    assert len(entry.message.encode()) <= 500
    assert history_of({HISTORY: history_text([entry])}) == (entry,)
