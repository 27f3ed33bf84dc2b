"""What comes back for one workflow on the reply queue: the ends of its tasks, and of the whole.

One object takes the replies of all tasks. Of a success that is none of the last ones only the fact is kept, so that ten
thousand members take a few hundred bytes each.
"""

from __future__ import annotations

from asyncq.errors import ReplyLost
from asyncq.message import Message, ReplyType
from asyncq.pending_reply import Waitable, status_of_reply
from asyncq.program import node_id
from asyncq.status import TaskState, TaskStatus
from asyncq.workflow_progress.shape import WorkflowShape
from asyncq.workflow_progress.status import WorkflowStatus, workflow_status
from asyncq.workflow_progress.tracking import Tracker

__all__ = ["WorkflowReplies"]


class WorkflowReplies(Waitable):
    """The client feeds it; the workflow's handle reads it.

    Args:
        workflow_id: The workflow's id.
        shape: Its tasks.

    Attributes:
        id: The workflow's id.
        shape: Its tasks.
        tracker: How far it is.
        own: How the whole has ended, where a worker has said that.
        known: What is known of tasks: of those that failed, and of the last ones.
        lost: Why no reply can come any more.
        latest: The task that has ended last.
    """

    __slots__ = ("_finals", "id", "known", "latest", "lost", "own", "shape", "tracker")

    def __init__(self, workflow_id: str, shape: WorkflowShape) -> None:
        super().__init__()
        self.id = workflow_id
        self.shape = shape
        self.tracker = Tracker(workflow_id, shape)
        self.own: Message | None = None
        self.known: dict[str, TaskStatus] = {}
        self.lost: ReplyLost | None = None
        self.latest: str | None = None
        self._finals = {node_id(workflow_id, path) for path in shape.finals()}

    @property
    def ids(self) -> list[str]:
        """The ids whose replies belong here."""
        return [self.id, *self.tracker.nodes]

    def feed(self, message: Message) -> None:
        """Take a reply. The first final one of an id counts: a redelivered task may answer twice."""
        task_id = message.task_id
        if message.type == ReplyType.PROGRESS:
            return
        if task_id == self.id:
            self.own = self.own or message
            if self.own.type == ReplyType.SUCCEEDED:
                self.tracker.end_all()
            self._wake()
            return
        succeeded = message.type == ReplyType.SUCCEEDED
        if not self.tracker.end(task_id, succeeded=succeeded) and task_id not in self._finals:
            return
        self.latest = self.tracker.nodes[task_id].task
        if task_id not in self.known and (not succeeded or task_id in self._finals):
            self.known[task_id] = status_of_reply(task_id, message)
        self._wake()

    def lose(self, error: ReplyLost) -> None:
        """Note that the reply queue is gone. What is here already stays."""
        if not self.tracker.ended and self.own is None:
            self.lost = error
            self._wake()

    @property
    def over(self) -> bool:
        """Whether nothing more has to come: it has ended, or cannot succeed any more, or no reply can come."""
        return self.tracker.ended or bool(self.tracker.failures) or self.own is not None or self.lost is not None

    async def end(self) -> None:
        """Wait until it is over."""
        while not self.over:
            await self.changed()

    def own_status(self) -> TaskStatus:
        """Return what a worker has said of the whole; UNKNOWN before."""
        if self.own is None:
            return TaskStatus(self.id, TaskState.UNKNOWN)
        return status_of_reply(self.id, self.own)

    def status(self) -> WorkflowStatus:
        """Return what is known at this moment."""
        return workflow_status(self.tracker, self.shape, self.own_status(), self.known)
