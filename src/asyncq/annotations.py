"""Read a function's parameters and annotations, and refuse what no message can carry.

Invariant: whatever is refused is refused with `TaskDefinitionError`, which names the parameter and the remedy.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, RootModel, Secret, SecretBytes, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typing_extensions import is_typeddict

from asyncq.errors import TaskDefinitionError

__all__ = [
    "RETURN",
    "UnresolvedAnnotation",
    "local_names_of",
    "name_of",
    "parameters_of",
    "refuse_parameter",
    "refuse_secrets",
    "refuse_wrong_context",
    "resolved",
    "signature_of",
]

_SECRETS = (SecretStr, SecretBytes, Secret)
_NEVER_CONTEXT = (str, bytes, int, float, list, tuple, dict, set, BaseModel)
RETURN = "return"


class UnresolvedAnnotation(Exception):
    """An annotation names something that does not exist (yet): a state of the declaration, not an error so far."""

    def as_definition_error(self, task: str) -> TaskDefinitionError:
        """Return the error that it is once the app opens."""
        return TaskDefinitionError(
            f"task {task!r}: {self}. Import the name at run time, not only under TYPE_CHECKING, "
            "or define it before the app is opened."
        )


def name_of(function: Callable[..., Any] | None) -> str:
    """Return what error messages call a function that has no task name."""
    return str(getattr(function, "__name__", "task"))


def parameters_of(function: Callable[..., Any], what: str) -> tuple[inspect.Parameter, ...]:
    """Return the function's parameters; their annotations may be strings.

    Args:
        function: What is declared.
        what: "task 'shop.send_email'", for error messages.

    Raises:
        TaskDefinitionError: The function has no signature, or takes `*args` or `**kwargs`.
    """
    parameters = tuple(signature_of(function, what).parameters.values())
    for parameter in parameters:
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            raise TaskDefinitionError(
                f"{what}: parameter '*{parameter.name}' cannot travel, because arguments travel by name. "
                f"Take a list: '{parameter.name}: list[...]'."
            )
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise TaskDefinitionError(
                f"{what}: parameter '**{parameter.name}' would take any misspelt argument. "
                f"Take a dict: '{parameter.name}: dict[str, ...]'."
            )
    return parameters


def signature_of(function: Callable[..., Any], what: str) -> inspect.Signature:
    """Return the function's signature; annotations may be strings, or names that do not exist (yet).

    Args:
        function: What is declared.
        what: "task 'shop.send_email'", for the error message.

    Raises:
        TaskDefinitionError: It has none that could be read.
    """
    try:
        if sys.version_info >= (3, 14):
            # Annotations are evaluated when they are asked for there, and names may still be missing.
            from annotationlib import Format  # noqa: PLC0415 - does not exist before

            return inspect.signature(function, annotation_format=Format.FORWARDREF)
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise TaskDefinitionError(f"{what}: {function!r} has no signature that can be read: {error}") from error


def local_names_of(function: Callable[..., Any]) -> Callable[[], Mapping[str, Any]] | None:
    """Return a way to see the local names around a function that is being defined in another one.

    Annotations of such a function may name classes that are local too, and no other road leads to them.
    """
    outer = getattr(function, "__qualname__", "").rpartition(".<locals>.")[0].rpartition(".")[2]
    if not outer:
        return None
    frame: types.FrameType | None = sys._getframe()  # noqa: SLF001 - documented, only not promised outside CPython
    while frame is not None:
        if frame.f_code.co_name == outer and frame.f_globals is getattr(function, "__globals__", None):
            found = frame
            return lambda: found.f_locals
        frame = frame.f_back
    return None


def resolved(
    function: Callable[..., Any], annotations: Mapping[str, Any], local_names: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the annotations as types, strings among them evaluated.

    Args:
        function: Its module is where names are looked up.
        annotations: By parameter name.
        local_names: Names that win over the module's.

    Raises:
        UnresolvedAnnotation: A name does not exist; the message names the parameter.
    """
    inner = inspect.unwrap(function)
    names = getattr(inner, "__globals__", None) or vars(sys.modules.get(inner.__module__, typing))
    types_: dict[str, Any] = {}
    for name, annotation in annotations.items():
        try:
            hints = typing.get_type_hints(
                _annotated(name, annotation), globalns=names, localns=dict(local_names), include_extras=True
            )
        except (NameError, AttributeError) as error:
            raise UnresolvedAnnotation(f"{_place(name)} is annotated with {annotation!r}, and {error}") from error
        except (SyntaxError, TypeError) as error:
            raise TaskDefinitionError(
                f"{_place(name)} is annotated with {annotation!r}, which is no type: {error}"
            ) from error
        types_[name] = hints[name]
    return types_


def _annotated(name: str, annotation: Any) -> Callable[[], None]:
    """Return a function with this one annotation: what `get_type_hints` takes in every version of Python."""

    def holder() -> None: ...

    holder.__annotations__ = {name: annotation}
    return holder


def _place(name: str) -> str:
    return "the return value" if name == RETURN else f"parameter {name!r}"


def refuse_wrong_context(function: Callable[..., Any], parameter: inspect.Parameter, what: str) -> None:
    """Refuse a first parameter that is plainly meant for data where the context will be given.

    Args:
        function: The task's function.
        parameter: Its first parameter.
        what: "task 'shop.send_email'", for the error message.

    Raises:
        TaskDefinitionError: Its annotation is a model or a built-in type.
    """
    if parameter.annotation is parameter.empty:
        return
    try:
        annotation = resolved(function, {parameter.name: parameter.annotation}, {})[parameter.name]
    except UnresolvedAnnotation:
        return  # the context's name need not exist at run time
    cls = get_origin(annotation) or annotation
    if isinstance(cls, type) and issubclass(cls, _NEVER_CONTEXT):
        raise TaskDefinitionError(
            f"{what} is declared with pass_context=True, so its first parameter gets the context, and "
            f"{parameter.name!r} is annotated with {_shown(annotation)}. Put 'ctx: TaskContext' before it, "
            "or leave pass_context out."
        )


def refuse_parameter(annotation: Any, name: str, what: str) -> None:
    """Refuse what cannot be a parameter of a task.

    Args:
        annotation: The resolved type.
        name: The parameter's.
        what: "parameter 'to' of task 'shop.send_email'", for the error message.

    Raises:
        TaskDefinitionError: The type cannot travel.
    """
    _refuse_context(annotation, what)
    _refuse_field_default(annotation, name, what)
    for item in _alternatives(annotation):
        if item is BaseModel:
            raise TaskDefinitionError(f"{what} is a BaseModel in general, so nobody knows its fields. Name your model.")
        if isinstance(item, type) and issubclass(item, RootModel):
            inner = item.model_fields["root"].annotation
            raise TaskDefinitionError(
                f"{what} is a RootModel ({item.__name__}). A message is an object with named values: "
                f"take what is inside it ({_shown(inner)}), or a BaseModel with a field for it."
            )
    refuse_secrets(annotation, what)


def _refuse_context(annotation: Any, what: str) -> None:
    # By name: this module is below the context's.
    if getattr(annotation, "__name__", "") == "TaskContext" and annotation.__module__ == "asyncq.context":
        raise TaskDefinitionError(
            f"{what} is the task's context, which does not travel. Declare the task with pass_context=True, "
            "and the context as its first parameter."
        )


def _refuse_field_default(annotation: Any, name: str, what: str) -> None:
    if get_origin(annotation) is not Annotated:
        return
    for item in get_args(annotation)[1:]:
        if isinstance(item, FieldInfo) and (item.default is not PydanticUndefined or item.default_factory is not None):
            raise TaskDefinitionError(
                f"{what} has its default inside Field(...), which a direct call would not see. "
                f"Write it as Python does: '{name}: Annotated[...] = default'."
            )


def refuse_secrets(annotation: Any, what: str) -> None:
    """Refuse a type that holds a secret anywhere in it: it would arrive as asterisks.

    Raises:
        TaskDefinitionError: It holds one; the message shows the way to it.
    """
    path = _secret_in(annotation, seen=set())
    if path is None:
        return
    where, secret = path
    place = f"{what}, field {where!r}," if where else what
    raise TaskDefinitionError(
        f"{place} is a {secret.__name__}: it would arrive as asterisks, and messages are no place for secrets "
        "(anybody with access to the broker can read them). Let the task read the secret from its own settings, "
        "or take a reference to it; a plain str travels readably."
    )


def _secret_in(annotation: Any, seen: set[Any]) -> tuple[str, type] | None:
    """Return the path of field names to the first secret, and its class."""
    if isinstance(annotation, type) and issubclass(annotation, _SECRETS):
        return "", annotation
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, _SECRETS):
        return "", origin
    try:
        if annotation in seen:
            return None
        seen.add(annotation)
    except TypeError:  # an Annotated with unhashable metadata
        pass
    for item in _parts(annotation):
        found = _secret_in(item, seen)
        if found is not None:
            return found
    for name, item in _fields(annotation):
        found = _secret_in(item, seen)
        if found is not None:
            return (f"{name}.{found[0]}" if found[0] else name), found[1]
    return None


def _parts(annotation: Any) -> Iterable[Any]:
    """Return the types that a type expression is made of."""
    if hasattr(annotation, "__supertype__"):  # NewType
        return (annotation.__supertype__,)
    if hasattr(annotation, "__value__"):  # `type X = ...`
        return (annotation.__value__, *get_args(annotation))
    if isinstance(annotation, TypeVar):
        return (annotation.__bound__, *annotation.__constraints__)
    if get_origin(annotation) is Annotated:
        return (annotation.__origin__,)
    if get_origin(annotation) is collections.abc.Callable:
        return ()
    return get_args(annotation)


def _fields(annotation: Any) -> Iterable[tuple[str, Any]]:
    """Return the fields of a model, dataclass, typed dict or named tuple, with their types."""
    cls = get_origin(annotation) or annotation
    if not isinstance(cls, type):
        return ()
    if issubclass(cls, BaseModel):
        return [(name, field.annotation) for name, field in cls.model_fields.items()]
    if dataclasses.is_dataclass(cls) or is_typeddict(cls) or hasattr(cls, "_fields"):
        try:
            return list(typing.get_type_hints(cls, include_extras=True).items())
        except NameError:
            return ()  # pydantic will say what is missing
    return ()


def _alternatives(annotation: Any) -> Iterable[Any]:
    """Yield what a value of this type may be: the members of unions, without `Annotated`."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(annotation.__origin__)
    elif get_origin(annotation) in {typing.Union, types.UnionType}:
        for item in get_args(annotation):
            yield from _alternatives(item)
    else:
        origin = get_origin(annotation)
        yield origin if isinstance(origin, type) and issubclass(origin, BaseModel) else annotation


def _shown(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else repr(annotation)
