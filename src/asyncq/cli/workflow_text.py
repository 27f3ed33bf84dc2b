"""The status of a workflow as a tree for people and as JSON for programs. Pure.

    01a2...  started: 3 of 5 tasks have ended
      0      shop.fetch  succeeded  0.12 s
      1      3 at once
      1.0.0    shop.count  succeeded  0.10 s
      1.1.0    shop.count  failed  ValueError: no numbers
      1.2.0    shop.count  started
      2      shop.merge  not sent yet

Of a large group only what is worth looking at is shown: what has failed, and what is under way; the rest is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from asyncq.cli.status_text import as_json, note, took
from asyncq.cli.text import printable
from asyncq.status import TaskState
from asyncq.workflow_progress.shape import Line
from asyncq.workflow_progress.status import NodeStatus, WorkflowStatus

__all__ = ["tree", "workflow_json"]

_MANY = 20
_SHOWN_OF_MANY = 20


def tree(status: WorkflowStatus) -> str:
    """Return a workflow as a tree, a line a task."""
    head = f"{status.id}  {status.state}: {status.done} of {status.total} tasks have ended"
    lines = [head, *_lines(status.shape.line, iter(status.nodes), "", 1)]
    if (error := status.own.error) is not None:
        lines += ["", f"{error.type}: {error.message}"]
    return printable("\n".join(lines))


def workflow_json(status: WorkflowStatus) -> dict[str, Any]:
    """Return a workflow as a JSON object, with an object for each task that is known."""
    own = as_json(status.own)
    own.pop("workflow", None)
    return {
        **own,
        "state": status.state.value,
        "done": status.done,
        "total": status.total,
        "tasks": [{**as_json(node.status), "path": node.path, "stopped": node.stopped} for node in status.nodes],
    }


def _lines(line: Line, nodes: Iterator[NodeStatus], prefix: str, depth: int) -> Iterator[str]:
    for position, element in enumerate(line):
        path = f"{prefix}{position}"
        if isinstance(element, str):
            yield _line(next(nodes), depth)
            continue
        collects = ", errors are collected" if element.errors == "collect" else ""
        yield f"{'  ' * depth}{path}  {len(element.members)} at once{collects}"
        inner = (
            [list(_lines(member, nodes, f"{path}.{index}.", depth + 1)) for index, member in enumerate(element.members)]
            if len(element.members) <= _MANY
            else list(_few(element.members, nodes, depth + 1))
        )
        for lines in inner:
            yield from lines


def _few(members: Sequence[Line], nodes: Iterator[NodeStatus], depth: int) -> Iterator[list[str]]:
    """Yield the lines of what is worth looking at in a large group, and the number of the others."""
    counts: Counter[str] = Counter()
    shown: list[str] = []
    for member in members:
        for _ in range(_tasks_in(member)):
            node = next(nodes)
            is_dull = node.state in {TaskState.SUCCEEDED, TaskState.UNKNOWN, TaskState.QUEUED}
            if is_dull or len(shown) == _SHOWN_OF_MANY:
                counts[_state(node)] += 1
            else:
                shown.append(_line(node, depth))
    yield shown
    if counts:
        yield [f"{'  ' * depth}{'and ' if shown else ''}" + ", ".join(f"{n:,} {state}" for state, n in counts.items())]


def _tasks_in(line: Line) -> int:
    return sum(1 if isinstance(item, str) else sum(map(_tasks_in, item.members)) for item in line)


def _line(node: NodeStatus, depth: int) -> str:
    parts = (node.path, node.task, _state(node), took(node.status), note(node.status))
    return "  " * depth + "  ".join(part.replace("\n", " ") for part in parts if part)


def _state(node: NodeStatus) -> str:
    if node.stopped:
        return "never runs"
    return "not sent yet" if node.state is TaskState.UNKNOWN else node.state.value
