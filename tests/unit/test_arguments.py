"""A task's parameters as JSON: what travels comes back, and what cannot travel is refused where it is declared."""

# ruff: noqa: D101, PLR0917, UP007, UP045 - sample classes speak by name; every spelling of a type is under test

from __future__ import annotations

import enum
import gc
import inspect
import json
import math
import random
import sys
import uuid
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Never, NewType, NoReturn, Optional, Union

import pytest
from hypothesis import given, strategies
from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    EmailStr,
    Field,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    computed_field,
    model_validator,
)
from typing_extensions import TypedDict

from asyncq.arguments import Arguments
from asyncq.errors import MalformedMessage, ResultNotSerialisable, TaskDefinitionError
from asyncq.return_values import Results

if TYPE_CHECKING:
    from nowhere import Unknown


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: float = 0.0


class Options(TypedDict, total=False):
    retries: int


class Pair(NamedTuple):
    left: int
    right: str


class Letter(BaseModel):
    to: str
    subject: str = "none"


class Blob(BaseModel):
    content: bytes
    ratio: float = 0.0


class Node(BaseModel):
    value: int
    children: list[Node] = []


UserId = NewType("UserId", int)


def round_trip(function: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Send a call through JSON and return the function's arguments as they would be bound in the worker."""
    arguments = Arguments.of(function, task="shop.task")
    args_there, kwargs_there = arguments.decode(arguments.encode(args, kwargs))
    return dict(inspect.signature(function).bind(*args_there, **kwargs_there).arguments)


# --- what travels


def rich(
    when: datetime,
    day: date,
    span: timedelta,
    key: uuid.UUID,
    price: Decimal,
    colour: Colour,
    content: bytes,
    path: Path,
    point: Point,
    options: Options,
    pair: Pair,
    user: UserId,
    letter: Letter,
    tags: set[str],
    table: dict[int, list[float]],
    choice: int | str | None,
    mode: Literal["fast", "slow"],
    tree: Node,
    anything: Any,
) -> None: ...


def test_rich_types_arrive_as_they_were_sent():
    """Every type that pydantic can write as JSON arrives as the same type with the same value."""
    sent = {
        "when": datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=UTC),
        "day": date(2026, 3, 1),
        "span": timedelta(days=3, microseconds=7),
        "key": uuid.uuid4(),
        "price": Decimal("1.10"),
        "colour": Colour.RED,
        "content": bytes(range(256)),
        "path": Path("/srv/a.png"),
        "point": Point(3, 0.1),
        "options": {"retries": 3},
        "pair": Pair(1, "b"),
        "user": UserId(5),
        "letter": Letter(to="a@example.org"),
        "tags": {"a", "b"},
        "table": {1: [0.5, math.inf], 2: []},
        "choice": "12",
        "mode": "slow",
        "tree": Node(value=1, children=[Node(value=2, children=[Node(value=3)])]),
        "anything": {"a": [1, 2.5, None, True]},
    }
    assert round_trip(rich, **sent) == sent


@pytest.mark.parametrize("number", [math.inf, -math.inf, 0.0, -0.0, 1e308, 5e-324, 0.1])
def test_every_float_arrives(number: float):
    """Infinity is written as a string, since JSON has no word for it."""

    def task(number: float) -> None: ...

    assert round_trip(task, number) == {"number": number}


def test_nan_arrives_as_nan():
    """NaN is written as a string, also inside a model that knows nothing of it."""

    def task(number: float, blob: Blob) -> None: ...

    there = round_trip(task, math.nan, Blob(content=b"", ratio=math.nan))
    assert math.isnan(there["number"])
    assert math.isnan(there["blob"].ratio)


def test_the_body_is_strict_json_without_nan_literals():
    """Any JSON reader can read the body: NaN and infinity are strings."""

    def task(numbers: list[float], anything: Any) -> None: ...

    body = Arguments.of(task).encode(([math.nan, -math.inf], math.inf), {})
    assert json.loads(body, parse_constant=pytest.fail) == {"numbers": ["NaN", "-Infinity"], "anything": "Infinity"}


def test_bytes_that_are_no_text_arrive_inside_models_too():
    """Bytes travel as base64, in parameters, in nested models and in a model that is the message."""

    def nested(blob: Blob, blobs: list[Blob]) -> None: ...
    def message(blob: Blob) -> None: ...

    blob = Blob(content=b"\xff\x00\xfe")
    assert round_trip(nested, blob, [blob]) == {"blob": blob, "blobs": [blob]}
    assert round_trip(message, blob) == {"blob": blob}


def test_base64_of_other_languages_is_understood():
    """The standard alphabet of base64 is read as well as the URL-safe one that pydantic writes."""

    def task(content: bytes) -> None: ...

    arguments = Arguments.of(task)
    assert arguments.decode(b'{"content": "/+8="}') == arguments.decode(b'{"content": "_-8="}')


def test_a_model_that_says_how_its_bytes_travel_is_left_alone():
    """What a model's own configuration says wins."""

    class Text(BaseModel):
        model_config = ConfigDict(ser_json_bytes="utf8", val_json_bytes="utf8")
        content: bytes

    def task(text: Text, n: int) -> None: ...

    assert Arguments.of(task).encode((Text(content=b"plain"), 1), {}) == b'{"text":{"content":"plain"},"n":1}'


def test_awkward_names_are_only_names():
    """Parameters may be called what pydantic models, dicts and methods already have."""

    def task(json, copy, schema, model_config, self, cls, items, keys, _x, __y, model_fields, validate) -> None: ...

    names = [name for name in inspect.signature(task).parameters]  # noqa: C416
    sent = dict(zip(names, range(len(names)), strict=True))
    assert round_trip(task, **sent) == sent
    assert round_trip(task, *sent.values()) == sent


def test_parameters_without_annotation_take_any_json():
    """No annotation means Any: the value arrives as JSON has it."""

    def task(a, b=None) -> None: ...

    assert round_trip(task, {"x": [1, "y"]}) == {"a": {"x": [1, "y"]}}


def test_arguments_left_out_do_not_travel_and_the_default_applies_where_the_task_runs():
    """A default that is no JSON value, or that the annotation would not allow, does no harm."""
    missing = object()

    def task(a: int, b: int = missing, *, c: str = None) -> None: ...  # noqa: RUF013

    arguments = Arguments.of(task)
    body = arguments.encode((1,), {})
    assert body == b'{"a":1}'
    assert arguments.decode(body) == ((), {"a": 1})


def test_a_models_own_defaults_do_travel():
    """What a model made up when it was made, such as an id, arrives: the receiver must not make up another."""

    class Order(BaseModel):
        key: uuid.UUID = Field(default_factory=uuid.uuid4)

    def task(order: Order, n: int) -> None: ...

    order = Order()
    assert round_trip(task, order, 1)["order"] == order


def test_positional_only_parameters_are_called_by_position():
    """They have names in the message all the same."""

    def task(a: int, b: int = 7, /, c: int = 8, *, d: int) -> None: ...

    arguments = Arguments.of(task)
    assert json.loads(arguments.encode((1, 2), {"d": 4})) == {"a": 1, "b": 2, "d": 4}
    assert arguments.decode(b'{"a":1,"b":2,"c":3,"d":4}') == ((1, 2), {"c": 3, "d": 4})
    assert arguments.decode(b'{"a":1,"d":4}') == ((1, 7), {"d": 4})


def test_functions_without_parameters_travel_as_an_empty_object():
    """The body is a JSON object in any case."""

    def task() -> None: ...

    arguments = Arguments.of(task)
    assert arguments.encode((), {}) == b"{}"
    assert arguments.decode(b"{}") == ((), {})


def test_the_context_is_no_part_of_the_message():
    """With pass_context the first parameter is left out, whatever it is called."""

    def task(anything, to: str) -> None: ...

    arguments = Arguments.of(task, pass_context=True)
    assert arguments.encode(("x",), {}) == b'{"to":"x"}'
    assert [item.name for item in arguments.parameters] == ["to"]


def test_aliases_name_the_keys_of_the_message():
    """An alias in Annotated[..., Field(alias=...)] is the key on the wire; the call uses the parameter's name."""

    def task(to: Annotated[str, Field(alias="recipient")], n: int = 0) -> None: ...

    arguments = Arguments.of(task)
    body = arguments.encode((), {"to": "x"})
    assert body == b'{"recipient":"x"}'
    assert arguments.decode(body) == ((), {"to": "x"})


def test_models_with_aliases_arrive():
    """A nested model is written by its aliases, because that is how it is read."""

    class Row(BaseModel):
        first: int = Field(alias="First Column")

    def task(row: Row, n: int) -> None: ...

    row = Row(**{"First Column": 3})
    assert Arguments.of(task).encode((row, 1), {}) == b'{"row":{"First Column":3},"n":1}'
    assert round_trip(task, row, 1)["row"] == row


def test_computed_fields_stay_behind():
    """The receiver computes them again; in a model that forbids extra keys they would make it unreadable."""

    class Square(BaseModel):
        model_config = ConfigDict(extra="forbid")
        side: int

        @computed_field
        def area(self) -> int:
            return self.side**2

    def nested(square: Square, n: int) -> None: ...
    def message(square: Square) -> None: ...

    assert round_trip(nested, Square(side=3), 1)["square"].area == 9
    assert Arguments.of(message).encode((Square(side=3),), {}) == b'{"side":3}'


finite = strategies.floats(allow_nan=False, allow_infinity=False)
offsets = strategies.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
json_values = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | finite | strategies.text(),
    lambda inner: strategies.lists(inner) | strategies.dictionaries(strategies.text(), inner),
    max_leaves=20,
)


@given(
    anything=json_values,
    content=strategies.binary(),
    number=strategies.floats(allow_nan=False),
    when=strategies.datetimes(timezones=strategies.none() | offsets),
    span=strategies.timedeltas(),
    price=strategies.decimals(allow_nan=False, allow_infinity=False),
    table=strategies.dictionaries(strategies.integers(), strategies.binary()),
)
def test_any_value_arrives(**sent: Any):
    """Whatever Hypothesis thinks of."""

    def task(
        anything: Any,
        content: bytes,
        number: float,
        when: datetime,
        span: timedelta,
        price: Decimal,
        table: dict[int, bytes],
    ) -> None: ...

    assert round_trip(task, **sent) == sent


# --- one model is the message


def test_one_model_is_the_message_itself():
    """A function with exactly one BaseModel parameter takes the message as that model."""

    def task(letter: Letter) -> None: ...

    arguments = Arguments.of(task)
    body = arguments.encode((Letter(to="x"),), {})
    assert json.loads(body) == {"to": "x", "subject": "none"}
    assert arguments.encode((), {"letter": Letter(to="x")}) == body
    assert arguments.decode(body) == ((), {"letter": Letter(to="x")})


def test_one_model_with_a_default_is_an_ordinary_argument():
    """It can be left out, so it cannot be the message."""

    def task(letter: Letter | None = None, /) -> None: ...

    arguments = Arguments.of(task)
    assert arguments.encode((Letter(to="x"),), {}) == b'{"letter":{"to":"x","subject":"none"}}'
    assert arguments.decode(b"{}") == ((None,), {})


def test_a_generic_model_can_be_the_message():
    """`Page[int]` is a model of its own."""

    class Page(BaseModel):
        model_config = ConfigDict(frozen=True)
        items: list[int]

    def task(page: Annotated[Page, Field(description="one page")], /) -> None: ...

    arguments = Arguments.of(task)
    assert arguments.encode((Page(items=[1]),), {}) == b'{"items":[1]}'
    assert arguments.decode(b'{"items":[1]}') == ((Page(items=[1]),), {})


def test_a_recursive_model_can_be_the_message():
    """A model that holds itself."""

    def task(node: Node) -> None: ...

    node = Node(value=1, children=[Node(value=2)])
    assert round_trip(task, node) == {"node": node}


def test_a_message_model_refuses_unknown_keys_unless_it_says_otherwise():
    """A misspelt key of an optional field would otherwise be lost without a word."""

    class Lenient(Letter):
        model_config = ConfigDict(extra="ignore")

    def strict(letter: Letter) -> None: ...
    def lenient(letter: Lenient) -> None: ...

    body = b'{"to":"x","subjct":"y"}'
    with pytest.raises(ValidationError, match="subjct"):
        Arguments.of(strict).decode(body)
    assert Arguments.of(lenient).decode(body) == ((), {"letter": Lenient(to="x")})


def test_a_message_model_with_validators_around_it_still_refuses_unknown_keys():
    """A model validator wraps the model's schema."""

    class Checked(BaseModel):
        a: int = 0

        @model_validator(mode="before")
        @classmethod
        def look(cls, value: Any) -> Any:
            return value

    def task(checked: Checked) -> None: ...

    with pytest.raises(ValidationError, match="typo"):
        Arguments.of(task).decode(b'{"typo":1}')
    assert Arguments.of(task).decode(b'{"a":3,"$then":{}}') == ((), {"checked": Checked(a=3)})


# --- wrong calls


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {}, r"shop\.mail\(\) missing 2 required arguments: 'to', 'subject'"),
        (("a",), {}, r"shop\.mail\(\) missing 1 required argument: 'subject'"),
        (("a", "b", 1, 2), {}, r"shop\.mail\(\) takes 3 positional arguments, and 4 were given"),
        (("a", "b"), {"to": "c"}, r"shop\.mail\(\) got multiple values for argument 'to'"),
        (("a", "b"), {"cc": "c"}, r"shop\.mail\(\) got an unexpected keyword argument 'cc'"),
        (("a", "b"), {"$then": 1}, r"shop\.mail\(\) got an unexpected keyword argument '\$then'"),
    ],
)
def test_a_wrong_call_raises_what_python_would(args: Any, kwargs: Any, message: str):
    """Missing, unknown and too many arguments are a TypeError with the task's name."""

    def mail(to: str, subject: str, copies: int = 1) -> None: ...

    with pytest.raises(TypeError, match=message):
        Arguments.of(mail, task="shop.mail").encode(args, kwargs)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((), {"other": 1}), ((1, 2), {})])
def test_a_wrong_call_of_a_message_task_raises_a_type_error_too(args: Any, kwargs: Any):
    """The message parameter is a parameter like any other for the caller."""

    def task(letter: Letter) -> None: ...

    with pytest.raises(TypeError, match="argument"):
        Arguments.of(task).encode(args, kwargs)


def test_positional_only_parameters_cannot_be_named_by_the_caller():
    """As in Python."""

    def task(a: int, /) -> None: ...

    with pytest.raises(TypeError, match="positional-only argument 'a'"):
        Arguments.of(task).encode((), {"a": 1})


def test_keyword_only_parameters_are_not_taken_by_position():
    """As in Python."""

    def task(*, a: int) -> None: ...

    with pytest.raises(TypeError, match=r"takes no positional arguments, and 1 was given"):
        Arguments.of(task).encode((1,), {})


def test_wrong_values_fail_in_the_producer_with_pydantics_error():
    """The error names the task and the parameter."""

    def task(to: str, n: int) -> None: ...

    with pytest.raises(ValidationError) as caught:
        Arguments.of(task, task="shop.mail").encode(("x", "many"), {})
    assert caught.value.title == "shop.mail"
    assert caught.value.errors()[0]["loc"] == ("n",)


@pytest.mark.parametrize("value", [object(), {1, object()}, "\ud800", lambda: 1])
def test_values_that_json_cannot_hold_fail_in_the_producer(value: Any):
    """Any takes everything, so only writing shows it."""

    def task(value: Any) -> None: ...

    with pytest.raises(TypeError, match=r"shop\.mail\(\): an argument cannot be written as JSON"):
        Arguments.of(task, task="shop.mail").encode((value,), {})


def test_a_value_that_holds_itself_fails_in_the_producer():
    """A circle has no JSON."""

    def task(value: Any) -> None: ...

    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        Arguments.of(task).encode((circle,), {})


def test_a_model_that_was_broken_after_it_was_made_fails_in_the_producer():
    """The worker would refuse it, so the producer does."""

    def task(letter: Letter, n: int) -> None: ...
    def message(letter: Letter) -> None: ...

    letter = Letter(to="x")
    letter.to = 5  # type: ignore[assignment]
    for function, args in ((task, (letter, 1)), (message, (letter,))):
        with pytest.raises(ValidationError, match="to"):
            Arguments.of(function).encode(args, {})


def test_a_validator_that_changes_the_type_on_purpose_is_no_fault():
    """What the worker can read may be sent."""

    def task(n: Annotated[int, AfterValidator(str)], m: int) -> None: ...

    assert Arguments.of(task).encode((5, 6), {}) == b'{"n":"5","m":6}'


# --- bad bodies


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not JSON"),
        (b"hello", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"to": "x"', "not JSON"),
        (b'{"to": "\xff"}', "not JSON"),
        (b'{"to": "x"} {}', "not JSON"),
        (b'{"$then": 1', "not JSON"),
        (b"[" * 10_000, "not JSON"),
        (b'["x"]', "JSON array, not an object"),
        (b'["$x"]', "JSON array, not an object"),
        (b"null", "JSON null, not an object"),
        (b'"x"', "JSON string, not an object"),
        (b"3", "JSON number, not an object"),
        (b"true", "JSON boolean, not an object"),
    ],
)
@pytest.mark.parametrize("as_model", [False, True])
def test_a_body_that_is_no_json_object_is_malformed(body: bytes, message: str, as_model: bool):
    """The error says what the body is instead."""

    def parameters(to: str) -> None: ...
    def model(letter: Letter) -> None: ...

    with pytest.raises(MalformedMessage, match=message):
        Arguments.of(model if as_model else parameters).decode(body)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"to": 1}', b'{"to": null}', b'{"to": "x", "cc": "y"}', b'{"TO": "x"}', b'{"to": "x", "": 1}']
)
@pytest.mark.parametrize("as_model", [False, True])
def test_arguments_that_do_not_fit_are_a_validation_error(body: bytes, as_model: bool):
    """Missing, wrong and unknown keys are refused in the worker."""

    def parameters(to: str) -> None: ...
    def model(letter: Letter) -> None: ...

    with pytest.raises(ValidationError):
        Arguments.of(model if as_model else parameters).decode(body)


def test_keys_of_workflows_are_left_out():
    """Keys that begin with `$` are not the task's; the same sign anywhere else is data."""

    def task(to: str, data: dict[str, Any]) -> None: ...

    arguments = Arguments.of(task)
    body = json.dumps({"to": "$x", "data": {"$inner": 1}, "$then": [{"name": "b"}], "$chord": None}).encode()
    assert arguments.decode(body) == ((), {"to": "$x", "data": {"$inner": 1}})


def test_keys_of_workflows_are_known_when_they_are_escaped():
    """JSON may write any character as an escape."""

    def task(to: str) -> None: ...

    assert Arguments.of(task).decode(b'{"to":"x","\\u0024then":1}') == ((), {"to": "x"})


def test_a_workflow_key_does_not_change_what_the_other_values_mean():
    """Strict types, bytes and large numbers are read as without it."""

    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)
        key: uuid.UUID
        pair: tuple[int, int]
        content: bytes
        big: int

    def task(strict: Strict) -> None: ...

    arguments = Arguments.of(task)
    value = Strict(key=uuid.uuid4(), pair=(1, 2), content=b"\xff", big=10**30)
    body = arguments.encode((value,), {})
    assert arguments.decode(body[:-1] + b',"$then":{}}') == ((), {"strict": value})


def test_decoding_survives_random_damage():
    """Whatever is done to a body, decoding ends in arguments or in one of the two errors."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    arguments = Arguments.of(rich_enough)
    body = arguments.encode(("x",), {"n": 3, "data": {"a": [1, 2]}, "content": b"\xff"})
    for _ in range(2000):
        damaged = bytearray(body)
        for _ in range(draw.randint(1, 4)):
            position = draw.randrange(len(damaged))
            damaged[position : position + draw.randint(0, 2)] = draw.choice(
                [b"", b'"', b"$", b"\xff", b"{", b"0", b"]"]
            )
        try:
            _, values = arguments.decode(bytes(damaged))
        except (MalformedMessage, ValidationError):
            continue
        assert isinstance(values["to"], str)


def rich_enough(to: str, n: int = 0, data: Any = None, content: bytes = b"") -> None: ...


# --- arguments by name


def test_arguments_by_name_are_checked_like_a_message():
    """Code that has only the task's name gives a mapping; a message task takes its model's fields."""

    def parameters(a: int, /, b: Annotated[str, Field(alias="bee")] = "") -> None: ...
    def message(letter: Letter) -> None: ...

    assert Arguments.of(parameters).encode_named({"a": 1, "bee": "x"}) == b'{"a":1,"bee":"x"}'
    assert Arguments.of(message).encode_named({"to": "x"}) == b'{"to":"x","subject":"none"}'
    assert Arguments.of(message).encode_named(Letter(to="x")) == b'{"to":"x","subject":"none"}'
    with pytest.raises(ValidationError):
        Arguments.of(message).encode_named({"letter": {"to": "x"}})


def test_a_model_can_stand_for_arguments_by_name():
    """Its fields are the arguments."""

    def parameters(to: str, subject: str) -> None: ...

    assert Arguments.of(parameters).encode_named(Letter(to="x")) == b'{"to":"x","subject":"none"}'


# --- refused at declaration


class Login(BaseModel):
    user: str
    password: SecretStr | None = None


@dataclass
class Account:
    logins: list[Login]


class Wrapped(RootModel[list[int]]):
    pass


class Opaque:
    pass


def refused_parameters() -> list[tuple[Any, str]]:
    return [
        (SecretStr, "SecretStr.*asterisks"),
        (SecretBytes, "SecretBytes.*asterisks"),
        (Secret[int], "Secret.*asterisks"),
        (Optional[SecretStr], "SecretStr"),
        (Union[int, list[SecretStr]], "SecretStr"),
        (Annotated[SecretStr, "note"], "SecretStr"),
        (dict[str, SecretBytes], "SecretBytes"),
        (Login, "field 'password'.*SecretStr"),
        (list[Login], "field 'password'.*SecretStr"),
        (Account, r"field 'logins\.password'.*SecretStr"),
        (NewType("Password", SecretStr), "SecretStr"),
        (Wrapped, r"RootModel \(Wrapped\).*list\[int\]"),
        (Optional[Wrapped], "RootModel"),
        (RootModel[int], "RootModel"),
        (BaseModel, "BaseModel in general"),
        (Opaque, "Opaque"),
        (list[Opaque], "Opaque"),
        (Callable[[int], int], "a callable, which cannot travel"),
        (type[int], "a class, which cannot travel"),
        (Annotated[int, Field(alias="$n")], r"'\$n'.*asyncq"),
        (Annotated[int, Field(validation_alias="a", serialization_alias="b")], "written as 'b' and read from 'a'"),
        (Annotated[int, Field(validation_alias=AliasChoices("a", "b"), serialization_alias="c")], "written as"),
        (Annotated[int, Field(default=3)], "default inside Field"),
        (Annotated[int, Field(default_factory=int)], "default inside Field"),
    ]


@pytest.mark.parametrize(("annotation", "message"), refused_parameters(), ids=lambda item: repr(item)[:40])
@pytest.mark.parametrize("alone", [True, False])
def test_what_cannot_travel_is_refused_at_declaration(annotation: Any, message: str, alone: bool):
    """The error names the task, the parameter, and what to do."""

    def task(other: int, it: Any) -> None: ...
    def only(it: Any) -> None: ...

    function = only if alone else task
    function.__annotations__["it"] = annotation
    with pytest.raises(TaskDefinitionError, match=message) as caught:
        Arguments.of(function, task="shop.it")
    assert "shop.it" in str(caught.value)


def test_star_args_are_refused_with_a_remedy():
    """Arguments travel by name."""

    def args(*names: str) -> None: ...
    def kwargs(**options: str) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"'\*names' cannot travel.*names: list"):
        Arguments.of(args)
    with pytest.raises(TaskDefinitionError, match=r"'\*\*options'.*options: dict"):
        Arguments.of(kwargs)


def test_a_field_as_default_is_refused_with_a_remedy():
    """A direct call would get the Field object."""

    def task(n: int = Field(5, gt=0)) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"'n'.*Annotated"):
        Arguments.of(task)


def test_two_arguments_of_one_key_are_refused():
    """An alias may be another parameter's name."""

    def task(a: int, b: Annotated[int, Field(alias="a")]) -> None: ...

    with pytest.raises(TaskDefinitionError, match="two arguments are called 'a'"):
        Arguments.of(task)


def test_a_required_field_that_would_not_travel_is_refused():
    """A model with such a field could be sent and never be read."""

    class Hidden(BaseModel):
        here: int
        gone: int = Field(exclude=True)

    def task(hidden: Hidden) -> None: ...

    with pytest.raises(TaskDefinitionError, match=r"Hidden\.gone has exclude=True"):
        Arguments.of(task)


def test_a_context_parameter_without_pass_context_is_refused_with_a_remedy():
    """It is a mistake that everybody makes once."""
    from asyncq.context import TaskContext

    def task(ctx: TaskContext, n: int) -> None: ...

    task.__annotations__["ctx"] = TaskContext
    with pytest.raises(TaskDefinitionError, match=r"'ctx'.*pass_context=True"):
        Arguments.of(task)


@pytest.mark.parametrize("function", [lambda: None, lambda *, ctx: None])
def test_pass_context_needs_a_first_parameter_that_takes_it(function: Callable[..., Any]):
    """A function without parameters, or with keyword-only ones, cannot be given the context."""
    with pytest.raises(TaskDefinitionError, match="first parameter must take the context"):
        Arguments.of(function, pass_context=True)


@pytest.mark.parametrize("annotation", [int, "str", list[int], Letter])
def test_pass_context_refuses_a_first_parameter_that_is_data(annotation: Any):
    """Without this check the task would get its context in the place of a number."""

    def task(n, m: int) -> None: ...

    task.__annotations__["n"] = annotation
    with pytest.raises(TaskDefinitionError, match=r"'n' is annotated with .*ctx: TaskContext"):
        Arguments.of(task, pass_context=True)


def test_an_email_address_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    """The package that checks addresses is optional."""
    import pydantic.networks

    def task(to: EmailStr, n: int) -> None: ...

    monkeypatch.setitem(sys.modules, "email_validator", None)
    monkeypatch.setattr(pydantic.networks, "email_validator", None, raising=False)
    with pytest.raises(TaskDefinitionError, match=r"parameter 'to'.*asyncq\[email\]"):
        Arguments.of(task)


# --- names that are not there yet


def test_names_that_only_a_type_checker_sees_are_a_clear_error_when_the_app_opens():
    """At declaration they may still come; when the app opens, they are missing."""

    def task(a: Unknown, b: int) -> None: ...

    arguments = Arguments.of(task, task="shop.task")
    with pytest.raises(TaskDefinitionError, match=r"shop\.task.*parameter 'a'.*Unknown.*TYPE_CHECKING"):
        arguments.resolve()
    with pytest.raises(TaskDefinitionError, match="Unknown"):
        arguments.encode((1, 2), {})


def test_the_contexts_own_annotation_need_not_exist():
    """It is no part of the message."""

    def task(ctx: Unknown, b: int) -> None: ...

    assert Arguments.of(task, pass_context=True).encode((3,), {}) == b'{"b":3}'


def test_a_class_that_is_defined_later_in_the_module_is_found(monkeypatch: pytest.MonkeyPatch):
    """A forward reference is resolved again when the app opens."""

    def task(late: Late, b: int) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    arguments = Arguments.of(task)
    monkeypatch.setitem(globals(), "Late", Letter)
    arguments.resolve()
    assert arguments.encode((Letter(to="x"), 3), {}) == b'{"late":{"to":"x","subject":"none"},"b":3}'


def test_types_local_to_a_function_are_found():
    """Before the task, or after it."""

    class Before(BaseModel):
        n: int

    def task(before: Before, after: list[After]) -> None: ...

    arguments = Arguments.of(task)

    class After(BaseModel):
        n: int

    assert arguments.encode((Before(n=1), [After(n=2)]), {}) == b'{"before":{"n":1},"after":[{"n":2}]}'


def test_the_local_names_around_a_task_are_let_go():
    """They are looked at for annotations only, and may hold a lot."""

    class Large:
        pass

    def declare() -> tuple[Arguments, weakref.ref[Large]]:
        large = Large()

        def task(a: int) -> None: ...

        return Arguments.of(task), weakref.ref(large)

    arguments, large = declare()
    gc.collect()
    assert large() is None
    assert arguments.encode((1,), {}) == b'{"a":1}'


def test_a_model_with_a_forward_reference_is_completed_when_the_app_opens():
    """Pydantic completes a model when all its names are there."""

    class Outer(BaseModel):
        inner: Inner

    def task(outer: Outer) -> None: ...

    arguments = Arguments.of(task)
    with pytest.raises(TaskDefinitionError, match="Inner"):
        arguments.resolve()

    class Inner(BaseModel):
        n: int

    Outer.model_rebuild()
    arguments.resolve()
    assert arguments.encode((Outer(inner=Inner(n=1)),), {}) == b'{"inner":{"n":1}}'


def test_an_annotation_that_is_no_type_is_refused():
    """A text that Python cannot read, or a value where a type belongs."""

    def broken(a) -> None: ...
    def value(a) -> None: ...

    broken.__annotations__["a"] = "list["
    value.__annotations__["a"] = 5
    for function in (broken, value):
        with pytest.raises(TaskDefinitionError, match="'a'"):
            Arguments.of(function).resolve()


# --- results


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, 3),
        (None, None),
        (Optional[bytes], b"\xff"),
        (float, math.inf),
        (list[Letter], [Letter(to="x")]),
        (Wrapped, Wrapped([1, 2])),
        (dict[str, Decimal], {"a": Decimal("1.10")}),
        (Blob, Blob(content=b"\xff", ratio=math.inf)),
        (tuple[int, str], (1, "x")),
        (inspect.Signature.empty, {"a": [1]}),
    ],
)
def test_results_arrive_as_they_were_returned(annotation: Any, value: Any):
    """A result is any JSON value, read as the declared type."""
    results = Results.of(annotation, task="shop.task")
    assert results.decode(results.encode(value)) == value


def test_a_result_of_the_wrong_type_is_refused_with_a_clear_message():
    """The message names the task and what it returned."""
    with pytest.raises(
        ResultNotSerialisable, match=r"'shop\.task' returned a str that does not fit(?s:.*)integer"
    ) as caught:
        Results.of(int, task="shop.task").encode("many")
    assert isinstance(caught.value.__cause__, ValidationError)


@pytest.mark.parametrize("value", [object(), "\ud800", {"a": lambda: 1}])
def test_a_result_that_json_cannot_hold_is_refused_with_a_clear_message(value: Any):
    """An undeclared return type takes anything, so only writing shows it."""
    with pytest.raises(ResultNotSerialisable, match="cannot be written as JSON"):
        Results.of(inspect.Signature.empty, task="shop.task").encode(value)


def test_a_result_that_does_not_fit_is_a_value_error_for_the_sender():
    """The sender's declared type is the one that counts there."""
    with pytest.raises(ValueError, match="integer"):
        Results.of(int).decode(b'"x"')
    with pytest.raises(ValueError, match="JSON"):
        Results.of(int).decode(b"\xff")


@pytest.mark.parametrize("annotation", [NoReturn, Never, None])
def test_a_task_that_never_returns_has_no_result(annotation: Any):
    """It always raises: `raise Retry(...)` at the end of every way."""
    assert Results.of(annotation).encode(None) == b"null"


def test_a_return_type_that_cannot_travel_is_refused_at_declaration():
    """In one readable sentence, with the remedy."""
    with pytest.raises(TaskDefinitionError, match=r"the return value of task 'shop\.task' cannot.*Opaque.*Take data"):
        Results.of(Opaque, task="shop.task")


def test_a_secret_in_a_result_is_refused_at_declaration():
    """It would arrive as asterisks."""
    with pytest.raises(TaskDefinitionError, match=r"the return value of task 'shop\.task', field 'password'"):
        Results.of(Login, task="shop.task")


def test_a_return_type_that_is_not_there_yet_is_resolved_later(monkeypatch: pytest.MonkeyPatch):
    """As with parameters."""

    def task() -> Late: ...  # type: ignore[name-defined]  # noqa: F821

    results = Results.of(task.__annotations__["return"], function=task, task="shop.task")
    with pytest.raises(TaskDefinitionError, match="the return value is annotated with 'Late'"):
        results.resolve()
    monkeypatch.setitem(globals(), "Late", int)
    results.resolve()
    assert results.encode(3) == b"3"
