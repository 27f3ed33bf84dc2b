"""`Depends`: parameters of a task that are made for each attempt, and are no part of its message.

    async def session(ctx: ...) -> AsyncIterator[Session]:
        async with current_context().resources.sessions() as session:
            yield session

    @app.task
    async def pay(order: int, session: Session = Depends(session)) -> None: ...

fast-depends resolves them (asyncq.worker.injection); this module only finds them in a signature.

Invariant: who declares no dependency never imports fast-depends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin

from asyncq.errors import InvalidOption

if TYPE_CHECKING:
    from fast_depends.dependencies import Dependant

__all__ = ["Depends", "Injected", "dependency_of", "is_injected"]


class Injected:
    """The default of a parameter whose annotation says what makes it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "Depends()"


_INJECTED = Injected()


def Depends(dependency: Callable[..., Any] | None = None, *, use_cache: bool = True) -> Any:  # noqa: N802 - FastAPI's name
    """Let a parameter be made for each attempt, in place of travelling with the message.

    As a default, `session: Session = Depends(get_session)`; or in the annotation, `Annotated[Session,
    Depends(get_session)]`, where `= Depends()` as its default tells type checkers that no sender gives it.

    Args:
        dependency: What makes it: a function, `async def` or `def`, or a generator that yields it once and then
            closes it. Its own parameters are dependencies, or arguments of the task by their names.
        use_cache: Whether all that depend on it within one attempt get the same one.

    Raises:
        InvalidOption: The dependency cannot be called.
    """
    if dependency is None:
        return _INJECTED
    if not callable(dependency):
        raise InvalidOption(f"Depends(...) takes a function that makes the value, not {dependency!r}.")
    from fast_depends.dependencies import Dependant  # noqa: PLC0415 - see the invariant

    return Dependant(dependency, use_cache=use_cache, cast=False, cast_result=False)


def is_injected(default: Any) -> bool:
    """Tell whether a parameter's default says that its annotation has a dependency."""
    return isinstance(default, Injected)


def dependency_of(default: Any, annotation: Any = None) -> Dependant | None:
    """Return the dependency that a parameter has; mostly there is none.

    Args:
        default: The parameter's default.
        annotation: Its resolved annotation.
    """
    model = sys.modules.get("fast_depends.dependencies.model")
    if model is None:  # nobody has made one
        return None
    while hasattr(annotation, "__value__"):  # `type SessionDep = Annotated[...]`
        annotation = annotation.__value__
    found = [default, *(get_args(annotation)[1:] if get_origin(annotation) is Annotated else ())]
    return next((item for item in found if isinstance(item, model.Dependant)), None)
