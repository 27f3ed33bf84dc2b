"""Whatever a foreign producer sends ends in a value: it runs, or it is a dead letter; and copies can be made of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
from collections.abc import Callable
from datetime import datetime
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from pamqp import commands, frame, header
from pydantic import BaseModel, ValidationError

import foreign
from asyncq.arguments import Arguments
from asyncq.errors import AsyncQError, MalformedMessage
from asyncq.history import history_of
from asyncq.message import ATTEMPT, EXPIRES_AT, FIRST_AT, HISTORY, UNKNOWN_SINCE, Message, copy_of, headers_size
from asyncq.outcome import Rejected
from asyncq.pending_reply import PendingReply
from asyncq.rabbitmq.dead_letters import record_from
from asyncq.rabbitmq.properties import message_from, read_message, written_message
from asyncq.rabbitmq.tables import table
from asyncq.results import ResultHandle
from asyncq.return_values import Results
from asyncq.signals import Retry, Snooze
from asyncq.worker.intake import Call, Refusal
from worker_kit import LoneDelivery, make_kit

CHANCE = st.randoms(use_true_random=False)
DEEP = b"[" * 5_000  # deeper than Python's own JSON reader goes
BODIES = st.one_of(
    st.binary(),
    CHANCE.map(foreign.body),
    st.just(DEEP),
    st.sampled_from(
        [b"", b"{}", b"null", b"[]", b'{"n": 1}', b'{"n": "1", "$then": {}}', b'{"n": 1e999}', b'{"n": NaN}']
    ),
)


def received(properties: foreign.RawProperties, body: bytes = b"{}") -> Message:
    """Return the message that the client's reader makes of a header frame."""
    payload = struct.pack(">HxxQ", commands.Basic.frame_id, len(body)) + properties.marshal()
    _, _, content = frame.unmarshal(struct.pack(">BHI", 2, 1, len(payload)) + payload + b"\xce")
    assert isinstance(content, header.ContentHeader)
    return message_from(content.properties, body)


# --- properties


@given(CHANCE, st.binary(max_size=20))
def test_any_properties_are_read_and_a_copy_of_them_comes_back_as_it_was(chance: random.Random, body: bytes) -> None:
    """A retry, a dead letter, a hand-back: what was read can be written, and nothing gets lost on the way."""
    message = received(foreign.properties(chance), body)
    copy = copy_of(message, headers={ATTEMPT: 2})
    again = read_message(written_message(copy), copy.body)
    assert read_fields(again) == read_fields(copy)
    assert len(table(copy.headers)) <= headers_size(copy.headers) + 4
    assert history_of(message.headers) is not None
    assert record_from(message.headers) is None or message.headers


def read_fields(message: Message) -> dict[str, str]:
    """Return the fields in words, because NaN is not equal to itself; an empty property is as good as none."""
    fields = {name: getattr(message, name) for name in Message.__slots__}
    fields["timestamp_ms"] = (message.timestamp_ms or 0) // 1000
    return {name: repr(in_seconds(value) or None) for name, value in fields.items()}


def in_seconds(value: Any) -> Any:
    """Return headers with whole seconds: AMQP has no others, but some write milliseconds, which are read as such."""
    if isinstance(value, datetime):
        return value.replace(microsecond=0)
    if isinstance(value, dict):
        return {name: in_seconds(item) for name, item in value.items()}
    return [in_seconds(item) for item in value] if isinstance(value, list) else value


@given(CHANCE)
def test_a_copy_of_a_copy_is_the_same(chance: random.Random) -> None:
    """A task is retried many times: nothing may grow or change with each time."""
    first = copy_of(received(foreign.properties(chance)), headers={ATTEMPT: 2})
    second = copy_of(read_message(written_message(first), first.body), headers={ATTEMPT: 2})
    assert read_fields(second) == {**read_fields(first), "message_id": repr(second.message_id)}


# --- bodies


class Text(BaseModel):
    """A message of its own."""

    n: int
    text: str = ""


def by_name(n: int, text: str = "") -> None: ...
def by_position(n: int, text: str = "", /) -> None: ...
def with_model(message: Text) -> None: ...
def with_everything(
    n: float | None, text: bytes | list[Any] | dict[str, Any] = b"", *, more: Text | None = None
) -> None: ...
def with_nothing() -> None: ...


FUNCTIONS = (by_name, by_position, with_model, with_everything, with_nothing)


@given(BODIES, st.sampled_from(FUNCTIONS))
def test_any_body_is_arguments_or_one_of_two_errors(body: bytes, function: Callable[..., None]) -> None:
    """And arguments that were read can be called with."""
    try:
        args, kwargs = Arguments.of(function).decode(body)
    except (MalformedMessage, ValidationError):
        pass
    else:
        function(*args, **kwargs)


@given(st.dictionaries(st.text(max_size=5).map("$".__add__), CHANCE.map(foreign.json_value), max_size=3), st.integers())
def test_the_keys_of_workflows_change_nothing_of_the_arguments(more: dict[str, Any], n: int) -> None:
    """They are in the body for others to read."""
    arguments = Arguments.of(by_name)
    plain, carried = json.dumps({"n": n, "text": "é"}), json.dumps({**more, "n": n, "text": "é"})
    assert read(arguments, plain.encode()) == read(arguments, carried.encode())


def read(arguments: Arguments, body: bytes) -> object:
    try:
        return arguments.decode(body)
    except ValidationError as error:
        return [(item["loc"], item["type"]) for item in error.errors()]


# --- the worker

OWN_HEADERS = st.dictionaries(
    st.sampled_from([ATTEMPT, FIRST_AT, UNKNOWN_SINCE, EXPIRES_AT, HISTORY]),
    st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.text(max_size=20),
        st.none(),
        st.booleans(),
        st.floats(),
        st.lists(st.integers(-(2**63), 2**63 - 1), max_size=2),
        st.just('[{"attempt": 1, "at": 1, "type": "e", "message": "m", "worker": "w"}]'),
    ),
    max_size=3,
)
TYPES = st.sampled_from(["work", "", "unknown", "work "])


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Return a foreign message that is close enough to a task's to come far."""
    chance = draw(CHANCE)
    kind = draw(TYPES).encode()
    fixed: dict[str, Any] = {"message_type": bytes([len(kind)]) + kind}
    if draw(st.booleans()):
        fixed.update(content_type=None, content_encoding=None)
    message = received(foreign.properties(chance, **fixed), draw(BODIES))
    return Message(
        **{name: getattr(message, name) for name in Message.__slots__ if name != "headers"},
        headers={**message.headers, **draw(OWN_HEADERS)},
    )


@given(messages(), st.none() | st.integers(0, 100))
def test_any_delivery_is_read_as_a_call_or_a_refusal(message: Message, deliveries: int | None) -> None:
    """Never as an exception: that would be asyncq's failure, not the message's."""

    async def look() -> Call | Refusal:
        kit = await make_kit()
        kit.task()(work)
        return kit.intake.read(LoneDelivery(message, [], deliveries=deliveries))

    found = asyncio.run(look())
    assert isinstance(found, Call | Refusal)
    assert found.attempt >= 1


async def work(n: int, text: str = "") -> int:
    """Succeed, fail, ask for another attempt: by the argument."""
    if n % 4 == 1:
        raise ValueError(text)
    if n % 4 == 2:
        raise Retry(after=1)
    if n % 4 == 3:
        raise Snooze(1)
    return n


@given(messages())
def test_any_delivery_is_settled_once_and_ends_where_it_can_be_seen(message: Message) -> None:
    """A reply of success, a dead letter, a copy to come; or it had expired."""

    async def run() -> None:
        kit = await make_kit(patience_s=0)
        kit.task()(work)
        delivery = LoneDelivery(message, kit.broker.log)
        executed = await kit.execution.execute(delivery)
        await kit.settlement.settle(executed)
        assert delivery.settled == "acked"
        letters, copies = await kit.letters(), kit.broker.copies()
        assert len(letters) + len(copies) <= 1
        if isinstance(executed.outcome, Rejected):
            assert len(letters) == 1
        for letter in letters:
            assert letter.record is not None
            assert letter.record.reason != "internal error", letter.record
            assert (letter.message.body, letter.message.task_id) == (message.body, message.task_id)
            assert record_from(letter.message.headers) == letter.record
        for copy in copies:
            again = read_message(written_message(copy.message), message.body)
            assert read_fields(again) == read_fields(copy.message)

    asyncio.run(run())


# --- replies

REPLY_TYPES = st.sampled_from(["progress", "succeeded", "failed", "rejected", "cancelled", "expired", "", "nonsense"])
REPLY_BODIES = st.one_of(
    BODIES,
    st.sampled_from(
        [
            b'{"type": null}',
            b'{"expires_at": 1e300, "met_at": 1}',
            b'{"expires_at": 1, "met_at": 1, "error": 1}',
            b'{"expires_at": true, "met_at": -1, "error": {"type": [], "message": {}}}',
            b'{"done": {}, "total": [], "label": 1, "details": 7}',
        ]
    ),
)


@given(st.lists(st.tuples(REPLY_TYPES, REPLY_BODIES), max_size=4))
@example([("progress", DEEP), ("failed", DEEP)])
@example([("expired", DEEP)])
def test_any_reply_ends_a_handle_or_is_passed_over(replies: list[tuple[str, bytes]]) -> None:
    """With a result, or with an error of asyncq's; a broken update hides nothing."""

    async def wait() -> None:
        pending = PendingReply()
        handle = ResultHandle("t", pending, Results.of(int, task="shop.work").decode)
        for kind, body in replies:
            pending.feed(Message(type=kind, body=body, task_id="t", message_id="m"))
        with contextlib.suppress(AsyncQError):
            assert type(await handle.result(timeout=0 if pending.final is None else None)) is int
        with contextlib.suppress(AsyncQError):
            if pending.final is not None:
                [update async for update in handle.updates()]

    asyncio.run(wait())
