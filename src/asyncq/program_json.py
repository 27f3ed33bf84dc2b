"""Programs and places as JSON: written compactly, read with the distrust that a foreign client deserves.

Arguments and values are copied byte by byte when they are written.

Invariant: what is written is read as an equal value, and what is read was checked: it can be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from pydantic_core import from_json, to_json

from asyncq.body import object_of
from asyncq.callback import Callback, read_callback
from asyncq.errors import ConfigurationError, MalformedMessage
from asyncq.headers import own_headers
from asyncq.keeping import KEEP_EVERYTHING, Keep, Keeping
from asyncq.message import LATEST_MS
from asyncq.options import Sending
from asyncq.program import UNNAMED, Arrival, Errors, Fork, Place, Program, Step, Workflow
from asyncq.queue_names import check_queue_name
from asyncq.stages import LONGEST_DELAY_S

__all__ = [
    "WORKFLOW",
    "is_step",
    "place_in",
    "place_json",
    "place_of",
    "program_from_json",
    "program_json",
    "with_next_read",
    "with_place",
    "with_raw_key",
]

WORKFLOW = "$workflow"
"""The key of a task's message that holds its place. In the body, because a header frame cannot be split."""

_LONGEST_NAME = 255
_MOST_DEEP = 60
_SECONDS = ("delay_s", "expires_s", "time_limit_s", "soft_time_limit_s", "deadline_s")
_MOMENTS = ("eta_ms", "expires_ms", "deadline_ms")


# --- writing


def program_json(program: Program) -> bytes:
    """Return a program as JSON."""
    return b"[%b]" % b",".join(map(_element, program))


def _element(element: Step | Fork) -> bytes:
    return _step(element) if isinstance(element, Step) else _fork(element)


def _step(step: Step) -> bytes:
    value: dict[str, Any] = {"id": step.id, "task": step.task, "queue": step.queue}
    if step.into is not None:
        value["into"] = step.into
    if options := _options(step):
        value["options"] = options
    raw = {"arguments": None if step.arguments.strip() == b"{}" else step.arguments, "items": step.items}
    return _with_raw(value, raw)


def _options(step: Step) -> dict[str, Any]:
    sending = step.sending
    options: dict[str, Any] = {}
    for name in (*_SECONDS, *_MOMENTS):
        if (value := getattr(sending, name)) is not None:
            options[name] = value
    if sending.headers:
        options["headers"] = dict(sending.headers)
    if sending.says_deadline:
        options["says_deadline"] = True
    if sending.says_on_failure:
        options["on_failure"] = None if sending.on_failure is None else sending.on_failure.value()
    if not step.reply:
        options["reply"] = False
    return options | _keeping(step.keeping)


def _keeping(keeping: Keeping) -> dict[str, Any]:
    values = {"keep": keeping.keep, "result_ttl_s": keeping.ttl_s}
    return {name: value for name, value in values.items() if value is not None}


def _fork(fork: Fork) -> bytes:
    value: dict[str, Any] = {"id": fork.id}
    if fork.errors != "stop":
        value["errors"] = fork.errors
    if fork.joined:
        value["joined"] = True
    return _with_raw(value, {"members": b"[%b]" % b",".join(map(program_json, fork.members))})


def place_json(place: Place) -> bytes:
    """Return a place as JSON."""
    workflow = place.workflow
    value: dict[str, Any] = {"id": workflow.id} | _keeping(workflow.keeping)
    if workflow.name != UNNAMED:
        value["name"] = workflow.name
    if workflow.deadline_ms is not None:
        value["deadline_ms"] = workflow.deadline_ms
    if workflow.sent_ms:
        value["sent_ms"] = workflow.sent_ms
    if not workflow.is_new:
        value["new"] = False
    if workflow.reply_to is not None:
        value["reply_to"] = workflow.reply_to
    if workflow.on_failure is not None:
        value["on_failure"] = workflow.on_failure.value()
    if place.chord is not None:
        chord = place.chord
        value["chord"] = {
            "id": chord.chord,
            "index": chord.index,
            "size": chord.size,
            "kept_until_ms": chord.kept_until_ms,
        }
    if not place.ends:
        value["ends"] = False
    return _with_raw(value, {"then": _then(place) if place.has_more else None})


def _then(place: Place) -> bytes:
    if not place.tail:
        return program_json(place.then)
    if not place.then:
        return place.tail
    return b"%b,%b" % (program_json(place.then)[:-1], place.tail[1:])


def with_place(body: bytes, place: Place) -> bytes:
    """Return a task's body with its place in a workflow."""
    return with_raw_key(body, WORKFLOW, place_json(place))


def with_raw_key(body: bytes, key: str, value: bytes) -> bytes:
    """Return a JSON object with one more key, the rest of it as it was, byte by byte.

    Args:
        body: The object.
        key: The key, which is not in it.
        value: JSON.
    """
    inside = body.strip()[1:-1].strip()
    return b"{%b%b%b:%b}" % (inside, b"," if inside else b"", to_json(key), value)


def _with_raw(value: dict[str, Any], raw: Mapping[str, bytes | None]) -> bytes:
    body = to_json(value)
    for key, item in raw.items():
        if item is not None:
            body = with_raw_key(body, key, item)
    return body


# --- reading


def is_step(body: bytes) -> bool:
    """Tell whether a message's body may have a place in a workflow: without reading it."""
    return b'workflow"' in body


def place_in(body: bytes) -> Place | None:
    """Return the place of a task in its workflow, of a message's body; None where it belongs to none.

    Raises:
        MalformedMessage: What is there is no place.
    """
    if not is_step(body):
        return None
    try:
        value = object_of(body).get(WORKFLOW)
    except MalformedMessage:
        return None  # the message itself is refused for it
    return None if value is None else place_of(value)


def place_of(value: Any) -> Place:
    """Check what a foreign client may have written as a place.

    Raises:
        MalformedMessage: It is none.
    """
    what = f"{WORKFLOW} "
    fields = _object(value, what)
    on_failure = fields.get("on_failure")
    workflow = Workflow(
        _name(fields.get("id"), f"{what}id"),
        None if fields.get("reply_to") is None else _name(fields["reply_to"], f"{what}reply_to"),
        None if on_failure is None else read_callback(on_failure),
        _read_keeping(fields, what),
        _name(fields.get("name", UNNAMED), f"{what}name"),
        None if fields.get("deadline_ms") is None else _integer(fields["deadline_ms"], f"{what}deadline_ms", 1),
        _integer(fields.get("sent_ms", 0), f"{what}sent_ms", 0),
        _flag(fields, "new", what),
    )
    chord = fields.get("chord")
    ends = _flag(fields, "ends", what)
    then, tail = _split(fields.get("then", []))
    return Place(workflow, then, tail, None if chord is None else _read_arrival(chord), ends)


def with_next_read(place: Place) -> Place:
    """Return a place with the next element of what follows read, if it was not.

    Raises:
        MalformedMessage: It is none.
    """
    if place.then or not place.tail:
        return place
    then, tail = _split(from_json(place.tail))
    return replace(place, then=then, tail=tail)


def _split(value: Any) -> tuple[Program, bytes]:
    """Read the first element of a program, and leave the others as they are."""
    first = _read_program(value[:1] if isinstance(value, list) else value, 0)
    return first, to_json(value[1:]) if len(value) > 1 else b""


def program_from_json(body: bytes) -> Program:
    """Return the program that was written.

    Raises:
        MalformedMessage: It is none.
    """
    try:
        value = from_json(body)
    except ValueError as error:
        raise MalformedMessage(f"A program is not JSON: {error}.") from error
    return _read_program(value, 0)


def _read_program(value: Any, depth: int) -> Program:
    if not isinstance(value, list):
        raise MalformedMessage(f"A program of {WORKFLOW} must be an array, not {value!r:.100}.")
    if depth > _MOST_DEEP:
        raise MalformedMessage(f"{WORKFLOW} is nested too deep: forks in forks go {_MOST_DEEP} deep.")
    return tuple(_read_element(item, depth) for item in value)


def _read_element(value: Any, depth: int) -> Step | Fork:
    fields = _object(value, "an element ")
    if "task" not in fields:
        return _read_fork(fields, depth)
    id_ = _name(fields.get("id"), "the id of a step")
    what = f"step {id_} "
    into, arguments, items = fields.get("into"), fields.get("arguments", {}), fields.get("items")
    queue: Any = fields.get("queue")
    try:
        check_queue_name(queue)
    except ConfigurationError as error:
        raise MalformedMessage(f"{WORKFLOW}: {what}cannot be sent: {error}") from error
    if items is not None and not (isinstance(items, list) and all(isinstance(item, dict) for item in items)):
        raise MalformedMessage(f"{WORKFLOW}: {what}has items that are no array of objects.")
    options = _object(fields.get("options", {}), f"{what}options ")
    return Step(
        id_,
        _name(fields["task"], f"{what}task"),
        queue,
        to_json(_object(arguments, f"{what}arguments ")),
        None if into is None else _name(into, f"{what}into"),
        None if items is None else to_json(items),
        _read_sending(options, what),
        _read_keeping(options, what),
        _flag(options, "reply", what),
    )


def _read_fork(fields: dict[str, Any], depth: int) -> Fork:
    id_ = _name(fields.get("id"), "the id of a fork")
    members, errors, joined = fields.get("members"), fields.get("errors", "stop"), fields.get("joined", False)
    if not isinstance(members, list):
        raise MalformedMessage(f"{WORKFLOW}: fork {id_} has no array of members.")
    if errors not in get_args(Errors) or not isinstance(joined, bool):
        raise MalformedMessage(f"{WORKFLOW}: fork {id_} has errors={errors!r} and joined={joined!r}, which are none.")
    return Fork(id_, tuple(_read_program(member, depth + 1) for member in members), errors, joined)


def _read_arrival(value: Any) -> Arrival:
    what = "chord "
    fields = _object(value, what)
    size = _integer(fields.get("size"), f"{what}size", 1)
    index = _integer(fields.get("index"), f"{what}index", 0)
    if index >= size:
        raise MalformedMessage(f"{WORKFLOW}: {what}has index {index} of {size} members.")
    return Arrival(
        _name(fields.get("id"), f"{what}id"), index, size, _integer(fields.get("kept_until_ms"), f"{what}kept_until", 0)
    )


def _read_sending(options: dict[str, Any], what: str) -> Sending:
    values: dict[str, Any] = {}
    for name in _SECONDS:
        if (seconds := options.get(name)) is not None:
            values[name] = _seconds(seconds, f"{what}{name}")
    for name in _MOMENTS:
        if (moment := options.get(name)) is not None:
            values[name] = _integer(moment, f"{what}{name}", 1)
    try:
        headers = own_headers(options.get("headers") or {})
    except ConfigurationError as error:
        raise MalformedMessage(f"{WORKFLOW}: {what}cannot be sent: {error}") from error
    on_failure = options.get("on_failure")
    callback: Callback | None = None if on_failure is None else read_callback(on_failure)
    return Sending(
        headers=headers,
        on_failure=callback,
        says_on_failure="on_failure" in options,
        says_deadline=options.get("says_deadline") is True,
        **values,
    )


def _read_keeping(fields: Mapping[str, Any], what: str) -> Keeping:
    keep, ttl_s = fields.get("keep"), fields.get("result_ttl_s")
    if keep is None and ttl_s is None:
        return KEEP_EVERYTHING
    if keep is not None and keep not in get_args(Keep):
        raise MalformedMessage(f"{WORKFLOW}: {what}keep must be one of {', '.join(get_args(Keep))}, not {keep!r}.")
    return Keeping(keep, None if ttl_s is None else _seconds(ttl_s, f"{what}result_ttl_s"))


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MalformedMessage(f"{WORKFLOW}: {what}must be an object, not {value!r:.100}.")
    return value


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value.encode("utf-8", "replace")) <= _LONGEST_NAME:
        raise MalformedMessage(f"{WORKFLOW}: {what} must be a text of 1 to {_LONGEST_NAME} bytes, not {value!r:.100}.")
    return value


def _flag(fields: Mapping[str, Any], name: str, what: str) -> bool:
    value = fields.get(name, True)
    if not isinstance(value, bool):
        raise MalformedMessage(f"{WORKFLOW}: {what}{name} must be true or false, not {value!r:.100}.")
    return value


def _integer(value: Any, what: str, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LATEST_MS:
        raise MalformedMessage(f"{WORKFLOW}: {what} must be an integer from {least} on, not {value!r:.100}.")
    return value


def _seconds(value: Any, what: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= LONGEST_DELAY_S:
        raise MalformedMessage(
            f"{WORKFLOW}: {what} must be a number of seconds, at most 100 years, not {value!r:.100}."
        )
    return float(value)
