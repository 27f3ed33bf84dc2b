"""The parts of the process pool: what can be imported, and errors that cross over."""

import pickle
import signal
import socket
import sys
import threading

import pytest
from pydantic import BaseModel, ValidationError

from asyncq.app import AsyncQ
from asyncq.errors import InvalidOption, SoftTimeLimit, TaskDefinitionError
from asyncq.importable import Place, import_function, place_of
from asyncq.message import Message
from asyncq.outcome import Failed, Failure
from asyncq.signals import Retry
from asyncq.testing import process_tasks
from asyncq.worker.process_pool.child import _Child
from asyncq.worker.process_pool.frames import Ready, Run, packed
from asyncq.worker.process_pool.raised import RaisedError
from worker_kit import make_kit

app = AsyncQ("shop")


def test_what_no_process_can_import_is_refused_when_it_is_declared():
    """With the remedy."""

    def inner() -> None: ...

    class Callable:
        def __call__(self) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"is inside a function\. Move it to the top of its module"):
        app.task(run_in="process")(inner)
    with pytest.raises(TaskDefinitionError, match="is inside a function"):
        app.task(run_in="process", name="shop.lambda")(lambda: None)
    with pytest.raises(TaskDefinitionError, match="has no name by which another process could import it"):
        app.task(run_in="process", name="shop.callable")(Callable())


async def on_loop() -> None: ...


@pytest.mark.parametrize("run_in", ["thread", "process"])
def test_an_async_function_runs_on_the_loop_only(run_in):
    """It would need an event loop of its own there."""
    with pytest.raises(TaskDefinitionError, match="its function is `async def`"):
        app.task(run_in=run_in, name="shop.other")(on_loop)


@pytest.mark.parametrize("run_in", ["loop", "fork", 1, True, ["process"], ""])
def test_run_in_is_thread_or_process(run_in):
    """Nothing else."""
    with pytest.raises(InvalidOption, match=r'@task\(run_in=\.\.\.\) takes "thread" or "process"'):
        app.task(run_in=run_in)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, float("inf")])
def test_max_concurrency_is_a_positive_integer(value):
    """Anything else is refused when the task is declared."""
    with pytest.raises(InvalidOption, match=r"@task\(max_concurrency=\.\.\.\) takes 1 or more"):
        app.task(max_concurrency=value)


def test_a_function_is_found_by_its_module_and_name():
    """And what stands there in its place is not taken for it."""
    place = place_of(process_tasks.square, "shop.square")
    assert place == Place("asyncq.testing.process_tasks", "square")
    assert import_function(place, "shop.square") is process_tasks.square
    task = app.task(run_in="process", name="shop.square")(process_tasks.square)
    assert place_of(task.function, task.name) == place
    with pytest.raises(TaskDefinitionError, match=r"has no function 'nothing'"):
        import_function(Place("asyncq.testing.process_tasks", "nothing"), "shop.square")
    with pytest.raises(TaskDefinitionError, match=r"cannot be imported: ModuleNotFoundError"):
        import_function(Place("no.such.module", "square"), "shop.square")


def test_a_program_at_a_prompt_has_no_process_tasks(monkeypatch):
    """Nobody can import it."""

    class Prompt:
        __spec__ = None

    def typed() -> None: ...

    typed.__module__, typed.__qualname__ = "__main__", "typed"
    monkeypatch.setitem(sys.modules, "__main__", Prompt())
    with pytest.raises(TaskDefinitionError, match="at a prompt"):
        place_of(typed, "shop.typed")


def test_the_soft_limit_does_not_cut_a_frame_in_two():
    """The worker could read nothing after half of one; it is raised when the frame is out."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = _Child(ours)
        before = signal.signal(signal.SIGUSR2, child.on_signal)
        try:
            message = Message(type="shop.square", body=b"{}", task_id="a", message_id="b")
            child._running = Run(1, message, Place("m", "f"), False, "shop", 1, None, 5.0, {})
            read: list[bytes] = []

            def soften_and_read():
                theirs.recv(1000, socket.MSG_PEEK)  # it is in the middle of it
                child._softened.add(1)
                signal.pthread_kill(child._main, signal.SIGUSR2)
                while sum(map(len, read)) < len(frame):
                    read.append(theirs.recv(1 << 20))

            line = "x" * 5_000_000
            frame = packed(line)
            reader = threading.Thread(target=soften_and_read, daemon=True)
            reader.start()
            with pytest.raises(SoftTimeLimit, match="soft time limit of 5 s"):
                child.send(line)
            reader.join(20)
            assert b"".join(read) == frame
        finally:
            signal.signal(signal.SIGUSR2, before)


# --- errors


class Unpicklable(ConnectionError):
    """Its arguments are not those of its `__init__`."""

    def __init__(self, status, lock):
        super().__init__(f"status {status}")
        self.lock = lock


class WithSlots(ValueError):
    """An attribute of its own."""

    __slots__ = ("code",)


def crossed(error: BaseException) -> BaseException:
    """Raise an error, so that it has a traceback, and let it cross over."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - whichever it is
        raise error
    frame = pickle.loads(packed(RaisedError.of(caught.value))[8:])
    return frame.exception()


def test_an_error_crosses_over_as_it_is():
    """Class, arguments, attributes, and its traceback for the record."""
    error = OSError(2, "no such file", "name")
    error.extra = 5
    found = crossed(error)
    assert type(found) is FileNotFoundError
    assert (found.errno, found.filename, found.extra) == (2, "name", 5)
    assert "test_processes.py" in Failure.of(found).traceback
    slots = WithSlots("x")
    slots.code = 7
    assert crossed(slots).args == ("x",)


def test_an_error_that_cannot_be_pickled_has_a_stand_in_of_its_class():
    """A policy finds it by its class, and the record has its name and text."""
    found = crossed(Unpicklable(503, threading.Lock()))
    assert isinstance(found, Unpicklable)
    assert str(found) == "status 503"
    assert Failure.of(found).type == f"{__name__}.Unpicklable"


def test_an_error_of_a_class_that_is_unknown_here_is_of_its_nearest_base():
    """It was made in a function, or its module is not imported here."""

    class Local(TimeoutError): ...

    found = crossed(Local("late"))
    assert isinstance(found, TimeoutError)
    assert not isinstance(found, Local)
    assert (type(found).__name__, str(found)) == ("Local", "late")


def test_no_module_is_imported_for_an_error(monkeypatch):
    """It would block the worker's event loop, and nobody there could name the class anyway."""
    raised = RaisedError.of(process_tasks.AwkwardError(503, "away"))
    monkeypatch.delitem(sys.modules, "asyncq.testing.process_tasks")
    found = raised.exception()
    assert isinstance(found, ConnectionError)
    assert "asyncq.testing.process_tasks" not in sys.modules
    assert Failure.of(found).type == "asyncq.testing.process_tasks.AwkwardError"


class Model(BaseModel):
    """Something to validate."""

    number: int


def test_a_validation_error_crosses_over():
    """Its class can have no subclasses."""
    with pytest.raises(ValidationError) as caught:
        Model(number="x")
    found = crossed(caught.value)
    assert isinstance(found, ValueError)
    assert Failure.of(found).type == "pydantic_core._pydantic_core.ValidationError"
    assert "valid integer" in str(found)


def test_causes_and_groups_cross_over():
    """A signal keeps what it was raised from; a group its errors."""
    signal = Retry("later", after=5)
    signal.__cause__ = ConnectionError("away")
    found = crossed(signal)
    assert isinstance(found, Retry)
    assert (found.after_s, found.reason) == (5, "later")
    assert isinstance(found.__cause__, ConnectionError)
    assert found.__suppress_context__
    group = crossed(ExceptionGroup("both", [ValueError("a"), Unpicklable(1, threading.Lock())]))
    assert isinstance(group, ExceptionGroup)
    assert [type(item).__name__ for item in group.exceptions] == ["ValueError", "Unpicklable"]


class Nasty(Exception):
    """It can neither be pickled, nor printed, nor made."""

    def __reduce__(self):
        raise RuntimeError("not me")

    def __str__(self):
        raise RuntimeError("nor me")

    def __new__(cls, must):
        return super().__new__(cls)


def test_an_error_that_resists_everything_still_crosses_over():
    """Its record says what there is to say."""
    found = crossed(Nasty(1))
    assert isinstance(found, Exception)
    assert "Nasty" in Failure.of(found).type


# --- the pool


async def test_a_system_without_more_processes_is_a_failure_of_the_task(monkeypatch):
    """Its place is free again, and its retry policy decides."""
    kit = await make_kit()
    kit.task(run_in="process")(process_tasks.square)
    delivery = kit.delivery("square", {"x": 3})
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/no/such/python")
        outcome = (await kit.execution.execute(delivery)).outcome
    assert isinstance(outcome, Failed)
    assert outcome.failure.type == "builtins.FileNotFoundError"
    assert kit.processes.busy == 0
    again = await kit.execution.execute(kit.delivery("square", {"x": 3}))
    assert again.outcome.result == b"9"
    await kit.processes.close()
    assert kit.processes.pids == []


async def test_an_idle_process_that_dies_is_replaced():
    """Its task never hears of it."""
    kit = await make_kit()
    kit.task(run_in="process")(process_tasks.square)
    assert (await kit.execution.execute(kit.delivery("square", {"x": 3}))).outcome.result == b"9"
    (member,) = kit.processes._members
    member.process.kill()
    await member.listener
    assert (await kit.execution.execute(kit.delivery("square", {"x": 4}))).outcome.result == b"16"
    await kit.processes.close()


def test_a_frame_is_small():
    """What is said often costs little."""
    assert len(packed(Ready())) < 100
