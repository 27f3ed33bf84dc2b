"""A workflow as the result store knows it: read again and again, each time only what has not ended."""

from __future__ import annotations

from itertools import islice

from asyncq.errors import TaskNotFound
from asyncq.program import node_id
from asyncq.recording import Recorder
from asyncq.status import TaskState, TaskStatus
from asyncq.workflow_progress.shape import WorkflowShape
from asyncq.workflow_progress.status import WorkflowStatus, workflow_status
from asyncq.workflow_progress.tracking import Tracker

__all__ = ["StoredWorkflow", "shape_in"]

_READ_AT_ONCE = 500


class StoredWorkflow:
    """What one reader has seen so far.

    Args:
        workflow_id: The workflow's id.
        shape: Its tasks.
        recorder: The way to the store.
        whole: Whether all that is known of each task is kept, or only of those that failed and of the last ones.

    Attributes:
        tracker: How far it is.
        own: What is known under the workflow's own id.
        known: What is known of its tasks.
        latest: A task that has ended since the last look.
    """

    def __init__(self, workflow_id: str, shape: WorkflowShape, recorder: Recorder, *, whole: bool) -> None:
        self._shape = shape
        self._recorder = recorder
        self._whole = whole
        self._finals = {node_id(workflow_id, path) for path in shape.finals()}
        self.tracker = Tracker(workflow_id, shape)
        self.own = TaskStatus(workflow_id)
        self.known: dict[str, TaskStatus] = {}
        self.latest: str | None = None

    async def look(self) -> None:
        """Read what has not ended, as far as is known.

        Raises:
            ResultStoreError: The store cannot be used.
        """
        (self.own,) = await self._recorder.read([self.own.id])
        if self.own.state is TaskState.SUCCEEDED and not self._whole:
            self.tracker.end_all()
            return
        open_ids = (node.id for node in list(self.tracker.nodes.values()) if not node.ended)
        while some := list(islice(open_ids, _READ_AT_ONCE)):
            for status in await self._recorder.read(some):
                self._take(status)

    def _take(self, status: TaskStatus) -> None:
        state = status.state
        if state.final:
            self.tracker.end(status.id, succeeded=state is TaskState.SUCCEEDED)
            self.latest = status.task
        failed = state.final and state is not TaskState.SUCCEEDED
        if self._whole or failed or status.id in self._finals:
            self.known[status.id] = status

    @property
    def over(self) -> bool:
        """Whether it has ended, or cannot succeed any more."""
        return self.tracker.ended or bool(self.tracker.failures) or self.own.state.final

    def status(self) -> WorkflowStatus:
        """Return what was seen."""
        return workflow_status(self.tracker, self._shape, self.own, self.known)


async def shape_in(recorder: Recorder, workflow_id: str) -> WorkflowShape:
    """Return the shape that the store has.

    Raises:
        TaskNotFound: It knows no workflow of this id.
        ResultStoreError: The store cannot be used.
    """
    (own,) = await recorder.read([workflow_id])
    try:
        if own.workflow is not None:
            return WorkflowShape.from_json(own.workflow)
    except ValueError:
        pass
    what = (
        "nothing of it" if own.state is TaskState.UNKNOWN else f"a task {own.task!r} of this id, which is no workflow"
    )
    raise TaskNotFound(
        f"There is no workflow {workflow_id}: the result store {recorder.shown} knows {what}. The id may be wrong, the "
        "workflow sent without this store, or forgotten after its result_ttl."
    )
