"""An app that declares nothing: it works on what stands, and says what is missing."""

from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest

from asyncq import AsyncQ, NotSent, Unroutable
from asyncq.broker import QueueSpec
from asyncq.errors import QueueGone, TaskCancelled
from asyncq.rabbitmq.delay_routing import path_plan
from asyncq.rabbitmq.diagnosis import plan_of
from asyncq.rabbitmq.inspection import declaring
from asyncq.rabbitmq.ladder_plan import ladder_plan
from asyncq.rabbitmq.topology import Names, apply, journal_declaration
from asyncq.settings import Settings
from support import working

NAMES = Names()
STREAM = journal_declaration("asyncq.cancellations", Settings().cancellations_kept_s)
PLAN = (*plan_of(NAMES, [QueueSpec("mail")]), STREAM)


def shop(url, **settings):
    app = AsyncQ("shop", broker=url, **settings)

    @app.task(queue="mail")
    async def greet(name: str) -> str:
        return f"Hello {name}"

    return app, greet


@pytest.fixture
def stand(broker_url):
    """Declare a plan, as an administrator does."""

    async def declare(plan):
        async with declaring(Settings(broker_url=broker_url), "admin") as open_channel:
            await apply(open_channel, plan)

    return declare


@pytest.fixture
def limited_url(node, broker_url):
    """The URL of a user who may use everything, and declare reply queues only."""
    parts = urlsplit(broker_url)
    node.api("PUT", "/users/limited", {"password": "secret", "tags": ""})
    rights = {"configure": r"^asyncq\.reply\.", "write": ".*", "read": ".*"}
    node.api("PUT", f"/permissions/{parts.path[1:]}/limited", rights)
    yield urlunsplit(parts._replace(netloc=f"limited:secret@{parts.hostname}:{parts.port}"))
    node.api("DELETE", "/users/limited")


async def test_nothing_is_declared_and_a_send_says_what_to_do(broker_url, management):
    """The exchange is missing; it is not asked for again and again."""
    app, greet = shop(broker_url, declare=False)
    async with app:
        with pytest.raises(NotSent, match=r"asyncq\.tasks.*declares nothing.*asyncq topology apply"):
            await greet.options(reply=False).send("Ann")
    assert await management.queues() == {}


async def test_a_user_who_may_not_declare_sends_works_delays_and_gets_results(limited_url, stand, management):
    """Everything stands; its own reply queue is all that it declares."""
    await stand((*PLAN, *ladder_plan(NAMES)))
    before = set(await management.queues())
    app, greet = shop(limited_url, declare=False)
    async with working(app, {"mail": 2}):
        assert await greet.call("Ann") == "Hello Ann"
        assert await greet.options(delay=0.35).call("Bea") == "Hello Bea"
        late = await greet.options(delay=0.35).send("Cid")
        await late.cancel()
        with pytest.raises(TaskCancelled):
            await late.result(20)
    assert set(await management.queues()) == before


async def test_a_delay_whose_path_does_not_stand_is_not_sent_and_says_which_part(broker_url, stand, management):
    """With the command that declares the ladder; the same delay works as soon as that was done."""
    await stand(PLAN)
    app, greet = shop(broker_url, declare=False)
    async with app:
        with pytest.raises(NotSent, match=r"of the delay ladder is missing.*asyncq topology apply MODULE:APP --delays"):
            await greet.options(delay=0.35, reply=False).send("Ann")
        assert set(await management.queues()) == {"asyncq.unroutable", "asyncq.cancellations", "mail", "mail.dead"}
        await stand(path_plan(NAMES, 35))
        await greet.options(delay=0.35, reply=False).send("Ann")


async def test_a_delay_that_the_ladder_does_not_let_in_is_unroutable(broker_url, stand):
    """Bindings cannot be looked for, but the broker returns what finds none."""
    await stand((*PLAN, *path_plan(NAMES, 35)))
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        queue = await channel.get_queue("asyncq.delay.v1.level1.2")
        await queue.unbind(NAMES.delay_enter, "0.0.0.0.0.0.2.#")
    app, greet = shop(broker_url, declare=False)
    async with app:
        with pytest.raises(Unroutable, match=r"the binding by which.*asyncq topology apply MODULE:APP --delays"):
            await greet.options(delay=0.35, reply=False).send("Ann")


async def test_a_destination_that_does_not_exist_is_still_said_first(broker_url, stand):
    """Before any part of the ladder."""
    await stand(PLAN)
    app, greet = shop(broker_url, declare=False)
    async with app:
        with pytest.raises(Unroutable, match="There is no queue 'post'"):
            await greet.options(delay=0.35, queue="post", reply=False).send("Ann")


async def test_results_need_the_permission_to_declare_a_reply_queue(node, limited_url, stand):
    """It is said with the name that the permission must match; without results it works."""
    await stand(PLAN)
    parts = urlsplit(limited_url)
    node.api("PUT", f"/permissions/{parts.path[1:]}/limited", {"configure": "^$", "write": ".*", "read": ".*"})
    app, greet = shop(limited_url, declare=False)
    async with app:
        await greet.options(reply=False).send("Ann")
        with pytest.raises(NotSent, match=r"asyncq\.reply\.shop\..*Grant.*or send with reply=False"):
            await greet.send("Ann")


async def test_a_worker_whose_stream_of_cancellations_does_not_stand_ends_and_says_so(broker_url, stand):
    """It would run what somebody has cancelled; or it is told that nobody does."""
    await stand(plan_of(NAMES, [QueueSpec("mail")]))
    app, greet = shop(broker_url, declare=False)
    with pytest.raises(QueueGone, match=r"'asyncq.cancellations'.*topology apply.*cancellations_kept_s=0"):
        async with app:
            await app.worker({"mail": 2}).run()
    app, greet = shop(broker_url, declare=False, cancellations_kept_s=0)
    async with working(app, {"mail": 2}):
        assert await greet.call("Ann") == "Hello Ann"
