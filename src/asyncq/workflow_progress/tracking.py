"""From the ends of a workflow's tasks to the end of the workflow.

    a task succeeds   ─▶ the next element of its line; after the last one the line has succeeded
    a line succeeds   ─▶ where it is a member of a fork that something waits for: once all have ended, the fork has
    a task fails      ─▶ its line has; the tasks behind it never run
    a member's line fails, and something waits for the fork ─▶ once all have ended, the chord has, and its line with it;
                         with `collect` it is an end like others

Each end costs as many steps as it is deep, so ten thousand of them, one after the other, are no matter. They may come
in any order, twice, or not at all: a task that has ended tells that all before it in its line have succeeded.

Invariant: what is once said of the workflow's end stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from asyncq.program import Errors, node_id
from asyncq.workflow_progress.shape import ForkShape, Line, WorkflowShape

__all__ = ["FailedChord", "FailedStep", "Failing", "Node", "Tracker"]


class Node:
    """A task of the workflow.

    Attributes:
        id: Its id.
        task: Its name.
        line: What it is an element of.
        position: Where it is in that line.
        ended: Whether it has ended, as far as is known.
        failed: Whether it has ended, and not well.
    """

    __slots__ = ("ended", "failed", "id", "line", "position", "task")

    def __init__(self, workflow_id: str, task: str, line: _Line, position: int) -> None:
        self.task = task
        self.line = line
        self.position = position
        self.id = node_id(workflow_id, self.path)
        self.ended = False
        self.failed = False

    @property
    def path(self) -> str:
        """Its place: `2`, or `0.17.1` for a task of a member."""
        return f"{self.line.prefix}{self.position}"

    @property
    def stopped(self) -> bool:
        """Whether it never runs, because what comes before it has failed."""
        return not self.ended and self.line.stops_before(self.position)


class _Fork:
    """Lines that run at the same time."""

    __slots__ = ("begun", "errors", "failed", "left", "line", "members", "position", "waited_for")

    def __init__(self, errors: Errors, line: _Line, position: int, *, waited_for: bool) -> None:
        self.errors = errors
        self.line = line
        self.position = position
        self.waited_for = waited_for
        self.begun = False
        self.members: list[_Line] = []
        self.left = 0
        self.failed: list[tuple[int, Failing]] = []

    @property
    def path(self) -> str:
        return f"{self.line.prefix}{self.position}"


class _Line:
    """Elements one after the other: the workflow, or a member of a fork."""

    __slots__ = ("done", "elements", "failed", "fork", "index")

    def __init__(self, fork: _Fork | None, index: int) -> None:
        self.fork = fork
        self.index = index
        self.elements: list[Node | _Fork] = []
        self.done = 0
        """How many elements have succeeded, from the first one on."""
        self.failed = False

    @property
    def prefix(self) -> str:
        return "" if self.fork is None else f"{self.fork.path}.{self.index}."

    @property
    def waited_for(self) -> bool:
        """Whether somebody waits for the line's value, but for whoever has sent the workflow."""
        return self.fork is not None and self.fork.waited_for

    def stops_before(self, position: int) -> bool:
        """Tell whether the element at a position is never begun."""
        if self.failed:
            return position > self.done
        return self.fork is not None and self.fork.line.stops_before(self.fork.position)


@dataclass(frozen=True, slots=True)
class FailedStep:
    """A task that has ended, and not well."""

    node: Node


@dataclass(frozen=True, slots=True)
class FailedChord:
    """A chord some of whose members have failed.

    Attributes:
        path: Where it is.
        size: How many members it has.
        members: Those that failed, by their number from 0, with why.
    """

    path: str
    size: int
    members: tuple[tuple[int, Failing], ...]


Failing = FailedStep | FailedChord


class Tracker:
    """How far one workflow is.

    Args:
        workflow_id: Its id.
        shape: Its tasks.

    Attributes:
        nodes: Its tasks by id, in order.
        done: How many tasks have ended.
        failures: Why it fails, as far as is known. What was begun beside goes on.
        ended: Whether it has ended: all its last tasks have, or can no longer run.
    """

    def __init__(self, workflow_id: str, shape: WorkflowShape) -> None:
        self.nodes: dict[str, Node] = {}
        self.done = 0
        self.failures: list[Failing] = []
        self._id = workflow_id
        self._line = _Line(None, 0)
        self._fill(self._line, shape.line)
        self._open_ends = self._count_open(self._line)
        self._go_on(self._line)  # past what has nothing in it

    @property
    def ended(self) -> bool:
        """Whether nothing more can change the outcome."""
        return self._open_ends == 0

    def end(self, node_id: str, *, succeeded: bool) -> bool:
        """Take the end of a task. What is no task of this workflow, or has ended before, changes nothing.

        Args:
            node_id: The task's id.
            succeeded: Whether it has returned.

        Returns:
            Whether that is news.
        """
        node = self.nodes.get(node_id)
        if node is None or node.ended:
            return False
        node.ended = True
        self.done += 1
        line = node.line
        if line.failed or node.position < line.done:
            return True
        if succeeded:
            self._imply(line, node.position)
            line.done = node.position + 1
            self._go_on(line)
        else:
            node.failed = True
            self._imply(line, node.position)
            line.done = node.position
            self._line_failed(line, FailedStep(node))
        return True

    def end_all(self) -> None:
        """Take the end of the whole: it has succeeded."""
        for node in self._nodes_at_the_end(self._line):
            self.end(node.id, succeeded=True)

    # --- building

    def _fill(self, line: _Line, shape: Line) -> None:
        for position, element in enumerate(shape):
            if isinstance(element, ForkShape):
                is_last = position == len(shape) - 1
                fork = _Fork(element.errors, line, position, waited_for=line.waited_for or not is_last)
                line.elements.append(fork)
                fork.left = len(element.members)
                for index, member in enumerate(element.members):
                    inner = _Line(fork, index)
                    fork.members.append(inner)
                    self._fill(inner, member)
            else:
                node = Node(self._id, element, line, position)
                line.elements.append(node)
                self.nodes[node.id] = node

    def _count_open(self, line: _Line) -> int:
        """Return how many lines' ends are ends of the workflow."""
        last = line.elements[-1] if line.elements else None
        if not isinstance(last, _Fork) or last.waited_for or not last.members:
            return 1
        return sum(self._count_open(member) for member in last.members)

    def _nodes_at_the_end(self, line: _Line) -> Iterator[Node]:
        last = line.elements[-1] if line.elements else None
        if isinstance(last, Node):
            yield last
        elif last is not None:
            for member in last.members:
                yield from self._nodes_at_the_end(member)

    # --- ends

    def _go_on(self, line: _Line) -> None:
        """Pass the forks that have nothing in them, and see whether the line has come to its end."""
        while line.done < len(line.elements):
            element = line.elements[line.done]
            if isinstance(element, Node):
                return
            if element.left > 0:
                self._begin(element)
                return
            if element.failed and element.errors == "stop":
                self._chord_failed(element)
                return
            if not element.waited_for and element.members:
                return  # its members' ends were the workflow's
            line.done += 1
        fork = line.fork
        if fork is None or not fork.waited_for:
            self._open_ends -= 1
        if fork is not None:
            self._member_ended(fork)

    def _begin(self, fork: _Fork) -> None:
        """End the members that have nothing in them. Not before the fork itself has begun."""
        if fork.begun:
            return
        fork.begun = True
        for member in fork.members:
            if member.done == 0 and not (member.elements and isinstance(member.elements[0], Node)):
                self._go_on(member)

    def _line_failed(self, line: _Line, failing: Failing) -> None:
        line.failed = True
        fork = line.fork
        if fork is not None and fork.waited_for:
            fork.failed.append((line.index, failing))
            self._member_ended(fork)
            return
        self.failures.append(failing)
        self._open_ends -= self._count_open(line)
        if fork is not None:
            self._member_ended(fork)

    def _member_ended(self, fork: _Fork) -> None:
        fork.left -= 1
        if fork.left == 0 and fork.position == fork.line.done and not fork.line.failed:
            self._go_on(fork.line)

    def _chord_failed(self, fork: _Fork) -> None:
        members = tuple(sorted(fork.failed, key=lambda item: item[0]))
        self._line_failed(fork.line, FailedChord(fork.path, len(fork.members), members))

    def _imply(self, line: _Line, position: int) -> None:
        """Take as ended what must have, for the element at a position to have begun."""
        for element in line.elements[line.done : position]:
            self._take_as_ended(element)
        fork, begun = line.fork, []
        while fork is not None:
            begun.append(fork)
            outer, at = fork.line, fork.position
            for element in outer.elements[outer.done : at]:
                self._take_as_ended(element)
            outer.done = max(outer.done, at)
            fork = outer.fork
        for fork in reversed(begun):
            self._begin(fork)

    def _take_as_ended(self, element: Node | _Fork) -> None:
        if isinstance(element, Node):
            self.done += not element.ended
            element.ended = True
            return
        element.left = 0
        if element.errors == "stop":  # of one that collects nobody knows which of its tasks have run
            for line in element.members:
                for inner in line.elements:
                    self._take_as_ended(inner)
