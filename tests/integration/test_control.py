"""Control on RabbitMQ: what stands for it on the broker, and what happens where it may not."""

import asyncio
import logging
from urllib.parse import urlsplit, urlunsplit

import pytest

from asyncq import AsyncQ
from asyncq.errors import BlockingCall, NotSent, UnknownWorker
from asyncq.rabbitmq.declarations import BindingDeclaration, ExchangeDeclaration
from asyncq.rabbitmq.topology import Names, base_plan
from support import eventually, working


def shop(url, **settings):
    app = AsyncQ("shop", broker=url, **settings)

    @app.task(queue="mail")
    async def greet(name: str) -> str:
        return f"Hello {name}"

    return app, greet


@pytest.fixture
def limited_url(node, broker_url):
    """The URL of a user who may declare nothing but reply queues."""
    parts = urlsplit(broker_url)
    node.api("PUT", "/users/limited", {"password": "secret", "tags": ""})
    rights = {"configure": r"^asyncq\.reply\.", "write": ".*", "read": ".*"}
    node.api("PUT", f"/permissions/{parts.path[1:]}/limited", rights)
    yield urlunsplit(parts._replace(netloc=f"limited:secret@{parts.hostname}:{parts.port}"))
    node.api("DELETE", "/users/limited")


async def answers(app):
    return (await app.control.ping(timeout=3)).answers


def test_the_exchange_stands_with_the_others_and_tells_the_truth_about_who_is_there():
    """With an alternate exchange a question that nobody hears would count as heard."""
    assert ExchangeDeclaration("asyncq.control", "fanout") in base_plan(Names())
    assert not [part for part in base_plan(Names()) if isinstance(part, BindingDeclaration) and "control" in str(part)]


async def test_a_worker_has_two_queues_for_its_connection_and_leaves_none(broker_url, management):
    """Their names tell whose they are; after its end nothing is left but the exchange."""
    app, greet = shop(broker_url)
    async with working(app):
        (worker,) = await eventually(lambda: answers(app))
        queues = [name for name in await management.queues() if name.startswith("asyncq.control.")]
        assert sorted(name.split(".")[2] for name in queues) == ["inbox", "roll"]
        assert all(f"shop:{worker.name}:" in name for name in queues)
        assert await greet.call("Ann") == "Hello Ann"

    async def nothing_is_left() -> bool:
        return not [name for name in await management.queues() if "control" in name]

    # The broker deletes exclusive queues after it has said that their connection is closed.
    await eventually(nothing_is_left)


async def test_a_worker_that_may_not_be_asked_works_and_says_what_is_missing(node, broker_url, limited_url, caplog):
    """Once; it is not on the roll. As soon as it may, it is."""
    caplog.set_level(logging.WARNING)
    open_app, _ = shop(broker_url)
    async with open_app:  # which declares the queues
        await open_app.cancel("nothing")  # and the stream
        app, greet = shop(limited_url, declare=False)
        async with working(app):
            assert await greet.call("Ann") == "Hello Ann"
            said = await eventually(
                lambda: [line for line in caplog.messages if "cannot be asked or controlled" in line]
            )
            assert len(said) == 1
            assert "Grant the user the permissions configure" in said[0]
            assert "asyncq topology apply" in said[0]
            assert (await open_app.control.ping(timeout=1)).answers == ()
            assert await greet.call("Bea") == "Hello Bea"
            rights = {"configure": r"^asyncq\.(reply|control)\.", "write": ".*", "read": ".*"}
            node.api("PUT", f"/permissions/{urlsplit(broker_url).path[1:]}/limited", rights)
            await eventually(lambda: answers(open_app), 30)


async def test_where_the_exchange_is_missing_a_question_is_not_sent_and_says_what_declares_it(broker_url):
    """An app that declares nothing, on a broker that has nothing."""
    app, _ = shop(broker_url, declare=False)
    async with app:
        with pytest.raises(NotSent, match=r"asyncq\.control.*asyncq topology apply"):
            await app.control.ping()


async def test_code_without_a_loop_asks_and_changes_workers(broker_url):
    """By `app.sync.control`: the same methods, which block the thread and never a loop."""
    app, greet = shop(broker_url)
    async with working(app):
        await eventually(lambda: answers(app))

        def ask():
            """Do it in a thread, as a script does."""
            control = app.sync.control
            (worker,) = control.ping(timeout=30).answers
            assert [answer.name for answer in control.everybody.ping(timeout=30).answers] == [worker.name]
            assert control.active(worker=worker.name, timeout=30).answers[0].running == ()
            assert control.stats(host=worker.host, timeout=30).answers[0].connection == "ready"
            assert control.scale("mail", 3, timeout=30).answers[0].queue.slots == 3
            assert control.pause("mail", timeout=30).answers[0].queue.paused == "everywhere"
            assert list(control.paused()) == ["mail"]
            assert control.resume("mail", timeout=30).answers[0].queue.paused is None
            assert app.sync.call(greet.s("Ann")) == "Hello Ann"
            with pytest.raises(UnknownWorker, match="'nobody:1'"):
                control.ping(worker="nobody:1")
            assert control.drain(timeout=30, wait=60).ended == (worker.name,)

        await asyncio.to_thread(ask)
        with pytest.raises(BlockingCall, match=r"await app\.control\.ping\(\.\.\.\)"):
            app.sync.control.ping()
