"""A workflow as JSON, and back.

    {"chain": [{"task": "shop.add", "queue": "shop", "arguments": {"x": 1}}, ...], "options": {...}}

Invariant: what is read was checked as what is built is: an equal value is read, or an error says what is wrong, and
where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any, Protocol

import pydantic_core
from pydantic import TypeAdapter, ValidationError

from asyncq.body import ITEMS
from asyncq.errors import ConfigurationError, InvalidOption, InvalidWorkflow, MalformedMessage
from asyncq.headers import own_headers
from asyncq.keeping import keeping_of_options
from asyncq.message import LATEST_MS
from asyncq.options import Sending
from asyncq.queue_names import check_queue_name
from asyncq.signature import Declared, Sender, Signature
from asyncq.workflow.binding import check_taken
from asyncq.workflow.building import chain, chord, group
from asyncq.workflow.mapping import list_of
from asyncq.workflow.node import Node
from asyncq.workflow.partial import PartialSignature
from asyncq.workflow.values import Chord
from asyncq.workflow.workflow import Leaf, Workflow

__all__ = ["from_json", "to_json"]

_LEAF_KEYS = {"task", "queue", "arguments", "items", "into", "immutable", "reply", "keep", "result_ttl_s", "options"}
_OPTIONS = {field.name for field in fields(Sending)}
_DEEPEST = 90


class TasksByName(Sender, Protocol):
    """An app, as far as a workflow that is read needs it."""

    @property
    def tasks(self) -> Mapping[str, Declared]:
        """The declared tasks by name."""
        ...


def to_json(workflow: Workflow[Any]) -> str:
    """Return a workflow as JSON text."""
    return pydantic_core.to_json(_written(workflow)).decode()


def from_json(text: str | bytes, app: TasksByName) -> Workflow[Any]:
    """Return the workflow that was written by `to_json`, in this process or in another one.

    Args:
        text: JSON.
        app: Its tasks check the arguments, and it sends the workflow. Of a task that it does not know, the result is
            not checked against a type.

    Raises:
        InvalidWorkflow: It is none; the message says what is wrong, and where.
    """
    try:
        value = pydantic_core.from_json(text)
    except ValueError as error:
        raise InvalidWorkflow(f"A workflow is read from JSON, and this is none: {error}.") from error
    node = _Reader(app).node(value, "$", 0)
    if not isinstance(node, Workflow):
        raise InvalidWorkflow("A workflow is a chain, a group or a chord, and this is a single task.")
    return node


def _written(node: Node[Any]) -> dict[str, Any]:
    if isinstance(node, Workflow):
        value: dict[str, Any]
        if isinstance(node, Chord):
            value = {"chord": _written(node.header), "body": _written(node.body)}
            if node.errors != "stop":
                value["errors"] = node.errors
        else:
            value = {node.kind: [_written(part) for part in node.parts]}
    else:
        assert isinstance(node, Signature | PartialSignature)  # noqa: S101 - there is no other kind
        value = _written_leaf(node)
    if node.sending != Sending():
        value["options"] = _options().dump_python(node.sending, mode="json", exclude_defaults=True)
    return value


def _written_leaf(leaf: Leaf) -> dict[str, Any]:
    arguments = pydantic_core.from_json(leaf.body)
    value: dict[str, Any] = {"task": leaf.name, "queue": leaf.queue}
    if isinstance(leaf, PartialSignature):
        value["into"] = leaf.into
    elif leaf.immutable:
        value["immutable"] = True
    if ITEMS in arguments:
        value["items"] = arguments[ITEMS]
    else:
        value["arguments"] = arguments
    if not leaf.reply:
        value["reply"] = False
    keeping = {"keep": leaf.keeping.keep, "result_ttl_s": leaf.keeping.ttl_s}
    return {**value, **{name: said for name, said in keeping.items() if said is not None}}


class _Reader:
    def __init__(self, app: TasksByName) -> None:
        self._app = app

    def node(self, value: Any, place: str, depth: int) -> Any:
        """Return a node.

        Args:
            value: JSON.
            place: Where it is, for error messages: `$.chain[2]`.
            depth: How deep it is nested.
        """
        if depth > _DEEPEST:
            raise InvalidWorkflow(f"{place}: a workflow is nested {_DEEPEST} deep at most.")
        if not isinstance(value, dict):
            raise InvalidWorkflow(f"{place}: an object is wanted, not {value!r}.")
        try:
            return self._read(value, place, depth)
        except InvalidWorkflow as error:
            raise InvalidWorkflow(str(error) if str(error).startswith("$") else f"{place}: {error}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise InvalidWorkflow(f"{place}: {where or 'its value'}: {first['msg']}.") from error
        except (ConfigurationError, MalformedMessage) as error:
            raise InvalidWorkflow(f"{place}: {error}") from error

    def _read(self, value: dict[str, Any], place: str, depth: int) -> Any:
        kind = next((kind for kind in ("chain", "group", "chord", "task") if kind in value), None)
        if kind is None:
            raise InvalidWorkflow("it has none of the keys chain, group, chord, task.")
        keys = {"chain": {"chain"}, "group": {"group"}, "chord": {"chord", "body", "errors"}, "task": _LEAF_KEYS}[kind]
        if unknown := value.keys() - keys - {"options"}:
            raise InvalidWorkflow(f"a {kind} has no key {min(unknown)!r}.")
        node = self._leaf(value) if kind == "task" else self._workflow(kind, value, place, depth)
        return replace(node, sending=_sending(value["options"])) if "options" in value else node

    def _workflow(self, kind: str, value: dict[str, Any], place: str, depth: int) -> Any:
        def part(key: str) -> Any:
            return self.node(value.get(key), f"{place}.{key}", depth + 1)

        if kind == "chord":
            return chord(part("chord"), part("body"), errors=value.get("errors", "stop"))
        if not isinstance(value[kind], list):
            raise InvalidWorkflow(f"{kind} is a list of its parts, not {value[kind]!r}.")
        parts = [self.node(item, f"{place}.{kind}[{number}]", depth + 1) for number, item in enumerate(value[kind])]
        return chain(parts) if kind == "chain" else group(parts)

    def _leaf(self, value: dict[str, Any]) -> Leaf:
        name, queue, into = value["task"], value.get("queue", ""), value.get("into")
        if not isinstance(name, str) or not 1 <= len(name.encode("utf-8", "replace")) <= 255:
            raise InvalidWorkflow(f"a task's name has 1 to 255 bytes, and {name!r} has not.")
        check_queue_name(queue)
        flags = {key: value.get(key, default) for key, default in {"reply": True, "immutable": False}.items()}
        for key, flag in flags.items():
            if not isinstance(flag, bool):
                raise InvalidWorkflow(f"{key} is true or false, not {flag!r}.")
        if into is not None and not isinstance(into, str):
            raise InvalidWorkflow(f"into names an argument, and {into!r} does not.")
        task = self._app.tasks.get(name)
        decode: Callable[[bytes], Any] = pydantic_core.from_json if task is None else task.results.decode
        keeping = keeping_of_options(value.get("keep"), value.get("result_ttl_s"), "options")
        if into is not None:
            body = _arguments(value.get("arguments", {}))
            check_taken(task, name, body, into)
            return PartialSignature(
                name,
                body,
                into,
                queue,
                flags["reply"],
                decode,
                Sending(),
                keeping,
                task,
                self._app,
            )
        if "items" in value:
            body, decode = _items(value["items"], task), list_of(decode)
        else:
            body = _arguments(value.get("arguments", {}))
            if task is not None:
                task.arguments.decode(body)
        return Signature(
            name,
            body,
            queue,
            flags["reply"],
            decode,
            Sending(),
            keeping,
            flags["immutable"],
            task,
            self._app,
        )


def _arguments(value: Any) -> bytes:
    if not isinstance(value, dict) or any(key.startswith("$") for key in value):
        raise InvalidWorkflow(f"arguments are an object whose keys do not begin with '$', not {value!r}.")
    return pydantic_core.to_json(value)


def _items(value: Any, task: Declared | None) -> bytes:
    if not isinstance(value, list) or not value:
        raise InvalidWorkflow(f"items are a list of objects with arguments, not {value!r}.")
    bodies = [_arguments(item) for item in value]
    if task is not None:
        for body in bodies:
            task.arguments.decode(body)
    return b'{"%b":[%b]}' % (ITEMS.encode(), b",".join(bodies))


def _sending(value: Any) -> Sending:
    if isinstance(value, dict) and (unknown := value.keys() - _OPTIONS):
        raise InvalidWorkflow(f"there is no option {min(unknown)!r}; known: {', '.join(sorted(_OPTIONS))}.")
    sending: Sending = _options().validate_python(value)
    own_headers(sending.headers)
    _check_times(sending)
    if sending.queue is not None:
        check_queue_name(sending.queue)
    keeping_of_options(sending.keeping.keep, sending.keeping.ttl_s, "options")
    return sending


def _check_times(sending: Sending) -> None:
    """Check the times and the id as those of `.options(...)` are.

    Raises:
        InvalidOption: One cannot be used.
    """
    if sending.delay_s is not None and sending.eta_ms is not None:
        raise InvalidOption("Give either delay= or eta=, not both.")
    given: dict[str, Any] = {
        "delay": sending.delay_s,
        "expires": sending.expires_s,
        "deadline": sending.deadline_s,
        "time_limit": sending.time_limit_s,
        "soft_time_limit": sending.soft_time_limit_s,
        "timeout": sending.timeout_s,
        "task_id": sending.task_id,
    }
    options: Any = {name: option for name, option in given.items() if option is not None}
    Sending.of(options)
    for name in ("eta_ms", "expires_ms", "deadline_ms"):
        moment_ms = getattr(sending, name)
        if moment_ms is not None and abs(moment_ms) > LATEST_MS:
            raise InvalidOption(f"{name} is a moment in milliseconds since the epoch, not {moment_ms}.")


@cache
def _options() -> TypeAdapter[Sending]:
    return TypeAdapter(Sending)
