"""Workflows as values: how they are written, compared, printed, drawn and read back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from asyncq import AsyncQ, Chain, Chord, Group, InvalidWorkflow, PartialSignature, chain, chord, group
from asyncq.errors import InvalidOption
from asyncq.workflow.reading import reading_of

app = AsyncQ("shop")


class Order(BaseModel):
    """What a customer wants."""

    number: int
    city: str = "Hamburg"


@app.task
async def add(x: int, y: int = 1) -> int:
    return x + y


@app.task
async def double(x: int) -> int:
    return 2 * x


@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task
async def number_of(order: Order) -> int:
    return order.number


@app.task
async def order_of(number: int) -> Order:
    return Order(number=number)


@app.task
async def tick() -> None: ...


@app.task(queue="mail")
async def mail(to: Any, *, subject: str, text: Any = None) -> None: ...


# --- writing


def test_a_chain_is_the_same_value_however_it_is_written():
    """By `|`, by `then`, by `chain`, of a list, with a part that was made before."""
    written = add.s(1) | double | add.partial(y=5)
    assert isinstance(written, Chain)
    assert written == add.s(1).then(double).then(add.partial(y=5)) == chain(add.s(1), double, add.partial(y=5))
    assert written == chain([add.s(1), double, add.partial(y=5)]) == chain(add.s(1), chain(double, add.partial(y=5)))
    assert written == chain(add.s(1) | double, add.partial(y=5))
    assert written != chain(add.s(2), double, add.partial(y=5))


def test_a_group_is_written_with_arguments_a_list_or_a_generator():
    """And by `map` and `starmap`, which send a message for each item."""
    written = group(add.s(1), add.s(2))
    assert written == group([add.s(1), add.s(2)]) == group(add.s(x) for x in (1, 2)) == add.map([1, 2])
    assert add.starmap([(1, 2), (3,)]) == group(add.s(1, 2), add.s(3))
    assert len(written) == 2
    assert group() == group([]) == Group(())


def test_a_group_that_something_follows_is_a_chord():
    """Whichever way it is written, and in the middle of a chain, too."""
    header = group(add.s(1), add.s(2))
    assert header | total == chord(header, total) == chord([add.s(1), add.s(2)], total) == header.then(total)
    assert isinstance(header | total, Chord)
    assert add.s(1) | group(add, double) | total == chain(add.s(1), chord(group(add, double), total))
    assert chain(add.s(1), group(add, double), total, double) == (add.s(1) | group(add, double) | total | double)
    assert chain(header, total) == Chain((chord(header, total),))


def test_a_chunk_is_one_message_for_several_calls():
    """The last one may be shorter; with `star`, items are tuples of arguments."""
    written = add.chunks(range(5), 2)
    assert [member.body for member in written.members] == [
        b'{"$items":[{"x":0},{"x":1}]}',
        b'{"$items":[{"x":2},{"x":3}]}',
        b'{"$items":[{"x":4}]}',
    ]
    assert add.chunks([(1, 2)], 10, star=True).members[0].body == b'{"$items":[{"x":1,"y":2}]}'
    assert written.members[0].decode(b"[1, 2]") == [1, 2]
    with pytest.raises(ValidationError):
        written.members[0].decode(b'["one"]')


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "2"])
def test_a_chunk_has_one_call_at_least(size):
    with pytest.raises(InvalidWorkflow, match="how many items are in one message"):
        add.chunks([1], size)


def test_what_comes_before_goes_into_the_first_argument_that_is_free():
    """By position or by name; of a task that takes one model, the whole message."""
    assert add.partial().into == "x"
    assert add.partial(7) == add.partial(x=7)
    assert (add.partial(7).into, add.partial(7).body) == ("y", b'{"x":7}')
    assert mail.partial("a@b", subject="Hi").into == "text"
    assert mail.partial(subject="Hi").into == "to"
    assert number_of.partial().into == "$"


def test_workflows_cannot_be_changed():
    """Options make a new value."""
    workflow = add.s(1) | double
    with pytest.raises(dataclasses.FrozenInstanceError):
        workflow.steps = ()
    slow = workflow.options(delay=5)
    assert (workflow.sending.delay_s, slow.sending.delay_s) == (None, 5)
    assert slow != workflow


def test_a_chain_with_options_of_its_own_stays_one_step():
    """They are for that part alone."""
    inner = chain(double, double).options(queue="slow")
    assert chain(add.s(1), inner).steps == (add.s(1), inner)


# --- what cannot be


def failing(build: Any) -> str:
    with pytest.raises(InvalidWorkflow) as raised:
        build()
    return str(raised.value)


def test_a_task_that_takes_no_such_argument_is_refused():
    """The message says which task and which argument."""
    assert "shop.add() got an unexpected keyword argument 'z'" in failing(lambda: add.partial(z=1))
    assert "takes 1 positional argument, and 2 were given" in failing(lambda: double.partial(1, 2))
    assert "it takes no argument. Write tick.si(...)" in failing(lambda: add.s(1) | tick)
    assert "all of its arguments are bound" in failing(lambda: add.s(1) | double.partial(3))


def test_arguments_that_nothing_gives_are_refused_with_their_names():
    assert "nothing gives it 'subject'. Bind what is missing: mail.partial(subject=...)" in failing(mail.partial)
    assert "'subject'" in failing(lambda: add.s(1) | mail)


def test_a_bound_argument_that_does_not_fit_is_refused_where_it_is_bound():
    with pytest.raises(ValidationError, match="y"):
        add.partial(y="many")


def test_a_step_with_all_of_its_arguments_must_say_that_it_ignores_what_came_before():
    """`add.s(2)` could have meant either."""
    assert "Write add.si(...) if it shall ignore it" in failing(lambda: add.s(1) | add.s(2))
    assert "Write add.si(...)" in failing(lambda: add.s(1) | group(double, add.s(2)))
    assert chain(add.s(1), add.si(2)).steps[1].immutable


def test_a_task_of_which_the_code_is_elsewhere_says_which_argument_takes_what_came_before():
    """Nobody here knows its arguments."""
    elsewhere = AsyncQ("other").signature("images.resize", {"width": 80})
    taking = elsewhere.taking("image")
    assert isinstance(taking, PartialSignature)
    assert (taking.into, taking.body, taking.queue) == ("image", b'{"width":80}', "images")
    assert elsewhere.taking(None).immutable
    assert str(add.s(1) | taking).splitlines()[-1] == "└── images.resize(image=…, width=80)"
    assert "has its argument 'width' already" in failing(lambda: elsewhere.taking("width"))
    assert "has no argument 'z'" in failing(lambda: add.s(1).taking("z"))
    assert "an argument's name is wanted" in failing(lambda: elsewhere.taking(""))


def test_an_empty_chain_and_what_is_no_task_are_refused():
    assert "needs one step" in failing(chain)
    assert "needs one step" in failing(lambda: chain([]))
    assert "step 2 of a chain is 5" in failing(lambda: chain(add.s(1), 5))
    assert "member 0 of a group is None" in failing(lambda: group(None, add.s(1)))
    assert "It was called: write task.s(...)" in failing(lambda: group(add(1), add.s(2)))
    assert "takes tasks and signatures" in failing(lambda: group("add"))
    assert "what follows shop.add is <function" in failing(lambda: add.s(1) | (lambda x: x))
    assert "takes a group or a list of its members, not shop.add" in failing(lambda: chord(add.s(1), total))
    assert "'stop' or 'collect'" in failing(lambda: chord([], total, errors="ignore"))


def test_an_id_belongs_to_the_whole_alone():
    """The ids of its tasks follow from it, so that a second settlement after a crash makes the same ones."""
    assert "task_id=, which only a whole workflow" in failing(lambda: add.options(task_id="a").s(1) | double)
    assert "timeout=, which only" in failing(lambda: chain(add.s(1), double.options(timeout=3)))
    assert "task_id=" in failing(lambda: group(chain(add.s(1)).options(task_id="a")))
    assert "on_failure=, which a task or a whole" in failing(
        lambda: chain(add.s(1), group(double).options(on_failure=tick.s()))
    )
    assert chain(add.s(1), double).options(task_id="a", timeout=3, on_failure=tick.s()).sending.task_id == "a"


def test_options_that_cannot_be_are_refused_as_everywhere():
    with pytest.raises(InvalidOption, match="no option 'dealy'"):
        chain(add.s(1)).options(dealy=3)


# --- reading results


def test_results_are_read_as_what_the_last_tasks_declare():
    """Of a group as a list, one for each member; in a chunk, each call's."""
    assert reading_of(add.s(1) | order_of)(b'{"number": 1}') == Order(number=1)
    one, other = reading_of(group(add.s(1), order_of.s(1) | number_of))
    assert (one(b"1"), other(b"2")) == (1, 2)
    assert reading_of(group(add.s(1), add.s(2)) | total | order_of)(b'{"number": 3}') == Order(number=3)


# --- printing


def test_a_workflow_is_printed_as_a_tree():
    """With arguments and options; the dots stand for what came before."""
    workflow = (
        add.s(1)
        | group(add.partial(y=5), double.options(queue="slow"))
        | total
        | mail.partial(subject="Hi", text="x" * 99)
    )
    assert str(workflow.options(delay=3, headers={"shop-a": 1})) == (
        "chain [delay=3 s, headers={'shop-a': 1}]\n"
        "├── shop.add(x=1)\n"
        "├── chord\n"
        "│   ├── group\n"
        "│   │   ├── shop.add(x=…, y=5)\n"
        "│   │   └── shop.double(x=…) [queue=slow]\n"
        "│   └── shop.total(numbers=…)\n"
        f'└── shop.mail(to=…, subject="Hi", text="{"x" * 38}…)'
    )


def test_on_one_line_a_workflow_is_its_tasks_and_their_arguments():
    """As debuggers and error messages show it; however large it is."""
    assert repr(add.s(1) | double) == "Chain(Signature(shop.add(x=1)), PartialSignature(shop.double(x=…)))"
    assert repr(chord(add.map(range(9)), total)).endswith("… 4 more), PartialSignature(shop.total(numbers=…)))")
    assert repr(group()) == "Group()"


def test_of_very_many_members_the_first_are_printed_and_drawn():
    workflow = chord(add.map(range(10_000)), total, errors="stop")
    lines = str(workflow).splitlines()
    assert lines[-2:] == ["│   └── … and 9,981 more", "└── shop.total(numbers=…)"]
    assert "… and 9,981 more" in workflow.draw()
    assert len(workflow.draw().splitlines()) < 100


def test_a_drawing_shows_what_follows_what():
    """As Mermaid; names are escaped, so that what is in an argument cannot draw."""
    assert (add.s(1) | group(double, mail.partial(subject='"]; #x')) | double.si(3)).draw() == (
        "flowchart TD\n"
        '    n0["shop.add(x=1)"]\n'
        "    n1((group))\n"
        "    n0 --> n1\n"
        '    n2["shop.double(x=…)"]\n'
        "    n1 --> n2\n"
        '    n3["shop.mail(to=…, subject=#quot;\\#quot;]; #35;x#quot;)"]\n'
        "    n1 --> n3\n"
        "    n4{{all}}\n"
        "    n2 --> n4\n"
        "    n3 --> n4\n"
        '    n5["shop.double(x=3)"]\n'
        "    n4 --> n5"
    )


# --- JSON

SAMPLES = [
    chain(add.s(1)),
    add.s(1) | double.options(queue="slow", delay=2, expires=60, headers={"shop-a": 1}) | add.si(3),
    group(),
    group(add.s(1), chain(add.s(2), double).options(time_limit=3, keep="errors", result_ttl=60)),
    chord(add.map([1, 2]), add.si(1), errors="collect").options(task_id="w", timeout=3, reply=False),
    add.s(1) | group(double, chain(order_of, number_of)) | total | group(add, double),
    add.chunks(range(5), 2) | tick.si(),
    chain(add.s(1)).options(on_failure=tick.options(delay=3).s(), deadline=None, queue="mail"),
    chord([], total),
]


@pytest.mark.parametrize("workflow", SAMPLES)
def test_what_is_written_as_json_is_read_as_an_equal_value(workflow):
    """It is checked again, and can be sent: it knows its app and its types."""
    read = app.workflow_from_json(workflow.to_json())
    assert read == workflow
    assert read.to_json() == workflow.to_json()
    assert str(reading_of(read)) == str(reading_of(workflow)) or isinstance(workflow, Chord | Group | Chain)


def test_a_workflow_of_tasks_that_are_elsewhere_can_be_read():
    """Their arguments are checked by their worker."""
    read = AsyncQ("other").workflow_from_json((add.s(1) | double).to_json())
    assert read == (add.s(1) | double)
    assert read.sender().name == "other"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "this is none"),
        ("[]", r"\$: an object is wanted"),
        ("{}", r"\$: it has none of the keys"),
        ('{"chain": 1}', "a list of its parts"),
        ('{"chain": []}', "needs one step"),
        ('{"chain": [{"task": 1}]}', r"\$\.chain\[0\]: a task's name"),
        ('{"chain": [{"task": "shop.add", "queue": "a b"}]}', "queue name 'a b' cannot"),
        (
            '{"chain": [{"task": "shop.add", "queue": "shop", "arguments": {"x": "one"}}]}',
            r"\$\.chain\[0\]: x: Input should be a valid int",
        ),
        ('{"chain": [{"task": "shop.add", "queue": "shop", "arguments": []}]}', "arguments are an object"),
        ('{"chain": [{"task": "shop.add", "queue": "shop", "arguments": {"$workflow": 1}}]}', "do not begin with"),
        ('{"chain": [{"task": "shop.add", "queue": "shop", "into": "z"}]}', "no argument 'z'"),
        ('{"chain": [{"task": "shop.add", "queue": "shop", "items": [], "into": 3}]}', "into names an argument"),
        ('{"group": [{"task": "shop.add", "queue": "shop", "items": []}]}', "items are a list"),
        ('{"group": [{"task": "shop.add", "queue": "shop", "items": [{"x": "a"}]}]}', "valid integer"),
        ('{"group": [], "size": 3}', "a group has no key 'size'"),
        ('{"group": [], "options": {"delay": 3}}', "delay"),
        ('{"group": [], "options": {"headers": {"x-death": 1}}}', "belongs to asyncq or to RabbitMQ"),
        ('{"chord": {"group": []}}', r"\$\.body: an object"),
        ('{"task": "shop.tick", "queue": "shop"}', "a single task"),
        ('{"task": "shop.tick", "queue": "shop", "reply": 1}', "reply is true or false"),
        ('{"group":[' * 95 + "]}" * 95, "nested 90 deep"),
    ],
)
def test_json_that_is_no_workflow_is_refused_with_the_place(text, wrong):
    with pytest.raises(InvalidWorkflow, match=wrong):
        app.workflow_from_json(text)
    assert isinstance(add.partial(), PartialSignature)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ('{"delay_s": -5}', "delay="),
        ('{"delay_s": NaN}', "delay="),
        ('{"delay_s": 1, "eta_ms": 1}', "either delay= or eta="),
        ('{"expires_s": Infinity}', "expires="),
        ('{"deadline_s": 0}', "deadline="),
        ('{"time_limit_s": -1}', "time_limit="),
        ('{"time_limit_s": 1, "soft_time_limit_s": 2}', "shorter than time_limit="),
        ('{"timeout_s": -1}', "timeout="),
        ('{"expires_ms": 99999999999999999}', "expires_ms"),
        ('{"eta_ms": -99999999999999999}', "eta_ms"),
        ('{"task_id": ""}', "task_id"),
    ],
)
def test_options_in_json_are_checked_as_those_of_a_send_are(options, words):
    """In the process that reads them, and not in the worker."""
    text = f'{{"chain": [{{"task": "a.b", "queue": "a", "options": {{}}}}], "options": {options}}}'
    with pytest.raises(InvalidWorkflow, match=words):
        app.workflow_from_json(text)
