"""The wire contract's values: ids, headers, and copies."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq.errors import MalformedMessage
from asyncq.message import (
    ATTEMPT,
    MAX_HEADERS_BYTES,
    Message,
    attempt_of,
    copy_of,
    cut_text,
    derived_id,
    headers_size,
    new_id,
    unknown_since_ms_of,
)


def message(**changes):
    values = {"type": "shop.add", "body": b"{}", "task_id": "t", "message_id": "m"}
    return Message(**{**values, **changes})


def test_a_new_id_is_a_uuid_of_version_7_and_ids_sort_by_the_time_of_their_making():
    """RFC 9562: version 7, variant 10, time first."""
    first, second = new_id(), new_id()
    parsed = uuid.UUID(first)
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert str(parsed) == first
    assert first != second
    assert first[:13] <= second[:13]


def test_a_message_without_attempt_header_is_the_first_attempt():
    """Foreign producers need not know our headers."""
    assert attempt_of(message()) == 1
    assert unknown_since_ms_of(message()) is None


@pytest.mark.parametrize("value", ["three", "3", 0, -1, True, 1.5, [1]])
def test_a_malformed_attempt_header_makes_a_malformed_message(value):
    """The error names header, value and remedy."""
    with pytest.raises(MalformedMessage, match=r"asyncq-attempt.*positive integer"):
        attempt_of(message(headers={ATTEMPT: value}))


def test_a_copy_keeps_the_task_and_leaves_behind_what_could_poison_it():
    """Same id and body, a message id of its own, no broker headers, no CC and BCC."""
    original = message(
        reply_to="r",
        headers={"x-death": [{"count": 1}], "x-first-death-queue": "q", "CC": ["other"], "BCC": ["o"], "shop-a": 1},
    )
    copy = copy_of(original, headers={ATTEMPT: 2})
    assert copy.headers == {"shop-a": 1, ATTEMPT: 2}
    assert (copy.task_id, copy.body, copy.reply_to, copy.type) == ("t", b"{}", "r", "shop.add")
    assert copy.message_id not in (None, original.message_id)


def test_a_copy_drops_the_largest_foreign_headers_until_all_fit_one_frame():
    """Ours stay: they say what happened."""
    headers = {"big": "x" * 70_000, "medium": "y" * 30_000, "small": "z", ATTEMPT: 1}
    copy = copy_of(message(headers=headers), headers={"asyncq-error-traceback": "t" * 8000})
    assert set(copy.headers) == {"medium", "small", ATTEMPT, "asyncq-error-traceback"}
    assert headers_size(copy.headers) <= MAX_HEADERS_BYTES


@given(st.dictionaries(st.text(max_size=50), st.text(max_size=20_000) | st.integers() | st.binary(max_size=9_000)))
def test_a_copy_of_any_message_fits_one_frame(headers):
    """Whatever a foreign client has put there."""
    copy = copy_of(message(headers=headers), headers={"asyncq-reason": "r" * 5000})
    assert headers_size(copy.headers) <= MAX_HEADERS_BYTES


@given(st.text(), st.integers(min_value=40, max_value=400))
def test_cut_text_never_exceeds_its_limit_and_leaves_short_text_alone(text, limit):
    """Also with characters of several bytes."""
    cut = cut_text(text, limit)
    raw = text.encode("utf-8", "replace")
    assert len(cut.encode()) <= limit
    if len(raw) <= limit:
        assert cut == raw.decode()


@given(st.text(st.characters(codec="utf-8"), max_size=50), st.text(st.characters(codec="utf-8"), max_size=50))
def test_an_id_that_follows_from_another_is_a_uuid_of_version_5(task_id, position):
    """The same one each time, and the one that any other language makes."""
    namespace = uuid.UUID("6f6b5b0e-9c1f-4a53-8f0c-5e1c2f0f9d11")
    assert derived_id(task_id, position) == str(uuid.uuid5(namespace, f"{position} {task_id}"))
