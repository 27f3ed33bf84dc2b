"""What the behaviours of workflows share: an app with some tasks, and programs built by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

from asyncq.app import AsyncQ
from asyncq.message import Message, new_id
from asyncq.options import Sending, SendOptions
from asyncq.pending_reply import PendingReply
from asyncq.program import Errors, Fork, Program, Step, Workflow, node_id
from asyncq.testing.conformance.bench import QUEUE, Bench, eventually

__all__ = ["Flow"]


class Flow:
    """One workflow under test: it names its nodes in the order in which they are made.

    Args:
        bench: The broker under test.
        settings: Of the app.

    Attributes:
        app: Has the tasks `add`, `double`, `total`, `fail` and `note`.
        ran: What has run, in order: task and task id.
    """

    def __init__(self, bench: Bench, **settings: Any) -> None:
        self.app: AsyncQ = bench.app(**settings)
        self.id = new_id()
        self.ran: list[tuple[str, str]] = []
        self._numbers = count()
        self._declare()

    def _declare(self) -> None:
        app, ran = self.app, self.ran

        @app.task(pass_context=True)
        async def add(ctx: Any, x: int, y: int) -> int:
            ran.append(("add", ctx.task_id))
            return x + y

        @app.task(pass_context=True)
        async def double(ctx: Any, x: int) -> int:
            ran.append(("double", ctx.task_id))
            return 2 * x

        @app.task(pass_context=True)
        async def total(ctx: Any, values: list[Any]) -> Any:
            ran.append(("total", ctx.task_id))
            return sum(values) if all(isinstance(value, int) for value in values) else values

        @app.task(pass_context=True)
        async def fail(ctx: Any, x: int = 0) -> int:
            ran.append(("fail", ctx.task_id))
            raise ValueError(f"no {x}")

        @app.task(pass_context=True)
        async def note(ctx: Any) -> str:
            ran.append(("note", ctx.task_id))
            return "noted"

    # --- programs

    def step(self, task: str, into: str | None = None, options: SendOptions | None = None, **arguments: Any) -> Step:
        """Return a step of one of the app's tasks."""
        sending = Sending.of(options or {})
        name = task if "." in task else f"{QUEUE}.{task}"
        return Step(self._next(), name, QUEUE, json.dumps(arguments).encode(), into, sending=sending)

    def fork(self, *members: Program | Step, errors: Errors = "stop", joined: bool = False) -> Fork:
        """Return a fork; a member may be one step."""
        programs = tuple((member,) if isinstance(member, Step) else member for member in members)
        return Fork(self._next(), programs, errors, joined)

    def _next(self) -> str:
        return node_id(self.id, str(next(self._numbers)))

    # --- sending

    async def send(self, *program: Step | Fork, expect: Sequence[str] = (), **workflow: Any) -> PendingReply:
        """Send a program, and return what will come of it."""
        pending = await self.app.send_program(program, Workflow(self.id, **workflow), expect=[self.id, *expect])
        self.pending = pending
        return pending[self.id]

    async def end(self, pending: PendingReply) -> Message:
        """Wait for the end of the workflow."""
        message: Message = await eventually(lambda: pending.final)
        return message

    async def value(self, *program: Step | Fork, **workflow: Any) -> Any:
        """Send a program and return its value."""
        message = await self.end(await self.send(*program, **workflow))
        assert message.type == "succeeded", (message.type, message.body)
        return json.loads(message.body)

    async def failure(self, *program: Step | Fork, **workflow: Any) -> tuple[str, dict[str, Any]]:
        """Send a program that fails, and return how, and its error."""
        message = await self.end(await self.send(*program, **workflow))
        assert message.type != "succeeded", message.body
        return message.type, json.loads(message.body)

    def names(self) -> list[str]:
        """Return the tasks that have run, sorted."""
        return sorted(name for name, _ in self.ran)
