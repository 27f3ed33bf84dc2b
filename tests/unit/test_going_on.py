"""What an interpreter does at the edges: what is too large, what cannot be sent, and whose time is over."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from asyncq.barrier import Gathered, Member
from asyncq.broker import Publication
from asyncq.ending import Ending
from asyncq.errors import InvalidOption, MessageTooLarge, PublishError, Unroutable
from asyncq.interpreter import FlowRules, Interpreter, Source
from asyncq.message import ReplyType
from asyncq.options import Sending
from asyncq.outcome import Failure
from asyncq.program import WHOLE, Arrival, Fork, Place, Step, Workflow
from asyncq.program_json import with_place
from asyncq.testing.clock import ManualClock

FLOW = Workflow("flow")
LIMIT = 100_000


class Road:
    """A way to nowhere: it keeps what it was given."""

    def __init__(self) -> None:
        self.published: list[Publication] = []
        self.log: list[str] = []
        self.arrived: list[Member] = []
        self.repeats: list[bool] = []
        self.ends: list[Ending] = []
        self.error: Exception | None = None
        self.gathered: Gathered | None = None

    async def publish(self, item: Publication) -> None:
        if self.error is not None:
            raise self.error
        self.published.append(item)
        self.log.append(item.message.task_id)

    async def publish_many(self, items: Sequence[Publication]) -> list[PublishError | None]:
        for item in items:
            await self.publish(item)
        return [None for _ in items]

    async def open_barrier(self, chord: str, head: bytes, keep_s: float) -> None: ...

    async def arrive(self, arrival: Arrival, member: Member, *, is_repeat: bool) -> Gathered | None:
        self.arrived.append(member)
        self.repeats.append(is_repeat)
        self.log.append(f"{arrival.chord} {member.index}")
        gathered, self.gathered = self.gathered, None
        return gathered

    async def end(self, workflow: Workflow, ending: Ending) -> None:
        self.ends.append(ending)


@pytest.fixture
def road() -> Road:
    return Road()


def interpreter_on(road: Road, **source: object) -> Interpreter:
    rules = FlowRules("asyncq.tasks", LIMIT, 3600)
    return Interpreter(road, ManualClock(), rules, Source(None, **source))  # type: ignore[arg-type]


def carried(place: Place) -> int:
    return len(with_place(b"{}", place))


@pytest.mark.parametrize("into", ["x", WHOLE])
async def test_a_wide_fork_is_measured_by_the_messages_of_its_members(road: Road, into: str) -> None:
    """No member carries the others, so the fork and the value may be too large for one message together."""
    members = tuple((Step(f"member-{number}", "work.more", "work", into=into),) for number in range(1000))
    place = Place(FLOW, (Fork("f", members),))
    value = json.dumps({"text": 50_000 * "x"}).encode()
    assert carried(place) + len(value) > LIMIT
    interpreter = interpreter_on(road, parent_id="task")
    interpreter.check(place, value, carried(place))
    await interpreter.go_on(place, Ending(ReplyType.SUCCEEDED, value))
    assert len(road.published) == 1000
    assert max(len(item.message.body) for item in road.published) < LIMIT


async def test_a_step_is_measured_without_itself_among_what_follows_it(road: Road) -> None:
    """Its arguments are in its message once."""
    following = Step("next", "work.more", "work", json.dumps({"padding": 40_000 * "y"}).encode(), into="x")
    place = Place(FLOW, (following,))
    interpreter_on(road).check(place, json.dumps(30_000 * "x").encode(), carried(place) + 40_000)
    with pytest.raises(MessageTooLarge):
        interpreter_on(road).check(place, json.dumps(60_000 * "x").encode(), carried(place))


async def test_a_last_value_must_fit_into_the_message_in_which_it_arrives(road: Road) -> None:
    """Else a member would have succeeded, and its chord would never hear of it."""
    place = Place(FLOW, chord=Arrival("c", 0, 2, 2**42))
    interpreter_on(road).check(place, b'"%b"' % (LIMIT // 2 * b"x"), 100)
    with pytest.raises(MessageTooLarge):
        interpreter_on(road).check(place, b'"%b"' % (LIMIT * b"x"), 100)


async def test_an_error_arrives_without_its_traceback(road: Road) -> None:
    """Whoever gathers thousands of them holds them all, and tells the first words of each."""
    place = Place(FLOW, chord=Arrival("c", 0, 2, 2**42))
    failure = Failure("builtins.ValueError", 4000 * "m", 8000 * "t")
    await interpreter_on(road).go_on(place, Ending.of_failure(ReplyType.FAILED, failure, task_id="t", task="work.more"))
    (member,) = road.arrived
    assert len(member.body) < 1500
    assert json.loads(member.body)["type"] == "builtins.ValueError"


async def test_a_fork_whose_time_is_over_has_expired_as_a_step_has(road: Road) -> None:
    """It has not failed: nobody has used an option wrongly."""
    gone = Sending(delay_s=60.0, expires_ms=ManualClock().now_ms() + 1000)
    fork = Fork("f", ((Step("m", "work.more", "work", sending=gone),),))
    await interpreter_on(road, parent_id="task").go_on(Place(FLOW, (fork,)), Ending(ReplyType.SUCCEEDED, b"1"))
    assert [ending.kind for ending in road.ends] == [ReplyType.EXPIRED]


async def test_a_fork_with_too_many_members_has_failed_though_they_expire_some_day(
    road: Road, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is over, and what can never be, are told apart."""
    monkeypatch.setattr("asyncq.interpreter.MOST_MEMBERS", 1)
    some_day = Sending(expires_ms=ManualClock().now_ms() + 10**6)
    fork = Fork("f", tuple((Step(f"m{number}", "work.more", "work", sending=some_day),) for number in range(2)))
    await interpreter_on(road, parent_id="task").go_on(Place(FLOW, (fork,)), Ending(ReplyType.SUCCEEDED, b"1"))
    assert [ending.kind for ending in road.ends] == [ReplyType.FAILED]


async def test_who_sends_is_told_what_could_not_be_sent_behind_an_empty_fork(road: Road) -> None:
    """By an exception, as of every other beginning: perhaps nobody waits for a reply."""
    program = (Fork("f", ()), Step("body", "work.more", "work"))
    road.error = Unroutable("no such queue")
    with pytest.raises(Unroutable):
        await interpreter_on(road).start(program, FLOW)
    with pytest.raises(InvalidOption):
        await interpreter_on(road).start(
            (Fork("f", ()), Step("body", "work.more", "work", sending=Sending(delay_s=1.0, expires_ms=1))), FLOW
        )
    assert road.ends == []


async def test_members_without_a_task_arrive_before_a_task_is_sent(road: Road) -> None:
    """So it is a worker that brings the last one: of a chord that has failed, only workers tell store and callback."""
    one, two = Step("one", "work.more", "work"), Step("two", "work.more", "work")
    members = ((one,), (), (Fork("g", ((two,), ())),), (Fork("h", ()),))
    await interpreter_on(road).start((Fork("f", members), Step("body", "work.more", "work", into="x")), FLOW)
    assert road.log == ["f 1", "f 3", "one", "g 1", "two"]


class Held:
    """All members of a chord, which somebody may have held before."""

    is_too_large = False

    def __init__(self, head: bytes, *, was_held: bool) -> None:
        self.head = head
        self.was_held = was_held
        self.members = [Member(0, "succeeded", b"1", "t0", "work.more")]

    async def done(self) -> None: ...

    async def give_back(self) -> None: ...


@pytest.mark.parametrize("was_held", [False, True])
async def test_who_goes_on_with_what_somebody_has_held_before_says_so(road: Road, was_held: bool) -> None:
    """That one may have died when it had gone on: then what follows comes twice, and the second one is no surprise."""
    outer, inner = Arrival("outer", 0, 1, 2**42), Arrival("inner", 0, 1, 2**42)
    follows = Place(FLOW, (Step("next", "work.more", "work", into="x"),))
    for place in (follows, Place(FLOW, chord=outer)):
        road.gathered = Held(with_place(b"{}", place), was_held=was_held)
        await interpreter_on(road).go_on(Place(FLOW, chord=inner), Ending(ReplyType.SUCCEEDED, b"1"))
    (item,) = road.published
    assert ("asyncq-runs" in item.message.headers) == was_held
    assert road.log == ["inner 0", "next", "inner 0", "outer 0"]
    assert road.repeats == [False, False, was_held]
