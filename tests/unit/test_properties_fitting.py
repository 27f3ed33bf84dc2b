"""Two types that are refused as misfits: no value of the one can be read as the other, whichever is tried.

So what may work is never refused. All pairs of many types are tried, each refused one with random values.
"""

from __future__ import annotations

import enum
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from asyncq.codec import codec_for
from asyncq.workflow.fitting import misfit, reads, writes


class Colour(enum.Enum):
    """Text."""

    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    """Numbers."""

    SMALL = 1
    LARGE = 2


class Point(BaseModel):
    """Two numbers, one of them with a default."""

    x: int
    y: int = 0


class Named(BaseModel):
    """Text of the same name."""

    x: str


class Exact(BaseModel):
    """Nothing else."""

    model_config = ConfigDict(extra="forbid")
    x: float


class Open(BaseModel):
    """Anything else, too."""

    model_config = ConfigDict(extra="allow")
    x: int


class Renamed(BaseModel):
    """Another name on the wire."""

    z: int = Field(alias="x")


class Nested(BaseModel):
    """A model in a model."""

    point: Point
    more: list[Point] = []


@dataclass
class Pair:
    """Two numbers."""

    x: int
    y: float


TYPES: list[Any] = [
    *(int, float, bool, str, bytes, None, Decimal, date, datetime, time, timedelta, uuid.UUID, Colour, Size),
    *(Literal["a", "b"], Literal[1, 2], int | None, str | int, list[int], list[str], list[list[int]], set[int]),
    *(
        tuple[int, str],
        tuple[int, ...],
        tuple[int, int, int],
        dict[str, int],
        dict[str, Any],
        dict[int, str],
        list[Any],
    ),
    *(Point, Named, Exact, Open, Renamed, Nested, Pair, list[Point], list[Named], Point | Named, Point | None, Any),
]
REFUSED = [(one, other) for one in TYPES for other in TYPES if misfit(writes(one), reads(other)) is not None]

_JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return values of a type. An empty list fits every list, so it is left out."""
    special = {
        None: st.none(),
        Any: _JSON,
        list[Any]: st.lists(_JSON),
        dict[str, Any]: st.dictionaries(st.text(), _JSON),
    }
    found = special[annotation] if annotation in special else st.from_type(annotation)
    return found.filter(lambda value: value not in ([], set(), ()))


@pytest.fixture(autouse=True, scope="module")
def _values_of_plain_types() -> Iterator[None]:
    """Text before a number is refused on purpose, although "12" can be read as one: so this text is no number.

    Numbers that are not finite travel as text.
    """
    plain = {str: st.text(), bytes: st.binary(), float: st.floats(), Decimal: st.decimals()}
    st.register_type_strategy(str, st.text().map("~{}".format))
    st.register_type_strategy(bytes, st.binary().map(lambda value: b"~" + value))
    st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
    st.register_type_strategy(Decimal, st.decimals(allow_nan=False, allow_infinity=False))
    yield
    for kind, strategy in plain.items():
        st.register_type_strategy(kind, strategy)


def test_about_half_of_the_pairs_are_refused():
    """So the test below tests something, and not everything is refused."""
    share = len(REFUSED) / len(TYPES) ** 2
    assert 0.3 < share < 0.8, share


@pytest.mark.parametrize("one", TYPES, ids=str)
def test_nothing_that_can_be_read_is_refused(one):
    """Whatever values the one type has, written as they are for the wire."""
    writer = codec_for(one, "it")
    others = [other for refused, other in REFUSED if refused is one]
    readers = [(other, codec_for(other, "it")) for other in others]

    @settings(max_examples=max(8, settings().max_examples // 50), suppress_health_check=list(HealthCheck))
    @given(values(one))
    def check(value: Any) -> None:
        written = writer.write(value)
        for other, reader in readers:
            try:
                read = reader.read(written)
            except ValidationError:
                continue
            raise AssertionError(f"{one} before {other} is refused, and {written!r} can be read as {read!r}")

    check()
