"""What is refused when a workflow is built, because of its types; and what is not, because it may work."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from typing_extensions import TypedDict

from asyncq import AsyncQ, FailedMember, InvalidWorkflow, chord, group
from asyncq.workflow.fitting import list_of, misfit, reads, writes


class Point(BaseModel):
    """Two numbers."""

    x: int
    y: int = 0


class Point3(Point):
    """Three numbers."""

    z: int


class Exact(BaseModel):
    """One number, and nothing else."""

    model_config = ConfigDict(extra="forbid")
    x: int


class Named(BaseModel):
    """Another number is called so."""

    x: str


class Renamed(BaseModel):
    """Read by other names."""

    z: int = Field(validation_alias=AliasChoices("z", "x"))


class Lenient(BaseModel):
    """Reads whatever there is."""

    z: int

    @model_validator(mode="before")
    @classmethod
    def read(cls, data: Any) -> Any:
        return {"z": len(data)}


class Text(BaseModel):
    """Takes numbers as text."""

    model_config = ConfigDict(coerce_numbers_to_str=True)
    x: str


class Tree(BaseModel):
    """As deep as it likes."""

    left: Optional[Tree] = None  # noqa: UP045 - a forward reference
    value: int


class Colour(enum.Enum):
    """Of something."""

    RED = "red"


@dataclass
class Pair:
    """Two numbers."""

    x: int
    y: int


class Row(TypedDict):
    """One number."""

    x: int


FIT = [
    (int, int),
    (int, float),
    (float, int),  # 3.0 is a whole number
    (bool, int),
    (int, bool),
    (int, Any),
    (Any, int),
    (int, int | str),
    (int | str, int),
    (int | None, int),  # it may be a number
    (str, str | None),
    (str, datetime),  # text can be a moment
    (datetime, str),
    (int, datetime),  # seconds
    (str, uuid.UUID),
    (str, Colour),
    (Colour, str),
    (str, Decimal),
    (Decimal, float),  # written as text that is a number
    (float, Decimal),
    (float, timedelta),
    (bytes, bytes),
    (str, bytes),
    (str, Literal["a"]),
    (list[int], list[float]),
    (list[int], set[int]),
    (list[int], tuple[int, int]),
    (tuple[int, str], list[int | str]),
    (tuple[int, int], tuple[int, int]),
    (list[Any], list[int]),
    (list[int], list),
    (dict[str, int], Point),
    (Point, dict[str, int]),
    (Point, Point),
    (Point3, Point),
    (Point, Row),
    (Pair, Point),
    (Point, Pair),
    (Row, Exact),
    (Point, Renamed),
    (Point, Lenient),
    (Point, Text),
    (Tree, Tree),
    (list[Point], list[Pair]),
    (str, Annotated[int, BeforeValidator(len)]),
    (None, None),
    (None, Any),
    (None, int | None),
    (date, datetime),
]

MISFITS = [
    (str, int, "it is text, and a whole number is wanted"),
    (int, str, "it is a whole number, and text is wanted"),
    (str, float, "text, and a number"),
    (None, int, "it is None"),
    (int, None, "None is wanted"),
    (int, list[int], "a list is wanted"),
    (list[int], int, "it is a list"),
    (list[int], list[str], "each element is a whole number, and text is wanted"),
    (list[list[int]], list[int], "each element is a list"),
    (tuple[int, str], list[int], "element 1 is text"),
    (tuple[int, int, int], tuple[int, int], "it is a list of 3, and a list of 2 is wanted"),
    (Point, int, "it is a Point"),
    (int, Point, "a Point is wanted"),
    (Point, list[Point], "a list is wanted"),
    (Point, Point3, "it has no field 'z', which a Point3 needs"),
    (Point3, Exact, "it has a field 'z', which a Exact does not allow"),
    (Point, Named, "field 'x' is a whole number, and text is wanted"),
    (list[Point], list[Named], "field 'x' of each element is a whole number"),
    (str | None, int, "is wanted"),
    (int, Colour, "text is wanted"),
    (Row, Point3, "has no field 'z'"),
]


@pytest.mark.parametrize(("written", "read"), FIT, ids=str)
def test_what_may_work_is_not_refused(written, read):
    assert misfit(writes(written), reads(read)) is None


@pytest.mark.parametrize(("written", "read", "why"), MISFITS, ids=str)
def test_what_can_never_work_is_refused_with_the_reason(written, read, why):
    assert why in (misfit(writes(written), reads(read)) or "nothing")


def test_the_list_of_a_group_is_known_element_by_element():
    """So a body that takes three of them, or elements of several types, can be checked."""
    mixed = list_of([writes(int), writes(str)])
    assert misfit(mixed, reads(tuple[int, str])) is None
    assert misfit(mixed, reads(list[int | str])) is None
    assert misfit(mixed, reads(tuple[int, int])) == "element 1 is text, and a whole number is wanted"
    assert misfit(mixed, reads(tuple[int, str, int])) == "it is a list of 2, and a list of 3 is wanted"
    assert misfit(list_of([]), reads(list[int])) is None
    assert misfit(list_of([mixed, mixed]), reads(list[list[str]])) == (
        "element 0 of element 0 is a whole number, and text is wanted"
    )


app = AsyncQ("fitting")


@app.task
async def one(x: int) -> int:
    return x


@app.task
async def word(x: int) -> str:
    return str(x)


@app.task
async def point(x: int) -> Point:
    return Point(x=x)


@app.task
async def shown(point: Point) -> str:
    return str(point)


@app.task
async def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
async def brave(numbers: list[int | FailedMember]) -> int:
    return len(numbers)


@app.task
async def longest(lists: list[list[int]]) -> int:
    return max(map(len, lists))


def refused(build: Any) -> str:
    with pytest.raises(InvalidWorkflow) as raised:
        build()
    return str(raised.value)


def test_a_step_that_cannot_take_what_comes_before_it_is_refused_when_the_workflow_is_built():
    """The message names both tasks, the argument and what can be done."""
    assert refused(lambda: word.s(1) | one) == (
        "fitting.one cannot take what fitting.word returns as its argument 'x': it is text, and a whole number is "
        "wanted. Change one of the two types, or let it take nothing: one.si(...)."
    )
    assert "all of its arguments" in refused(lambda: one.s(1) | shown)
    assert "'x': it is a Point" in refused(lambda: point.s(1) | group(shown, one))


def test_a_body_that_does_not_take_the_list_is_refused():
    assert "what the group returns as its argument 'x': it is a list" in refused(lambda: group(one.s(1)) | one)
    assert "element 1 is text" in refused(lambda: chord([one.s(1), word.s(2)], total))
    assert "a list, and a whole number" in refused(lambda: group(group(one.s(1))) | total)
    assert "is a list" in refused(lambda: one.chunks([1], 2) | total)
    assert one.chunks([1, 2], 2) | longest
    assert group(group(one.s(1)), group()) | longest


def test_a_body_that_gets_errors_as_well_must_take_them():
    """Else it would fail just when it is there for."""
    assert "takes no FailedMember" in refused(lambda: chord([one.s(1)], total, errors="collect"))
    assert chord([one.s(1)], brave, errors="collect")
    assert chord([one.s(1)], brave) | one


def test_a_return_type_that_does_not_exist_yet_refuses_nothing():
    """It is told when the app opens."""
    scope: dict[str, Any] = {}
    exec("async def later(x: int) -> 'Missing': ...", scope)
    later = app.task(name="fitting.later")(scope["later"])
    assert later.s(1) | one
