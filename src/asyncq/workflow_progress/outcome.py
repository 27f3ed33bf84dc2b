"""From what is known of a workflow's tasks to the workflow's result, or its failure.

Invariant: nothing is guessed. The result is made of the last tasks' own results; the failure is that of a task, or
names the members of a chord.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json, to_json

from asyncq.errors import ChordExpired, ChordFailed, ResultError, TaskCancelled, TaskFailed
from asyncq.failed_member import FailedMember
from asyncq.message import Message
from asyncq.outcome import Failure
from asyncq.program import node_id
from asyncq.status import TaskState, TaskStatus
from asyncq.stored_result import outcome_of
from asyncq.workflow_progress.shape import Line
from asyncq.workflow_progress.tracking import FailedChord, FailedStep, Failing, Tracker

__all__ = ["Reading", "failure_of", "own_failure", "read_values", "value_of", "whole_value"]

Reading = Callable[[bytes], Any] | Sequence["Reading"]
"""How results are read: a function; for a group one for each member, or one for them all."""

_MOST_NAMED = 100
_MOST_IN_TEXT = 5
_CHORD_FAILED = f"{ChordFailed.__module__}.{ChordFailed.__qualname__}"
_FAILED_MEMBERS = TypeAdapter(list[FailedMember])


def value_of(workflow_id: str, line: Line, reading: Reading, known: Mapping[str, TaskStatus], prefix: str = "") -> Any:
    """Return the value of a line that has succeeded.

    Args:
        workflow_id: The workflow's id.
        line: Its shape.
        reading: How its results are read.
        known: What is known of its last tasks, by their ids.
        prefix: The path of the line, for a member.

    Raises:
        ResultError: A result was not kept, or cannot be read.
    """
    if not line:
        return None
    last, path = line[-1], f"{prefix}{len(line) - 1}"
    if isinstance(last, str):
        if not callable(reading):
            raise TypeError(f"The task at {path} has one result, and not many.")
        return outcome_of(known[node_id(workflow_id, path)], reading)
    readings = [reading] * len(last.members) if callable(reading) else reading
    return [
        value_of(workflow_id, member, how, known, f"{path}.{index}.")
        for index, (member, how) in enumerate(zip(last.members, readings, strict=True))
    ]


def whole_value(status: TaskStatus, reading: Reading) -> Any:
    """Return the value that a worker has told under the workflow's own id.

    Args:
        status: What it has told.
        reading: How the result is read.

    Raises:
        ResultError: It was not kept, or cannot be read.
    """
    if callable(reading):
        return outcome_of(status, reading)
    return outcome_of(status, lambda body: _read(from_json(body), reading))


def read_values(values: Any, reading: Reading) -> Any:
    """Return the value of a workflow whose results were taken as they are, by `bytes`.

    Args:
        values: JSON; for a group a list, nested as the groups are.
        reading: How it is read.

    Raises:
        ValueError: One does not fit.
    """
    if isinstance(values, bytes):
        return reading(values) if callable(reading) else _read(from_json(values), reading)
    readings = [reading] * len(values) if callable(reading) else reading
    return [read_values(value, how) for value, how in zip(values, readings, strict=True)]


def _read(value: Any, reading: Reading) -> Any:
    if callable(reading):
        return reading(to_json(value))
    return [_read(item, how) for item, how in zip(value, reading, strict=True)]


def failure_of(workflow_id: str, tracker: Tracker, known: Mapping[str, TaskStatus]) -> ResultError:
    """Return why a workflow has failed: the first failure that is known.

    Args:
        workflow_id: Its id.
        tracker: How far it is.
        known: What is known of the tasks that failed, by their ids.
    """
    failing = tracker.failures[0]
    if all(_status(step, known).state is TaskState.CANCELLED for step in _steps(failing)):
        return TaskCancelled(f"Workflow {workflow_id} was cancelled.")
    if isinstance(failing, FailedStep):
        try:
            outcome_of(_status(failing, known), bytes)
        except ResultError as error:
            return error
        raise AssertionError
    return _chord_failed(workflow_id, failing, known)


def own_failure(status: TaskStatus, reply: Message | None = None) -> ResultError:
    """Return the failure that a worker has told under the workflow's own id.

    Args:
        status: What it has told.
        reply: The reply that it has told it by, which knows more.
    """
    told = _object(reply)
    error = status.error or Failure("unknown", "Nothing is known of why.")
    at = str(told.get("task_id") or status.id)
    kind = error.type.rpartition(".")[2]
    if kind == ChordFailed.__name__:
        return ChordFailed(at, error.type, error.message, "", _members(told.get("members")))
    if kind == ChordExpired.__name__:
        return ChordExpired(at, error.type, error.message)
    if status.state is TaskState.FAILED and not status.rejected:
        return TaskFailed(at, error.type, error.message, error.traceback)
    try:
        outcome_of(status, bytes)
    except ResultError as failure:
        return failure
    raise AssertionError


def _chord_failed(workflow_id: str, failing: FailedChord, known: Mapping[str, TaskStatus]) -> ChordFailed:
    members = [_member(workflow_id, index, why, known) for index, why in failing.members[:_MOST_NAMED]]
    text = _words(len(failing.members), failing.size, members)
    return ChordFailed(node_id(workflow_id, failing.path), _CHORD_FAILED, text, "", members)


def _words(failed: int, size: int, members: Sequence[FailedMember]) -> str:
    named = "; ".join(
        f"member {member.index}, {member.task} {member.task_id}: {_reason(member)}"
        for member in members[:_MOST_IN_TEXT]
    )
    more = f"; and {failed - _MOST_IN_TEXT} more" if failed > _MOST_IN_TEXT else ""
    return f"{failed} of {size} members failed, so its body does not run: {named}{more}"


def _reason(member: FailedMember) -> str:
    return f"{member.error_type}: {member.error_message}" if member.error_type else member.failed


def _member(workflow_id: str, index: int, failing: Failing, known: Mapping[str, TaskStatus]) -> FailedMember:
    if isinstance(failing, FailedChord):
        inner = _chord_failed(workflow_id, failing, known)
        return FailedMember(
            failed="failed",
            index=index,
            task_id=inner.task_id,
            task="a chord",
            error_type=inner.type,
            error_message=inner.message,
        )
    status = _status(failing, known)
    error = status.error or Failure("", "")
    how = "rejected" if status.rejected else status.state.value
    return FailedMember.model_validate(
        {
            "failed": how,
            "index": index,
            "task_id": status.id,
            "task": failing.node.task,
            "error_type": error.type,
            "error_message": error.message,
        }
    )


def _steps(failing: Failing) -> list[FailedStep]:
    if isinstance(failing, FailedStep):
        return [failing]
    return [step for _, inner in failing.members for step in _steps(inner)]


def _status(step: FailedStep, known: Mapping[str, TaskStatus]) -> TaskStatus:
    return known.get(step.node.id) or TaskStatus(step.node.id, TaskState.FAILED, task=step.node.task)


def _object(reply: Message | None) -> dict[str, Any]:
    try:
        found = json.loads(reply.body) if reply is not None else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _members(told: Any) -> list[FailedMember]:
    try:
        return _FAILED_MEMBERS.validate_python(told)
    except ValueError:
        return []
