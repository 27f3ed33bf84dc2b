"""What comes out of a task, as JSON.

Invariant: a result that `encode` has written fits the declared return type, and `decode` reads it as that type.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, Never, NoReturn, TypeVar

from pydantic import ValidationError

from asyncq.annotations import RETURN, UnresolvedAnnotation, local_names_of, name_of, refuse_secrets, resolved
from asyncq.codec import Codec, NotWritable, codec_for
from asyncq.errors import ResultNotSerialisable

__all__ = ["Results"]

R = TypeVar("R")


class Results(Generic[R]):
    """The return type of one task. Use `Results.of`."""

    __slots__ = ("_annotation", "_codec", "_function", "_local_names", "_task")

    def __init__(self, annotation: Any, function: Callable[..., Any] | None, task: str) -> None:
        self._annotation = Any if annotation is inspect.Signature.empty else annotation
        self._function = function
        self._task = task
        self._local_names = None if function is None else local_names_of(function)
        self._codec: Codec | None = None

    @classmethod
    def of(
        cls, annotation: Any, *, function: Callable[..., Any] | None = None, task: str | None = None
    ) -> Results[Any]:
        """Take a return annotation.

        Args:
            annotation: The type, or its text; `inspect.Signature.empty` is taken as `Any`.
            function: Where the names in a text are looked up.
            task: The task's name, for error messages.

        Raises:
            TaskDefinitionError: The type cannot travel.
        """
        results: Results[Any] = cls(annotation, function, task or name_of(function))
        with suppress(UnresolvedAnnotation):  # `resolve` tries again when the app opens
            results._build()
        return results

    @property
    def annotation(self) -> Any:
        """The type itself; `Any` where none was declared.

        Raises:
            TaskDefinitionError: As `resolve`.
        """
        self.resolve()
        return self._annotation

    def resolve(self) -> Codec:
        """Resolve what could not be resolved at declaration.

        Raises:
            TaskDefinitionError: It still cannot be, or the type cannot travel.
        """
        if self._codec is not None:
            return self._codec
        try:
            return self._build()
        except UnresolvedAnnotation as error:
            raise error.as_definition_error(self._task) from error

    def encode(self, value: Any) -> bytes:
        """Check a task's return value and write it as JSON.

        Raises:
            ResultNotSerialisable: It does not fit the declared type, or cannot be written as JSON.
        """
        codec = self._codec or self.resolve()
        try:
            return codec.write(value)
        except ValidationError as error:
            raise ResultNotSerialisable(
                f"Task {self._task!r} returned a {type(value).__name__} that does not fit its declared return type: "
                f"{error}"
            ) from error
        except NotWritable as error:
            raise ResultNotSerialisable(
                f"Task {self._task!r} returned a {type(value).__name__} that cannot be written as JSON: {error}. "
                "Return a pydantic model, a dataclass or plain values, and declare the return type."
            ) from error

    def decode(self, body: bytes) -> R:
        """Read a result.

        Raises:
            ValueError: It does not fit the declared type.
        """
        result: R = (self._codec or self.resolve()).read(body)
        return result

    def _build(self) -> Codec:
        annotation = self._annotation
        if self._function is not None:
            local_names = {} if self._local_names is None else self._local_names()
            annotation = resolved(self._function, {RETURN: annotation}, local_names)[RETURN]
        if annotation is NoReturn or annotation is Never:
            annotation = None  # it always raises
        what = f"the return value of task {self._task!r}"
        refuse_secrets(annotation, what)
        self._codec = codec_for(annotation, what)
        self._annotation = annotation
        self._local_names = None
        return self._codec
