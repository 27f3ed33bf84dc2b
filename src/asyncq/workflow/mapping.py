"""One task, many items: a group with a message for each item, or for several of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any, Protocol, TypeVar

from pydantic_core import from_json, to_json

from asyncq.body import ITEMS, with_key
from asyncq.errors import InvalidWorkflow
from asyncq.signature import Signature
from asyncq.workflow.building import group
from asyncq.workflow.node import Takes
from asyncq.workflow.values import Group

__all__ = ["chunked", "list_of", "mapped", "starmapped"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class _Binds(Protocol[R_co]):
    """A task, or a task with options."""

    def s(self, *args: Any) -> Signature[R_co]: ...


def mapped(task: Takes[T, R], items: Iterable[T]) -> Group[list[R]]:
    """Return the group that calls a task once with each item."""
    return group(task.s(item) for item in items)


def starmapped(task: Any, items: Iterable[tuple[Any, ...]]) -> Group[Any]:
    """Return the group that calls a task once with each tuple of arguments."""
    return group(_called(task, item) for item in items)


def chunked(task: Any, items: Iterable[Any], size: int, *, star: bool) -> Group[Any]:
    """Return the group that calls a task once with each item, so many items a message.

    Raises:
        InvalidWorkflow: The size is no positive number.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise InvalidWorkflow(
            f"chunks(items, size) takes how many items are in one message, such as 100, not {size!r}."
        )
    calls = (_called(task, item) if star else task.s(item) for item in items)
    return group(_chunk(chunk) for chunk in iter(lambda: list(islice(calls, size)), []))


def _called(task: _Binds[R], item: Any) -> Signature[R]:
    if not isinstance(item, tuple | list):
        raise InvalidWorkflow(f"A tuple of arguments is wanted for each call, not {item!r}.")
    return task.s(*item)


def _chunk(calls: list[Signature[R]]) -> Signature[list[R]]:
    """Make one task of several calls."""
    first: Any = calls[0]
    body = with_key(b"{}", ITEMS, b"[%b]" % b",".join(call.body for call in calls))
    return replace(first, body=body, decode=list_of(calls[0].decode))


def list_of(decode: Callable[[bytes], R]) -> Callable[[bytes], list[R]]:
    """Return what reads the result of a chunk, from what reads the result of one call."""

    def decode_all(body: bytes) -> list[R]:
        values = from_json(body)
        if not isinstance(values, list):
            raise ValueError(f"The result of a chunk is a list, not {values!r}.")  # noqa: TRY004 - what decoders raise
        return [decode(to_json(value)) for value in values]

    return decode_all
