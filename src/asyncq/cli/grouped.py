"""Options that several commands have, as one dataclass.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Whom:
        host: HostOption = None
        worker: WorkerOption = None

    @grouped
    def ping(*, whom: Whom, as_json: JsonOption = False) -> None: ...    # --host --worker --json

Typer makes options of a function's parameters alone; here a parameter may be such a group. Invariant: a group's fields
are those options, in their order, with their defaults and help.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

__all__ = ["grouped"]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command take groups of options.

    Args:
        command: A command; those of its parameters are groups whose type is a dataclass.

    Returns:
        A function with the command's name and docstring, and a parameter for each field in place of a group.
    """
    parameters = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {item.name: item.annotation for item in parameters if is_dataclass(item.annotation)}
    shown: list[inspect.Parameter] = []
    for item in parameters:
        group = groups.get(item.name)
        shown += [item] if group is None else inspect.signature(group, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    return run
