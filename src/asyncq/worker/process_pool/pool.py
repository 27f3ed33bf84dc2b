"""The pool: so many processes at most, each started when it is first needed, and kept.

    seat() ──▶ an idle process, or a new one ──▶ start(attempt) ──▶ Ended ──▶ idle again
                                                     │
                                                     ├── interrupted: `ctx.cancelled`, half a second, kill
                                                     └── the process died: the attempt fails with `ProcessDied`

A process is warm: it has imported what its tasks need. It runs one task at a time. It is replaced after
`max_tasks` tasks, and after its death; the next one is started when there is need.

Invariant: a place is held from `seat` until the process can take the next task or is gone. No process outlives
`close()`.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncq.errors import ProcessDied
from asyncq.importable import Place, place_of
from asyncq.loggers import get_logger
from asyncq.signature import Sender
from asyncq.tracing.provider import service_of_program
from asyncq.tracing.switch import current_carrier, enter
from asyncq.worker.attempt import AnyTask, Attempt, Raised, Returned
from asyncq.worker.places import Places, Taken
from asyncq.worker.process_pool.answers import Answers
from asyncq.worker.process_pool.frames import (
    Answer,
    Ask,
    Cancel,
    Ended,
    Load,
    Loaded,
    Ready,
    Run,
    Soften,
    Stop,
    Wrote,
)
from asyncq.worker.process_pool.logs import write
from asyncq.worker.process_pool.process import ChildProcess
from asyncq.worker.process_pool.raised import RaisedError
from asyncq.worker.process_pool.returned import FromProcess

__all__ = ["ProcessPool", "Seat", "cores"]

log = get_logger("asyncq.worker")

_START_TIMEOUT_S = 60.0
_LAST_WORDS_S = 0.5
_GOODBYE_S = 2.0


def cores() -> int:
    """Return how many CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(slots=True, eq=False)
class _Work:
    """What a process runs."""

    number: int
    attempt: Attempt
    answers: Answers
    variables: contextvars.Context
    asked: set[asyncio.Task[None]] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class _Member:
    """One process of the pool."""

    process: ChildProcess
    ready: asyncio.Future[None]
    loaded: asyncio.Future[RaisedError | None] | None = None
    work: _Work | None = None
    listener: asyncio.Task[None] | None = None


class Seat:
    """A place in the pool, with a process that waits for its task; or with the reason why there is none.

    Args:
        pool: The pool.
        member: The process.
        error: Why there is none.
    """

    def __init__(self, pool: ProcessPool, member: _Member | None, error: BaseException | None = None) -> None:
        self._pool = pool
        self.member = member
        self.error = error

    def start(
        self,
        attempt: Attempt,
        args: Sequence[Any],  # noqa: ARG002 - the process reads them from the message itself
        kwargs: Mapping[str, Any],  # noqa: ARG002
        variables: contextvars.Context,
    ) -> None:
        """Run the attempt."""
        self._pool.start(self, attempt, variables)

    def give_back(self) -> None:
        """Let somebody else have it."""
        self._pool.free(self)


class ProcessPool:
    """Processes for tasks with `run_in="process"`.

    Args:
        places: How many there may be.
        sender: What `ctx.sync` sends by.
        max_tasks: After how many tasks a process is replaced; None for never.
    """

    def __init__(self, places: int, sender: Sender, max_tasks: int | None = None) -> None:
        self._places = Places(places)
        self._sender = sender
        self._max_tasks = max_tasks
        self._idle: list[_Member] = []
        self._members: set[_Member] = set()
        self._closed = False

    @property
    def places(self) -> int:
        """How many tasks may run at once."""
        return self._places.total

    @property
    def busy(self) -> int:
        """How many tasks run, or are about to."""
        return self._places.held

    @property
    def pids(self) -> list[int]:
        """The process ids."""
        return sorted(member.process.pid for member in self._members)

    def running_in(self, attempt: Attempt) -> int | None:
        """Return the id of the process that runs an attempt."""
        return next(
            (item.process.pid for item in self._members if item.work is not None and item.work.attempt is attempt), None
        )

    async def check(self, tasks: Collection[AnyTask]) -> None:
        """Import the functions of tasks in a process, which then is warm.

        Raises:
            TaskDefinitionError: One cannot be imported there; the message says which and why.
            ProcessDied: No process can be started, or importing one killed it.
        """
        if not tasks:
            return
        places = [(task.name, place_of(task.function, task.name)) for task in tasks]
        member = await self._new_member()
        for name, place in places:
            member.loaded = asyncio.get_running_loop().create_future()
            member.process.send(Load(name, place))
            error = await member.loaded
            if error is not None:
                raise error.exception()
        self._idle.append(member)

    async def seat(self) -> Seat | Taken:
        """Wait for a free place, and have a process for it.

        Returns:
            The seat; or why there is none, as `Places.take`.
        """
        taken = await self._places.take()
        if taken != "taken":
            return taken
        try:
            while self._idle:
                member = self._idle.pop()  # the one that has run last is the warmest
                if member.process.is_alive:
                    return Seat(self, member)
            return Seat(self, await self._new_member())
        except (OSError, ProcessDied) as error:
            return Seat(self, None, error)
        except BaseException:
            self._places.free()
            raise

    def free(self, seat: Seat) -> None:
        """Give a seat back that was not used."""
        if seat.member is not None:
            self._idle.append(seat.member)
        self._places.free()

    def refuse(self) -> None:
        """Let nobody wait for a place any more: the worker stops."""
        self._places.refuse()

    def start(self, seat: Seat, attempt: Attempt, variables: contextvars.Context) -> None:
        """Run an attempt in the process of a seat."""
        member = seat.member
        if member is None:
            self._places.free()
            attempt.code_ended(Raised(seat.error or ProcessDied("There is no process.")))
            return
        try:
            member.process.runs += 1
            work = _Work(member.process.runs, attempt, Answers(attempt.context, self._sender), variables)
            member.process.send(_run(work))
        except Exception as error:  # noqa: BLE001 - a broken place, or a header that cannot be pickled
            self._idle.append(member)
            self._places.free()
            attempt.code_ended(Raised(error))
            return
        member.work = work
        attempt.on_soft_limit = lambda: member.process.send(Soften(work.number))
        attempt.on_interrupt = lambda: self._stop(member, work)

    async def close(self) -> None:
        """End all processes; those that run something are killed."""
        self._closed = True
        for member in self._members:
            member.process.send(Stop())
            if member.work is not None:
                member.process.kill()
        listeners = [member.listener for member in self._members if member.listener is not None]
        if listeners:
            await asyncio.wait(listeners, timeout=_GOODBYE_S)
        for member in self._members:
            member.process.kill()
        if listeners:
            await asyncio.wait(listeners)

    # --- one process

    async def _new_member(self) -> _Member:
        loop = asyncio.get_running_loop()
        root = logging.getLogger()
        member = _Member(await ChildProcess.spawn(root.getEffectiveLevel(), service_of_program()), loop.create_future())
        self._members.add(member)
        member.listener = loop.create_task(self._listen(member), name="asyncq task process")
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await asyncio.shield(member.ready)
        except TimeoutError:
            member.process.kill()
            raise ProcessDied(f"A process for tasks was not up within {_START_TIMEOUT_S:g} s.") from None
        except BaseException:
            member.process.kill()
            raise
        return member

    async def _listen(self, member: _Member) -> None:
        """Take what a process says, until it is gone."""
        try:
            async for frame in member.process.frames():
                self._take(member, frame)
        except Exception:
            log.exception("a process for tasks cannot be understood, so it is killed", pid=member.process.pid)
        await self._gone(member)

    def _take(self, member: _Member, frame: object) -> None:
        match frame:
            case Ready():
                if not member.ready.done():
                    member.ready.set_result(None)
            case Loaded(error):
                if member.loaded is not None and not member.loaded.done():
                    member.loaded.set_result(error)
            case Wrote():
                write(frame)
            case Ask():
                self._ask(member, frame)
            case Ended(number, ending):
                work = member.work
                if work is None or work.number != number:
                    return
                if isinstance(ending, RaisedError):
                    self._end(member, Raised(ending.exception()))
                else:
                    self._end(member, Returned(FromProcess(ending)))

    def _ask(self, member: _Member, ask: Ask) -> None:
        work = member.work
        if work is None:
            return

        async def answer() -> None:
            try:
                said = Answer(ask.number, await work.answers.to(ask.what))
            except Exception as error:  # noqa: BLE001 - it goes to who has asked
                said = Answer(ask.number, error=RaisedError.of(error))
            member.process.send(said)

        variables = work.variables.copy()
        enter(ask.trace, variables)
        task = asyncio.get_running_loop().create_task(answer(), context=variables)
        work.asked.add(task)
        task.add_done_callback(work.asked.discard)

    def _end(self, member: _Member, ending: Returned | Raised) -> None:
        """Take the end of what a process ran; the process goes on, or makes room for another."""
        work, member.work = member.work, None
        if work is None:
            return
        for task in work.asked:
            task.cancel()
        if work.attempt.interrupted is not None or self._is_worn(member):
            self._dismiss(member)
        elif member.process.is_alive:
            self._idle.append(member)
        self._places.free()
        work.attempt.code_ended(ending)

    def _is_worn(self, member: _Member) -> bool:
        return self._max_tasks is not None and member.process.runs >= self._max_tasks

    def _dismiss(self, member: _Member) -> None:
        """Let a process end in peace, for a while."""
        member.process.send(Stop())
        asyncio.get_running_loop().call_later(_GOODBYE_S, member.process.kill)

    def _stop(self, member: _Member, work: _Work) -> None:
        """Stop what a process runs: it may see that it shall, then it is killed."""
        member.process.send(Cancel(work.number))
        asyncio.get_running_loop().call_later(_LAST_WORDS_S, self._kill, member, work)

    def _kill(self, member: _Member, work: _Work) -> None:
        if member.work is work:
            member.process.kill()

    async def _gone(self, member: _Member) -> None:
        member.process.kill()  # its socket may end before it does
        await member.process.gone()
        self._members.discard(member)
        if member in self._idle:
            self._idle.remove(member)
        death = member.process.death("was to run tasks")
        if not member.ready.done():
            member.ready.set_exception(death)
            member.ready.exception()  # seen: perhaps nobody waits any more, and asyncio would complain
        if member.loaded is not None and not member.loaded.done():
            member.loaded.set_result(RaisedError.of(death))
        if member.work is not None:
            pid, task = member.process.pid, member.work.attempt.task.name
            error = member.process.death(f"ran task {task}")
            if member.work.attempt.interrupted is not None:
                error = ProcessDied(f"The process {pid} that ran task {task} was killed: the attempt was to stop.")
            elif not self._closed:
                log.error("a process has died while it ran a task", task=task, pid=pid)
            self._end(member, Raised(error))


def _run(work: _Work) -> Run:
    attempt = work.attempt
    place: Place = place_of(attempt.task.function, attempt.task.name)
    deadline = attempt.context.deadline
    return Run(
        number=work.number,
        message=attempt.delivery.message,
        place=place,
        pass_context=attempt.task.pass_context,
        queue=attempt.delivery.queue,
        attempt=attempt.number,
        deadline_ms=None if deadline is None else int(deadline.timestamp() * 1000),
        soft_limit_s=attempt.limits.soft_limit_s,
        trace=work.variables.run(current_carrier),
    )
