"""What goes into a task, as JSON.

The parameters of a function become one pydantic schema, in which each parameter is a key of the message's JSON
object. A function whose only parameter is a `BaseModel` takes that model as the message itself.

Invariant: arguments that `encode` has written can be called with after `decode`. Arguments that were left out stay
out of the message: the function's own default applies where it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, cast, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from typing_extensions import TypedDict

from asyncq.annotations import (
    UnresolvedAnnotation,
    local_names_of,
    name_of,
    parameters_of,
    refuse_parameter,
    refuse_wrong_context,
    resolved,
)
from asyncq.body import RESERVED_PREFIX, arguments_in, object_of
from asyncq.codec import Codec, NotWritable, codec_for
from asyncq.dependencies import dependency_of, is_injected
from asyncq.errors import TaskDefinitionError

if TYPE_CHECKING:
    from fast_depends.dependencies import Dependant

__all__ = ["Arguments"]

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Arguments:
    """The parameters of one task.

    Use `Arguments.of`.

    Attributes:
        parameters: What the message carries, in the function's order; the context is not among them.
        dependencies: What is made for each attempt, by parameter.
    """

    __slots__ = (
        "_codec",
        "_declared",
        "_function",
        "_local_names",
        "_message",
        "_names",
        "_positional",
        "_positional_only",
        "_some",
        "_task",
        "_types",
        "dependencies",
        "parameters",
    )

    def __init__(self, function: Callable[..., Any], parameters: tuple[inspect.Parameter, ...], task: str) -> None:
        self._declared = parameters
        self._function = function
        self._task = task
        self._local_names = local_names_of(function)
        self._message: str | None = None
        self._codec: Codec | None = None
        self._take({item.name: found for item in parameters if (found := dependency_of(item.default)) is not None})

    def _take(self, dependencies: Mapping[str, Dependant]) -> None:
        """Tell what travels from what is made where the task runs."""
        parameters = tuple(item for item in self._declared if item.name not in dependencies)
        # Made in the function's order, wherever they were found.
        self.dependencies = {item.name: dependencies[item.name] for item in self._declared if item.name in dependencies}
        self.parameters = parameters
        self._names = frozenset(item.name for item in parameters)
        self._positional = tuple(item.name for item in parameters if item.kind in _POSITIONAL)
        self._positional_only = tuple(
            item.name for item in parameters if item.kind is inspect.Parameter.POSITIONAL_ONLY
        )
        self._types: Mapping[str, Any] = {}
        self._some: dict[frozenset[str], Codec] = {}

    @classmethod
    def of(cls, function: Callable[..., Any], *, pass_context: bool = False, task: str | None = None) -> Arguments:
        """Read a function's signature.

        Annotations that cannot be resolved yet are left for `resolve`.

        Args:
            function: The task's function.
            pass_context: The first parameter gets the context, and is no part of the message.
            task: The task's name, for error messages.

        Raises:
            TaskDefinitionError: A parameter cannot travel; the message names it and the remedy.
        """
        task = task or name_of(function)
        parameters = parameters_of(function, f"task {task!r}")
        if pass_context:
            if not parameters or parameters[0].kind not in _POSITIONAL:
                raise TaskDefinitionError(
                    f"task {task!r} is declared with pass_context=True, so its first parameter must take the context: "
                    "def task(ctx: TaskContext, ...)."
                )
            refuse_wrong_context(function, parameters[0], f"task {task!r}")
            parameters = parameters[1:]
        for parameter in parameters:
            if isinstance(parameter.default, FieldInfo):
                raise TaskDefinitionError(
                    f"parameter {parameter.name!r} of task {task!r} has a Field(...) as its default. "
                    f"Write '{parameter.name}: Annotated[..., Field(...)] = default', as for a direct call."
                )
        arguments = cls(function, parameters, task)
        with suppress(UnresolvedAnnotation):  # `resolve` tries again when the app opens
            arguments._build()
        return arguments

    def resolve(self) -> Codec:
        """Resolve what could not be resolved at declaration.

        Raises:
            TaskDefinitionError: It still cannot be, or a parameter cannot travel.
        """
        if self._codec is not None:
            return self._codec
        try:
            return self._build()
        except UnresolvedAnnotation as error:
            raise error.as_definition_error(self._task) from error

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Check the arguments of a call and write them as the body of a message.

        Raises:
            pydantic.ValidationError: A value does not fit.
            TypeError: Missing, unknown or too many arguments, as in a call of the function; or a value that
                cannot be written as JSON.
        """
        codec = self._codec or self.resolve()
        given = self._bound(args, kwargs) if args else kwargs
        if self._positional_only and kwargs:
            self._refuse_positional_only(kwargs)
        try:
            if self._message is None:
                return codec.write(given)
            self._check_call(given)
            return codec.write(given[self._message])
        except ValidationError:
            self._check_call(given)
            raise
        except NotWritable as error:
            raise TypeError(f"{self._task}(): an argument cannot be written as JSON: {error}") from error

    def encode_named(self, arguments: Mapping[str, Any] | BaseModel) -> bytes:
        """Check arguments that come by name, from code that does not have the function's types.

        Args:
            arguments: By their names in the message; or a model with these fields.

        Raises:
            pydantic.ValidationError: A value does not fit, is missing or unknown.
            TypeError: A value cannot be written as JSON.
        """
        codec = self._codec or self.resolve()
        if self._message is None and isinstance(arguments, BaseModel):
            arguments = {name: getattr(arguments, name) for name in type(arguments).model_fields}
        try:
            return codec.write(arguments)
        except NotWritable as error:
            raise TypeError(f"{self._task}(): an argument cannot be written as JSON: {error}") from error

    def encode_some(self, given: Mapping[str, Any]) -> bytes:
        """Check some of the arguments, by their parameters' names, and write them as a JSON object.

        Raises:
            pydantic.ValidationError: A value does not fit.
            TypeError: A value cannot be written as JSON.
        """
        if not given:
            return b"{}"
        self.resolve()
        names = frozenset(given)
        codec = self._some.get(names)
        if codec is None:
            types = {name: self._types[name] for name in given}
            codec = self._some[names] = codec_for(self._object_type(types), f"task {self._task!r}")
        try:
            return codec.write(given)
        except NotWritable as error:
            raise TypeError(f"{self._task}(): an argument cannot be written as JSON: {error}") from error

    @property
    def message(self) -> str | None:
        """The name of the only parameter, where it is a model that is the message itself; else None."""
        self.resolve()
        return self._message

    def by_name(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by their parameters' names; some may be missing.

        Raises:
            TypeError: Unknown or too many arguments, as in a call of the function.
        """
        self.resolve()
        given = self._bound(args, dict(kwargs))
        if self._positional_only and kwargs:
            self._refuse_positional_only(dict(kwargs))
        self._refuse_unknown(given)
        return given

    def annotation(self, name: str) -> Any:
        """Return the resolved type of a parameter."""
        self.resolve()
        return self._types[name]

    def wire_keys(self) -> dict[str, str]:
        """Return what the parameters are called in the message, by their names."""
        codec = self.resolve()
        return dict(zip((item.name for item in self.parameters), codec.wire_keys, strict=True))

    def decode(self, body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read the body of a message.

        Keys that begin with `$` belong to asyncq, and are left out.

        Returns:
            The positional and the keyword arguments to call the function with.

        Raises:
            MalformedMessage: The body is not JSON, or not an object.
            pydantic.ValidationError: The arguments do not fit.
        """
        codec = self._codec or self.resolve()
        # A JSON writer may escape the sign, too.
        if b'"$' in body or b'"\\u0024' in body:
            body = _without_reserved_keys(body)
        try:
            values = codec.read(body)
        except ValidationError:
            object_of(body)
            raise
        if self._message is not None:
            values = {self._message: values}
        if not self._positional_only:
            return (), values
        return self._by_position(values), values

    def _by_position(self, values: dict[str, Any]) -> tuple[Any, ...]:
        """Take the positional-only arguments out of the values."""
        args = [values.pop(item.name, item.default) for item in self.parameters[: len(self._positional_only)]]
        while args and args[-1] is inspect.Parameter.empty:
            args.pop()
        return tuple(args)

    def _build(self) -> Codec:
        """Make the codec.

        Raises:
            UnresolvedAnnotation: A name in an annotation does not exist (yet).
            TaskDefinitionError: A parameter cannot travel.
        """
        local_names = {} if self._local_names is None else self._local_names()
        raw = {item.name: Any if item.annotation is item.empty else item.annotation for item in self.parameters}
        types = resolved(self._function, raw, local_names)
        self._take({**self.dependencies, **self._dependencies_in(types)})
        types = {item.name: types[item.name] for item in self.parameters}
        for name, annotation in types.items():
            what = self._what(name)
            refuse_parameter(annotation, name, what)
        message = self._message_parameter(types)
        if message is None:
            codec = self._codec_of_all(types)
        else:
            codec = codec_for(types[message], self._what(message), forbid_extra=True)
        self._refuse_wire_keys(codec.wire_keys)
        self._message = message
        self._types = types
        self._local_names = None  # lets go of the frame around a local function
        self._codec = codec
        return codec

    def _dependencies_in(self, types: Mapping[str, Any]) -> dict[str, Dependant]:
        found = {}
        for item in self.parameters:
            dependency = dependency_of(item.default, types[item.name])
            if dependency is None and is_injected(item.default):
                raise TaskDefinitionError(
                    f"{self._what(item.name)} has Depends() as its default, and its annotation does not say what makes "
                    "it. Write Depends(function), or annotate it with Annotated[..., Depends(function)]."
                )
            if dependency is not None:
                found[item.name] = dependency
        return found

    def _message_parameter(self, types: Mapping[str, Any]) -> str | None:
        """Return the name of the one parameter that is the message itself, if it is so."""
        if len(self.parameters) != 1 or self.parameters[0].default is not inspect.Parameter.empty:
            return None
        name = self.parameters[0].name
        annotation = types[name]
        if get_origin(annotation) is Annotated:
            annotation = annotation.__origin__
        cls = get_origin(annotation) or annotation
        return name if isinstance(cls, type) and issubclass(cls, BaseModel) else None

    def _codec_of_all(self, types: Mapping[str, Any]) -> Codec:
        """Make the codec of an object with a key for each parameter."""
        try:
            return codec_for(self._object_type(types), f"task {self._task!r}")
        except (TaskDefinitionError, UnresolvedAnnotation):
            for name, annotation in types.items():  # the fault is told with the parameter that has it
                codec_for(self._object_type({name: annotation}), self._what(name))
            raise

    def _object_type(self, types: Mapping[str, Any]) -> Any:
        """Make a typed dict: its keys can have any name, so parameters may be called `json` or `model_config`."""
        optional = {item.name for item in self.parameters if item.default is not item.empty}
        fields = {name: NotRequired[item] if name in optional else item for name, item in types.items()}
        # The functional form, with names that only exist at run time.
        every = cast("Any", TypedDict)(self._task, fields)
        every.__pydantic_config__ = ConfigDict(extra="forbid", validate_by_name=True, validate_by_alias=True)
        return every

    def _refuse_wire_keys(self, keys: tuple[str, ...]) -> None:
        for key in keys:
            if key.startswith(RESERVED_PREFIX):
                raise TaskDefinitionError(
                    f"task {self._task!r}: an argument is called {key!r} in the message. "
                    "Keys that begin with '$' belong to asyncq; choose another alias."
                )
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise TaskDefinitionError(f"task {self._task!r}: two arguments are called {twice!r} in the message.")

    def _what(self, parameter: str) -> str:
        return f"parameter {parameter!r} of task {self._task!r}"

    def _bound(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Give positional arguments their names."""
        if len(args) > len(self._positional):
            raise TypeError(
                f"{self._task}() takes {_count(len(self._positional), 'positional argument')}, "
                f"and {len(args)} {'was' if len(args) == 1 else 'were'} given"
            )
        given = dict(zip(self._positional, args, strict=False))
        if kwargs:
            for name in kwargs:
                if name in given and name not in self._positional_only:
                    raise TypeError(f"{self._task}() got multiple values for argument {name!r}")
            given.update(kwargs)
        return given

    def _refuse_positional_only(self, kwargs: dict[str, Any]) -> None:
        for name in kwargs:
            if name in self._positional_only:
                raise TypeError(f"{self._task}() got positional-only argument {name!r} passed as keyword argument")

    def _check_call(self, given: Mapping[str, Any]) -> None:
        """Raise what a call of the function would raise for unknown and missing arguments."""
        self._refuse_unknown(given)
        missing = [repr(item.name) for item in self.parameters if item.default is item.empty and item.name not in given]
        if missing:
            raise TypeError(f"{self._task}() missing {_count(len(missing), 'required argument')}: {', '.join(missing)}")

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        for name in given:
            if name in self.dependencies:
                raise TypeError(f"{self._task}() makes {name!r} where it runs (Depends), so it cannot be sent")
            if name not in self._names:
                raise TypeError(f"{self._task}() got an unexpected keyword argument {name!r}")


def _without_reserved_keys(body: bytes) -> bytes:
    """Return the body without the keys that begin with `$`; as it is where there are none."""
    message = object_of(body)
    kept = arguments_in(message)
    return body if len(kept) == len(message) else to_json(kept)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
