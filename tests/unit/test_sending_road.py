"""What becomes of the queue of a chord whose members could not be sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from asyncq.app import AsyncQ
from asyncq.broker import Publication
from asyncq.errors import AsyncQError, MessageTooLarge, NotSent, PublishUncertain
from asyncq.interpreter import FlowRules, Interpreter, Source
from asyncq.program import Fork, Step, Workflow
from asyncq.sending_road import SendingRoad, one_by_one
from asyncq.workflow.building import chord
from asyncq.workflow.preparing import prepared
from worker_kit import Kit, make_kit

FORK = Fork("f", ((Step("m0", "work.more", "work"),), (Step("m1", "work.more", "work"),)), joined=True)


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    made = await make_kit()
    yield made
    await made.broker.close()


async def send(kit: Kit, *, is_new: bool) -> None:
    async def publish(item: Publication) -> None:
        await kit.broker.publish(item.message, item.to, delay=item.delay, timeout_s=1)

    async def note(_: Sequence[Publication]) -> None: ...

    road = SendingRoad(kit.broker, kit.clock, "shop", 1.0, note, one_by_one(publish), is_new=is_new)
    rules = FlowRules("asyncq.tasks", 10**6, 3600)
    await Interpreter(road, kit.clock, rules, Source("shop")).start((FORK,), Workflow("flow"))


@pytest.mark.parametrize(
    ("error", "is_left"),
    [
        (NotSent("no connection"), False),
        (MessageTooLarge("much"), False),
        (PublishUncertain("no answer"), True),
    ],
)
async def test_what_nobody_will_come_to_is_removed(kit: Kit, error: AsyncQError, is_left: bool) -> None:
    """Where it is sure that no member was sent; else one may come."""
    kit.broker.fail("publish", error, error)
    with pytest.raises(AsyncQError):
        await send(kit, is_new=True)
    assert bool(kit.node.barriers) == is_left


async def test_members_that_were_sent_before_find_their_chord(kit: Kit) -> None:
    """Sending again, as an error told to, and in vain: those of the first time are on their way."""
    kit.broker.fail("publish", NotSent("no connection"))
    with pytest.raises(AsyncQError, match="1 first tasks of the workflow were sent"):
        await send(kit, is_new=False)
    kit.broker.fail("publish", NotSent("no connection"), NotSent("no connection"))
    with pytest.raises(NotSent):
        await send(kit, is_new=False)
    assert kit.node.barriers


def test_an_id_that_was_given_may_have_been_sent_before() -> None:
    """Nobody can have sent one that was made for this send."""
    app = AsyncQ("shop")

    @app.task
    async def one() -> int:
        return 1

    @app.task
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    workflow = chord([one.s()], total)
    assert prepared(workflow, 1).whole.is_new
    assert not prepared(workflow.options(task_id="given"), 1).whole.is_new
