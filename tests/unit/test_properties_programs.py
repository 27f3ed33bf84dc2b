"""Programs as JSON: what is written is read again, and what foreign clients write is read or refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncq.callback import Callback
from asyncq.errors import MalformedMessage
from asyncq.keeping import Keeping
from asyncq.options import Sending
from asyncq.program import Arrival, Fork, Place, Step, Workflow, node_id
from asyncq.program_json import place_in, program_from_json, program_json, with_next_read, with_place, with_raw_key

names = st.text('ab"\\$ é𝄞\n', min_size=1, max_size=5)
queues = st.from_regex(r"[a-z][a-z0-9.-]{0,9}[a-z]", fullmatch=True).filter(lambda name: not name.endswith(".dead"))
seconds = st.none() | st.floats(0, 1e6)
moments = st.none() | st.integers(1, 2**40)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text('a"é', max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=2),
    max_leaves=3,
)
objects = st.dictionaries(names, values, max_size=2)


def written(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


callbacks = st.builds(Callback, task=names, queue=queues)
sendings = st.builds(
    lambda callback, says, **fields: Sending(
        on_failure=callback if says else None, says_on_failure=says, says_deadline=False, **fields
    ),
    st.none() | callbacks,
    st.booleans(),
    delay_s=seconds,
    expires_s=seconds,
    time_limit_s=seconds,
    deadline_s=seconds,
    eta_ms=moments,
    expires_ms=moments,
    headers=st.dictionaries(st.from_regex(r"shop-[a-z]{1,5}", fullmatch=True), st.integers(-5, 5), max_size=2),
)
keepings = st.builds(Keeping, st.sampled_from([None, "result", "errors", "nothing"]), seconds)
steps = st.builds(
    Step,
    id=names,
    task=names,
    queue=queues,
    arguments=objects.map(written),
    into=st.none() | names,
    items=st.none() | st.lists(objects, max_size=2).map(written),
    sending=sendings,
    keeping=keepings,
    reply=st.booleans(),
)


def forks(inner: st.SearchStrategy[Step | Fork]) -> st.SearchStrategy[Fork]:
    members = st.lists(st.lists(inner, max_size=2).map(tuple), max_size=3).map(tuple)
    return st.builds(Fork, names, members, st.sampled_from(["stop", "collect"]), st.booleans())


programs = st.lists(st.recursive(steps, lambda inner: steps | forks(inner), max_leaves=4), max_size=2).map(tuple)
arrivals = st.integers(1, 50).flatmap(
    lambda size: st.builds(Arrival, names, st.integers(0, size - 1), st.just(size), st.integers(0, 2**40))
)
workflows = st.builds(
    Workflow,
    names,
    st.none() | names,
    st.none() | callbacks,
    keepings,
    names,
    moments,
    st.integers(0, 2**40),
    st.booleans(),
)


def equal(one: object, other: object) -> bool:
    """Compare by meaning: JSON inside is compared as values, not as bytes."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, Step) and isinstance(other, Step):
        raw = [(item.arguments, item.items or b"null") for item in (one, other)]
        first, second = ([json.loads(text) for text in pair] for pair in raw)
        plain = [
            (item.id, item.task, item.queue, item.into, item.sending, item.keeping, item.reply) for item in (one, other)
        ]
        return first == second and plain[0] == plain[1]
    if isinstance(one, Fork) and isinstance(other, Fork):
        same = (one.id, one.errors, one.joined) == (other.id, other.errors, other.joined)
        return same and equal(one.members, other.members)
    return False


@given(programs)
def test_a_program_that_is_written_is_read_again(program):
    """Whatever is in it."""
    assert equal(program_from_json(program_json(program)), program)


@given(workflows, programs, st.none() | arrivals, st.booleans(), objects)
def test_a_place_travels_in_a_body_and_leaves_the_arguments_as_they_are(workflow, program, chord, ends, arguments):
    """Its program is read element by element, as it is needed, and written again with what nobody has read."""
    arguments = {key: value for key, value in arguments.items() if not key.startswith("$")}
    body = with_place(written(arguments), Place(workflow, program, b"", chord, ends))
    place = place_in(body)
    assert place is not None
    assert (place.workflow, place.chord, place.ends) == (workflow, chord, ends)
    left = json.loads(body)
    assert left.pop("$workflow")
    assert left == arguments
    seen = []
    while place.has_more:
        place = with_next_read(place)
        seen += place.then
        rest = Place(workflow, (), place.tail, chord, ends)
        place = place_in(with_place(b"{}", rest))
        assert place is not None
    assert equal(tuple(seen), program)


@given(names, values)
def test_a_value_is_put_into_the_arguments_byte_by_byte(name, value):
    """Under any name."""
    body = with_raw_key(b'{"$a": 1.10}', name, written(value))
    assert b'"$a": 1.10' in body
    assert json.loads(body)[name] == value


def test_most_bodies_have_no_place():
    """They are not even read."""
    assert place_in(b"{}") is None
    assert place_in(b"no JSON at all") is None
    assert place_in(b'{"workflow": 1}') is None
    assert place_in(b'no JSON, "workflow"') is None
    assert place_in(b'{"$workflow": null}') is None


STEP = {"id": "1", "task": "a", "queue": "q"}
BAD = [
    5,
    {},
    {"id": ""},
    {"id": "w", "then": {}},
    {"id": "w", "then": [5]},
    {"id": "w", "then": [{**STEP, "queue": "asyncq.x y"}]},
    {"id": "w", "then": [{**STEP, "arguments": []}]},
    {"id": "w", "then": [{**STEP, "items": [1]}]},
    {"id": "w", "then": [{**STEP, "into": 5}]},
    {"id": "w", "then": [{**STEP, "task": "x" * 256}]},
    {"id": "w", "then": [{**STEP, "options": {"delay_s": "1"}}]},
    {"id": "w", "then": [{**STEP, "options": {"delay_s": -1}}]},
    {"id": "w", "then": [{**STEP, "options": {"delay_s": 1e300}}]},
    {"id": "w", "then": [{**STEP, "options": {"eta_ms": True}}]},
    {"id": "w", "then": [{**STEP, "options": {"headers": {"x-death": 1}}}]},
    {"id": "w", "then": [{**STEP, "options": {"on_failure": {"task": "x"}}}]},
    {"id": "w", "then": [{**STEP, "options": {"keep": "all"}}]},
    {"id": "w", "then": [{**STEP, "options": {"reply": 1}}]},
    {"id": "w", "then": [{"id": "f"}]},
    {"id": "w", "then": [{"id": "f", "members": 5}]},
    {"id": "w", "then": [{"id": "f", "members": [{}]}]},
    {"id": "w", "then": [{"id": "f", "members": [], "errors": "ignore"}]},
    {"id": "w", "then": [{"id": "f", "members": [[{"id": "g"}]]}]},
    {"id": "w", "chord": 5},
    {"id": "w", "chord": {"id": "c", "index": 2, "size": 2, "kept_until_ms": 0}},
    {"id": "w", "chord": {"id": "c", "index": 0, "size": 1}},
    {"id": "w", "ends": 1},
    {"id": "w", "reply_to": 5},
    {"id": "w", "on_failure": {}},
    {"id": "w", "sent_ms": "now"},
    {"id": "w", "new": 1},
]


@pytest.mark.parametrize("place", BAD, ids=lambda place: json.dumps(place)[:60])
def test_what_is_no_place_is_refused_with_its_key(place):
    """Foreign clients write what they like."""
    with pytest.raises(MalformedMessage, match=r"\$workflow|\$on_failure"):
        place_in(json.dumps({"$workflow": place}).encode())


def test_forks_in_forks_have_an_end():
    """Deep ones are refused before they use up the stack."""
    deep = b'{"id":"f","members":[[' * 62 + b"]]}" * 62
    with pytest.raises(MalformedMessage, match="nested too deep"):
        program_from_json(b"[" + deep + b"]")


def test_ids_follow_from_the_workflow_and_the_path():
    """The same ones for everybody."""
    assert node_id("w", "0.1") == node_id("w", "0.1") != node_id("w", "0.2")
    assert node_id("v", "0.1") != node_id("w", "0.1")
