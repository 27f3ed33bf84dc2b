"""The status of a workflow as a value: of each of its tasks, and of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from asyncq.errors import InvalidOption
from asyncq.status import TaskState, TaskStatus
from asyncq.workflow_progress.shape import WorkflowShape
from asyncq.workflow_progress.tracking import Tracker

__all__ = ["NodeStatus", "WorkflowStatus", "track", "workflow_status"]

_WAITING = frozenset({TaskState.UNKNOWN, TaskState.QUEUED, TaskState.SCHEDULED})


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What is known of one task of a workflow.

    Attributes:
        path: Its place: the position in its line; of a member of a group, behind those of group and member: `0.17.1`.
        status: What is known of it; UNKNOWN where it was not sent yet.
        stopped: Whether it never runs, because what comes before it has failed.
    """

    path: str
    status: TaskStatus
    stopped: bool = False

    @property
    def id(self) -> str:
        """The task's id."""
        return self.status.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self.status.task or ""

    @property
    def state(self) -> TaskState:
        """Where it is."""
        return self.status.state


@dataclass(frozen=True, slots=True)
class WorkflowStatus:
    """What is known of a workflow.

    Attributes:
        id: Its id.
        state: Where the whole is: SUCCEEDED once all its last tasks have; FAILED, CANCELLED or EXPIRED as soon as a
            task, or a chord, has ended so that it cannot succeed any more; STARTED before that.
        done: How many of its tasks have ended.
        total: How many there are.
        nodes: Its tasks, in order.
        shape: How they hang together.
        own: What the result store says under the workflow's own id.
    """

    id: str
    state: TaskState
    done: int
    total: int
    nodes: tuple[NodeStatus, ...]
    shape: WorkflowShape = field(repr=False)
    own: TaskStatus = field(repr=False)

    @property
    def failed(self) -> list[NodeStatus]:
        """Its tasks that have ended, and not well."""
        return [node for node in self.nodes if node.state.final and node.state is not TaskState.SUCCEEDED]

    def node(self, key: str) -> NodeStatus:
        """Return a task by its place, its id, or its name where only one has it.

        Raises:
            InvalidOption: There is none, or several have the name.
        """
        found = [node for node in self.nodes if key in {node.path, node.id}]
        found = found or [node for node in self.nodes if node.task == key]
        if len(found) == 1:
            return found[0]
        if not found:
            raise InvalidOption(f"Workflow {self.id} has no task at the place, of the id or of the name {key!r}.")
        places = ", ".join(node.path for node in found[:10])
        raise InvalidOption(f"Workflow {self.id} has {len(found)} tasks {key!r}. Name one by its place: {places} ...")


def track(workflow_id: str, shape: WorkflowShape, states: Mapping[str, TaskState]) -> Tracker:
    """Return how far a workflow is.

    Args:
        workflow_id: Its id.
        shape: Its tasks.
        states: What is known of them, by their ids.
    """
    tracker = Tracker(workflow_id, shape)
    for node_id in tracker.nodes:
        state = states.get(node_id)
        if state is not None and state.final:
            tracker.end(node_id, succeeded=state is TaskState.SUCCEEDED)
    return tracker


def workflow_status(
    tracker: Tracker, shape: WorkflowShape, own: TaskStatus, known: Mapping[str, TaskStatus]
) -> WorkflowStatus:
    """Return the status of a workflow.

    Args:
        tracker: How far it is.
        shape: Its tasks.
        own: What is known under its own id.
        known: What is known of its tasks, by their ids.
    """
    nodes = []
    for node in tracker.nodes.values():
        status = known.get(node.id)
        if status is None or status.state is TaskState.UNKNOWN:
            # One behind it has ended, so it has succeeded, though its own word did not come through.
            state = TaskState.SUCCEEDED if node.ended and not node.failed else TaskState.UNKNOWN
            status = TaskStatus(node.id, state, task=node.task)
        elif status.task is None:
            status = replace(status, task=node.task)
        nodes.append(NodeStatus(node.path, status, node.stopped))
    return WorkflowStatus(own.id, _state(tracker, own, nodes), tracker.done, len(nodes), tuple(nodes), shape, own)


def _state(tracker: Tracker, own: TaskStatus, nodes: list[NodeStatus]) -> TaskState:
    if tracker.failures:
        kinds = {node.state for node in nodes if node.state.final} - {TaskState.SUCCEEDED}
        return kinds.pop() if len(kinds) == 1 else TaskState.FAILED
    if tracker.ended:
        return TaskState.SUCCEEDED
    if own.state.final:
        return own.state
    if tracker.done or any(node.state not in _WAITING for node in nodes):
        return TaskState.STARTED
    first = next((node.state for node in nodes if node.state is not TaskState.UNKNOWN), TaskState.UNKNOWN)
    return own.state if first is TaskState.UNKNOWN else first
