"""Middleware and dependencies around the code of an attempt.

    Attempt begins ──▶ outermost middleware ──▶ ... ──▶ innermost ──▶ dependencies are made ──▶ the code, in its loop,
                                                                                                 thread or process
                                                                                                    │
    Attempt ends   ◀── outermost middleware ◀── ... ◀── innermost ◀── dependencies are closed ◀── its end

All of it belongs to the attempt: its time limit, a cancellation and the drain reach a middleware that waits as they
reach the code. A thread that goes on after its limit is given up as ever; its middleware hears of the end when the
thread comes to it.

Invariant: the code runs once at most, nothing here raises, and the room that was taken for the code is given back
where a middleware does not let it run.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio

from asyncq.errors import MiddlewareError
from asyncq.middleware import AttemptInfo, Middleware, name_of_middleware
from asyncq.outcome import LostLease, Outcome, Succeeded
from asyncq.retry import RetryDefaults
from asyncq.worker.admission import Room
from asyncq.worker.attempt import AnyTask, Attempt, Decided, Overdue, Raised, Returned
from asyncq.worker.runners import run_coroutine
from asyncq.worker.verdict import decide

if TYPE_CHECKING:
    from asyncq.worker.injection import Injector

__all__ = ["Around", "Overrides"]

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Around:
    """Begins attempts, with what runs around them.

    Args:
        middleware: The app's, from the outside to the inside. A task's own is inside of it.
        defaults: The retry policies of tasks that have none of their own: what a middleware raises goes by them.
        overrides: What stands in for which dependency, now or later.
    """

    def __init__(self, middleware: Sequence[Middleware], defaults: RetryDefaults, overrides: Overrides) -> None:
        self._middleware = tuple(middleware)
        self._defaults = defaults
        self._overrides = overrides
        self._injector: Injector | None = None

    def prepare(self, tasks: Iterable[AnyTask]) -> None:
        """Look at what tasks depend on, before any of them runs.

        Raises:
            TaskDefinitionError: It cannot be had.
        """
        for task in tasks:
            if task.arguments.dependencies:
                self._injecting().prepare(task)

    def start(
        self, room: Room, attempt: Attempt, args: Sequence[Any], kwargs: Mapping[str, Any], context: contextvars.Context
    ) -> None:
        """Begin an attempt.

        Args:
            room: What runs its code.
            attempt: It is told the end.
            args: Positional arguments of the code.
            kwargs: Keyword arguments.
            context: The context variables that the code sees, and the middleware before it.
        """
        chain = self._middleware + attempt.task.run.middleware
        depends = attempt.task.arguments.dependencies
        if not chain and not depends:
            room.start(attempt, args, kwargs, context)
            return
        injector = self._injecting() if depends else None
        run = _Run(chain, room, attempt, args, kwargs, self._defaults, injector)
        attempt.code = asyncio.get_running_loop().create_task(run.all(), name=attempt.task.name, context=context)
        attempt.code.add_done_callback(run.give_back_unused)

    def _injecting(self) -> Injector:
        if self._injector is None:
            from asyncq.worker.injection import Injector  # noqa: PLC0415 - fast-depends is for who needs it only

            self._injector = Injector(self._overrides)
        return self._injector


@dataclass(slots=True, eq=False)
class _Run:
    """One attempt with its middleware and its dependencies."""

    chain: tuple[Middleware, ...]
    room: Room
    attempt: Attempt
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    defaults: RetryDefaults
    injector: Injector | None
    began: bool = False
    given_up: bool = False

    async def all(self) -> None:
        """Run it, and tell the attempt how it ended."""
        attempt, delivery = self.attempt, self.attempt.delivery
        message, deliveries = delivery.message, delivery.deliveries
        info = AttemptInfo(message, delivery.queue, attempt.number, deliveries, attempt.began_ms)
        decided = Decided(await self._from(0, info))
        if attempt.inner_end is None:
            attempt.code_ended(decided)
        else:  # a thread that was given up: its middleware has not waited for it, and its slot does
            attempt.inner_end.add_done_callback(lambda _: attempt.code_ended(decided))

    def give_back_unused(self, _: object) -> None:
        """Give the room back where the code has not begun: no middleware has called it, or none had its turn."""
        if not self.began:
            self.room.give_back()

    async def _from(self, position: int, info: AttemptInfo) -> Outcome:
        """Run the middleware at a position, with all that is inside of it. Nothing is raised."""
        if position == len(self.chain):
            if self.injector is None:
                return self._outcome(await self._code(self.kwargs))
            return self._outcome(await self.injector.run(self.attempt, self.kwargs, self._code))
        middleware = self.chain[position]
        inside: list[Outcome | None] = []
        has_ended = False

        async def call_next() -> Outcome:
            if has_ended:
                raise MiddlewareError(
                    f"The middleware {name_of_middleware(middleware)} has called call_next() after its own end, so "
                    "nothing is run. Await it: `return await call_next()`."
                )
            if inside:
                raise MiddlewareError(
                    f"The middleware {name_of_middleware(middleware)} has called call_next() twice. An attempt runs "
                    "once; to run the task again, raise Retry(...)."
                )
            inside.append(None)
            outcome = inside[0] = await self._from(position + 1, info)
            return outcome

        try:
            outcome = await middleware(info, call_next)
            if (wrong := self._wrong_with(outcome)) is not None:
                raise MiddlewareError(  # noqa: TRY301 - as if the middleware had raised it
                    f"The middleware {name_of_middleware(middleware)} has returned {wrong}. End it with `return await "
                    "call_next()`, or with an outcome of asyncq.outcome."
                )
        except GeneratorExit:  # the event loop is closed, and nothing may be awaited any more
            raise
        except BaseException as error:  # noqa: BLE001 - the invariant of this module
            done = inside[0] if inside else None
            if done is not None and isinstance(error, asyncio.CancelledError) and self.attempt.interrupted is not None:
                return done  # the work was done: the time of its middleware being over does not undo it
            return self._outcome(Raised(error))
        finally:
            has_ended = True
        return outcome

    def _wrong_with(self, outcome: object) -> str | None:
        """Return why what a middleware has returned cannot be settled; None where it can."""
        if not isinstance(outcome, Outcome):
            return f"{outcome!r}, not an Outcome"
        result: object = outcome.result if isinstance(outcome, Succeeded) else b""
        if not isinstance(result, bytes):
            return f"Succeeded with a result of type {type(result).__name__}, not bytes with the result as JSON"
        if isinstance(outcome, LostLease) and self.attempt.interrupted != "lease":
            return "LostLease, but the lease is not lost: nobody would settle the message"
        return None

    async def _code(self, kwargs: Mapping[str, Any]) -> Returned | Raised:
        attempt = self.attempt
        if attempt.interrupted is not None and attempt.given_up_for is not None:
            return Raised(asyncio.CancelledError())  # a middleware has kept the cancellation to itself
        self.began = True
        if attempt.task.runs_in == "loop":
            ending: Returned | Raised = await run_coroutine(attempt, self.args, kwargs)
            attempt.on_soft_limit = None  # from here on it would interrupt a middleware
            return ending
        # A thread and a process are told to stop in their own ways, not by a cancellation of this asyncio task.
        here, attempt.code = attempt.code, None
        attempt.inner_end = asyncio.get_running_loop().create_future()
        self.room.start(attempt, self.args, kwargs, contextvars.copy_context())
        ending = await self._end_of(attempt.inner_end)
        attempt.code = here
        self._let_go(ending)
        return ending

    async def _end_of(self, inner_end: asyncio.Future[Returned | Raised]) -> Returned | Raised:
        """Wait for the end of a thread or a process.

        A middleware's own timeout can only tell it to stop: while it goes on, neither its place nor what it depends on
        may be given to others.
        """
        attempt = self.attempt
        with anyio.CancelScope() as scope:
            while not inner_end.done():
                try:
                    await asyncio.shield(inner_end)
                except asyncio.CancelledError as error:
                    if attempt.given_up_for is not None and not inner_end.done():
                        return Raised(error)  # perhaps the event loop ends, and that must not wait
                    scope.shield = True  # a scope of anyio's around it would cancel again and again
                    attempt.context.mark_cancelled()
                    if attempt.on_interrupt is not None:
                        attempt.on_interrupt()
        return inner_end.result()

    def _let_go(self, ending: Returned | Raised) -> None:
        """Let an attempt end that was given up and settled: what comes after its code must not keep its slot."""
        if self.attempt.is_given_up and self.attempt.inner_end is None:
            self.given_up = True
            self.attempt.code_ended(ending)

    def _outcome(self, ending: Returned | Raised) -> Outcome:
        self._let_go(ending)
        return decide(self.attempt, Overdue() if self.given_up else ending, self.defaults)
