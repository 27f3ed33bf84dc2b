"""Bind some of a task's arguments, and find the one that takes what comes before it in a workflow."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic_core import from_json

from asyncq.arguments import Arguments
from asyncq.errors import InvalidWorkflow
from asyncq.program import WHOLE
from asyncq.signature import Declared, Signature
from asyncq.workflow.partial import PartialSignature

__all__ = ["bound", "check_taken", "taking"]


R = TypeVar("R")


def bound(arguments: Arguments, task: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return the bound arguments as a JSON object, and the key of the argument that takes what comes before.

    Args:
        arguments: The task's parameters.
        task: Its name, for error messages.
        args: Positional arguments of `task.partial(...)`.
        kwargs: Keyword arguments.

    Raises:
        InvalidWorkflow: The task takes no such argument, or nothing is left to be taken, or too much is.
        pydantic.ValidationError: A value does not fit its parameter.
        TypeError: A value cannot be written as JSON.
    """
    short = task.rpartition(".")[2]
    try:
        given = arguments.by_name(args, kwargs)
    except TypeError as error:
        raise InvalidWorkflow(f"{short}.partial(...): {error}.") from error
    free = [item for item in arguments.parameters if item.name not in given]
    if not free:
        what = "all of its arguments are bound" if given else "it takes no argument"
        raise InvalidWorkflow(
            f"{task} cannot take what comes before it in a workflow: {what}. Write {short}.si(...), if it shall ignore "
            "that."
        )
    missing = [repr(item.name) for item in free[1:] if item.default is inspect.Parameter.empty]
    if missing:
        raise InvalidWorkflow(
            f"{task} takes what comes before it as {free[0].name!r}, and nothing gives it {', '.join(missing)}. "
            f"Bind what is missing: {short}.partial({missing[0][1:-1]}=...)."
        )
    if arguments.message is not None:
        return b"{}", WHOLE
    return arguments.encode_some(given), arguments.wire_keys()[free[0].name]


def taking(signature: Signature[R], into: str) -> PartialSignature[R]:
    """Return the step that takes what comes before it besides the arguments of a signature.

    Raises:
        InvalidWorkflow: The signature has that argument already, or it is none of the task's.
    """
    if not isinstance(into, str) or not into:
        raise InvalidWorkflow(f"{signature.name}: an argument's name is wanted here, not {into!r}.")
    check_taken(signature.task, signature.name, signature.body, into)
    return PartialSignature(
        signature.name,
        signature.body,
        into,
        signature.queue,
        signature.reply,
        signature.decode,
        signature.sending,
        signature.keeping,
        signature.task,
        signature.sender,
    )


def check_taken(task: Declared | None, name: str, body: bytes, into: str) -> None:
    """Check bound arguments that were given as JSON, and which one takes what comes before.

    Args:
        task: The task; None where this process does not have its code.
        name: Its name.
        body: The bound arguments.
        into: The key of the argument that takes what comes before.

    Raises:
        InvalidWorkflow: It is bound already, or the task has no such argument.
    """
    given = from_json(body)
    if into in given:
        raise InvalidWorkflow(f"{name} has its argument {into!r} already, so it cannot take what comes before as that.")
    if task is None:
        return
    known = {WHOLE} if task.arguments.message is not None else set(task.arguments.wire_keys().values())
    for key in (into, *given):
        if key not in known:
            raise InvalidWorkflow(f"{name} has no argument {key!r} that could be given in a workflow.")
