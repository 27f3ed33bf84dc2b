"""The dependencies of an attempt: made before its code, closed after it, whatever its end.

fast-depends reads signatures, resolves what depends on what, and runs `def` dependencies in threads. What asyncq adds
is the life around it: the time limit and a cancellation reach a dependency that waits, and a generator is closed also
where the attempt was interrupted.

Invariant: what was opened is closed, in the reverse order, before the attempt ends. What has been made is seen by one
attempt only.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fast_depends.core import CallModel, build_call_model
from fast_depends.dependencies import Provider

from asyncq.arguments import Arguments
from asyncq.errors import AttemptInterrupted, TaskDefinitionError
from asyncq.loggers import get_logger
from asyncq.worker.attempt import AnyTask, Attempt, Raised, Returned

__all__ = ["Injector"]

log = get_logger("asyncq.worker")

_Key = tuple[Callable[..., Any], bool]
_NAMES_OF_FAST_DEPENDS = frozenset({"stack", "cache_dependencies", "nested", "dependency_provider"})
"""Keywords of its own: arguments of these names cannot be handed to dependencies beside them."""
_Run = Callable[[Mapping[str, Any]], Awaitable[Returned | Raised]]


class _Provider(Provider):
    """Keeps what was read of a dependency apart by `use_cache`: in fast-depends' own, the last declaration counts."""

    def add_dependant(self, dependant: CallModel) -> _Key:
        key = dependant.call, dependant.use_cache
        self.dependencies[key] = dependant
        return key

    def get_dependant(self, key: Any) -> CallModel:
        return self.overrides.get(key[0]) or self.dependencies[key]


@dataclass(frozen=True, slots=True)
class _Needs:
    """What a task needs.

    Attributes:
        keys: Where its dependencies are kept, by parameter.
        defaults: What its arguments are where the message has none.
    """

    keys: Mapping[str, _Key]
    defaults: Mapping[str, Any]


class Injector:
    """Makes the dependencies of one worker's tasks.

    Args:
        overrides: What stands in for what, now or later: tests change it.
    """

    def __init__(self, overrides: Mapping[Callable[..., Any], Callable[..., Any]]) -> None:
        self._overrides = overrides
        self._overridden: dict[Callable[..., Any], Callable[..., Any]] = {}
        self._provider = _Provider()
        self._needs: dict[Arguments, _Needs] = {}

    def prepare(self, task: AnyTask) -> _Needs:
        """Read the signatures of all that a task depends on, and return what it needs.

        Raises:
            TaskDefinitionError: One cannot be read, or takes a parameter that nothing gives it.
        """
        arguments = [item for item in task.arguments.parameters if item.kind is not item.POSITIONAL_ONLY]
        given = {item.name for item in arguments} - _NAMES_OF_FAST_DEPENDS
        keys = {}
        for name, dependency in task.arguments.dependencies.items():
            what = f"task {task.name!r}: the dependency of its parameter {name!r}"
            model = self._model(dependency.dependency, what, use_cache=dependency.use_cache)
            for parameter in model.flat_params:
                if parameter.default_value is Ellipsis and parameter.field_name not in given:
                    raise TaskDefinitionError(
                        f"{what} needs {parameter.field_name!r}, and the task has no argument of that name which a "
                        "dependency could take. Give it a default, or make it a dependency: Depends(...)."
                    )
            keys[name] = self._provider.add_dependant(model)
        defaults = {item.name: item.default for item in arguments if item.default is not item.empty}
        needs = self._needs[task.arguments] = _Needs(keys, defaults)
        return needs

    async def run(self, attempt: Attempt, arguments: Mapping[str, Any], code: _Run) -> Returned | Raised:
        """Make what an attempt depends on, run its code, and close what was made.

        Args:
            attempt: The attempt.
            arguments: Those of its message, by name; dependencies may take them.
            code: Runs it with the arguments and the dependencies.

        Returns:
            How it ended. An error of a dependency is an error of the attempt; but where the code itself has raised,
            that error stands, and one that comes after it is told in the log.
        """
        stack = AsyncExitStack()
        ending: Returned | Raised
        try:
            made = await self._make(attempt.task, arguments, stack)
        except BaseException as error:  # noqa: BLE001 - whatever a dependency raises is a value here
            ending = Raised(error)
        else:
            ending = await code({**arguments, **made})
        return await self._close(stack, ending, attempt)

    async def _make(self, task: AnyTask, arguments: Mapping[str, Any], stack: AsyncExitStack) -> dict[str, Any]:
        self._follow_overrides()
        needs = self._needs.get(task.arguments) or self.prepare(task)
        known = {**needs.defaults, **arguments}
        given = {name: value for name, value in known.items() if name not in _NAMES_OF_FAST_DEPENDS}
        made: dict[str, Any] = {}
        cache: dict[Callable[..., Any], Any] = {}
        for name, key in needs.keys.items():
            dependency = self._provider.get_dependant(key)
            made[name] = await dependency.asolve(stack=stack, cache_dependencies=cache, nested=True, **given)
        return made

    async def _close(self, stack: AsyncExitStack, ending: Returned | Raised, attempt: Attempt) -> Returned | Raised:
        error = ending.error if isinstance(ending, Raised) else None
        if error is not None and not isinstance(error, Exception):
            # Code after a `yield` expects errors; and fast-depends hands only those to a `def` generator.
            interrupted = AttemptInterrupted(f"The attempt was interrupted: {type(error).__name__}.")
            interrupted.__cause__ = error
            error = interrupted
        try:
            await stack.__aexit__(None if error is None else type(error), error, None)
        except BaseException as raised:
            if error is None:
                return Raised(raised)
            if raised is not error:
                log.warning(
                    "closing the dependencies of an attempt failed as well",
                    task=attempt.task.name,
                    task_id=attempt.context.task_id,
                    exc_info=raised,
                )
        return ending

    def _follow_overrides(self) -> None:
        if not self._overrides and not self._overridden:
            return
        if self._overridden != self._overrides:
            wanted = dict(self._overrides)
            # All of them, or an error in each attempt: a real dependency must never run in place of a broken override.
            models: dict[Hashable, CallModel] = {
                original: self._model(override, f"dependency_overrides[{original!r}]", use_cache=True)
                for original, override in wanted.items()
            }
            self._provider.clear()
            self._provider.overrides.update(models)
            self._overridden = wanted

    def _model(self, call: Callable[..., Any], what: str, *, use_cache: bool) -> CallModel:
        try:
            return build_call_model(
                call, dependency_provider=self._provider, use_cache=use_cache, is_sync=False, serialize_result=False
            )
        except (AssertionError, TypeError, ValueError, NameError) as error:
            raise TaskDefinitionError(f"{what}, {call!r}, cannot be read: {type(error).__name__}: {error}") from error
