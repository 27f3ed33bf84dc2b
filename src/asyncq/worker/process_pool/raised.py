"""Exceptions that cross from one process to another, as values.

A retry policy looks at classes (`on=(ConnectionError,)`) and at attributes (`when=lambda error: error.status == 503`).
So an exception comes out as what it went in as, where that is possible: pickled. Where it cannot be pickled, or its
class is not imported at the other end, where then nobody can name it, a stand-in takes its place: of the nearest base
class that is known there, with its name, its text and its traceback.

Invariant: `RaisedError.of` and `exception` raise nothing, and import no module.
"""

from __future__ import annotations

import contextlib
import io
import pickle  # what it may load is bounded below
import sys
import traceback as traceback_module
from dataclasses import dataclass
from typing import Any

from asyncq.outcome import REMOTE_TRACEBACK, Failure

__all__ = ["RaisedError"]

_DEEPEST = 8


@dataclass(frozen=True, slots=True)
class RaisedError:
    """An exception.

    Attributes:
        classes: Its class and the classes below it, nearest first: module and name.
        text: Its text.
        trace: Its traceback as text, with those of its causes.
        pickled: Itself, where it can be pickled.
        cause: What `from` named.
        context: What was being handled when it was raised.
        hides_context: Whether `from` was used.
        inner: Of a group that cannot be pickled: the errors in it.
    """

    classes: tuple[tuple[str, str], ...]
    text: str
    trace: str
    pickled: bytes | None
    cause: RaisedError | None
    context: RaisedError | None
    hides_context: bool
    inner: tuple[RaisedError, ...] = ()

    @classmethod
    def of(cls, error: BaseException, depth: int = 0) -> RaisedError:
        """Take an exception."""
        pickled = _pickled(error)
        deeper = depth + 1
        inner: tuple[BaseException, ...] = ()
        if pickled is None and isinstance(error, BaseExceptionGroup) and depth < _DEEPEST:
            inner = error.exceptions

        def linked(other: BaseException | None) -> RaisedError | None:
            return None if other is None or depth >= _DEEPEST else cls.of(other, deeper)

        return cls(
            classes=tuple((kind.__module__, kind.__qualname__) for kind in type(error).__mro__[:-1]),
            text=Failure.of(error).message,
            trace="".join(traceback_module.format_exception(error)),
            pickled=pickled,
            cause=linked(error.__cause__),
            context=linked(error.__context__),
            hides_context=error.__suppress_context__,
            inner=tuple(cls.of(item, deeper) for item in inner),
        )

    def exception(self) -> BaseException:
        """Return the exception, or its stand-in."""
        error = self._loaded() or self._group()
        if error is None or not hasattr(error, "__dict__"):
            error = self._stand_in()
        error.__cause__ = None if self.cause is None else self.cause.exception()
        error.__context__ = None if self.context is None else self.context.exception()
        error.__suppress_context__ = self.hides_context
        # Past a class that forbids it: the attribute is ours.
        error.__dict__[REMOTE_TRACEBACK] = self.trace
        return error

    def _loaded(self) -> BaseException | None:
        if self.pickled is None:
            return None
        try:
            error = _KnownOnly(io.BytesIO(self.pickled)).load()
        except Exception:  # noqa: BLE001 - a class of a user's may do anything; the stand-in is there
            return None
        return error if isinstance(error, BaseException) else None

    def _group(self) -> BaseException | None:
        if not self.inner:
            return None
        return BaseExceptionGroup(self.text, [item.exception() for item in self.inner])

    def _stand_in(self) -> BaseException:
        base = next((kind for kind in map(_known, self.classes) if kind is not None), Exception)
        module, name = self.classes[0]

        def no_init(self: BaseException, *_: Any) -> None: ...

        members = {
            "__module__": module,
            "__qualname__": name,
            "__init__": no_init,
            "__str__": BaseException.__str__,
        }
        # Not every class can have subclasses: pydantic's ValidationError has none.
        for kind in (base, *base.__mro__):
            # A class of a user's may do anything.
            with contextlib.suppress(Exception):
                made: Any = type(name.rpartition(".")[2], (kind,), members)
                error: BaseException = made.__new__(made)
                error.args = (self.text,)
                return error
        return RuntimeError(self.text)


class _KnownOnly(pickle.Unpickler):
    """Finds classes only in modules that are imported here already."""

    def find_class(self, module: str, name: str) -> Any:
        if module not in sys.modules:
            raise pickle.UnpicklingError(module)
        return super().find_class(module, name)


def _known(place: tuple[str, str]) -> type[BaseException] | None:
    module, name = place
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _pickled(error: BaseException) -> bytes | None:
    """Return the pickled error, if it comes out as what it went in as."""
    try:
        pickled = pickle.dumps(error)
        again = _KnownOnly(io.BytesIO(pickled)).load()
        same = type(again) is type(error) and str(again) == str(error)
    except Exception:  # noqa: BLE001 - a class of a user's may do anything
        return None
    return pickled if same else None
