"""When a publisher gives up its connection: only where nothing at all is answered on it."""

from __future__ import annotations

import asyncio
import contextlib
from types import SimpleNamespace
from typing import Any

import aiormq.exceptions as amqp
import pytest
from pamqp import commands

from asyncq.errors import PublishUncertain, Unroutable
from asyncq.rabbitmq import publisher as module
from asyncq.rabbitmq.publisher import Publisher, Target

PROPERTIES = commands.Basic.Properties()


def _returned() -> Any:
    return SimpleNamespace(delivery=commands.Basic.Return(), body=b"")


class Channel:
    """Answers as the routing key says: at once, with a return, or never."""

    is_closed = False

    async def basic_publish(self, *_: Any, routing_key: str, **__: Any) -> None:
        await asyncio.sleep(0)
        if routing_key == "returned":
            raise amqp.PublishError(_returned(), commands.Basic.Return())  # type: ignore[arg-type]
        if routing_key == "silent":
            await asyncio.Event().wait()


class Link:
    """Remembers why it was given up."""

    def __init__(self) -> None:
        self.given_up: list[str] = []
        self.blocked = False

    def give_up(self, why: str) -> None:
        self.given_up.append(why)

    def is_blocked(self) -> bool:
        return self.blocked

    def status(self) -> Any:
        return type("Status", (), {"state": "ready", "cause": None})


@pytest.fixture
def link() -> Link:
    return Link()


@pytest.fixture
def publish(link: Link, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "SILENCE_S", 0.1)
    publisher = Publisher(link, 1000, declare=lambda: asyncio.sleep(0))  # type: ignore[arg-type]
    publisher._channel = Channel()  # type: ignore[assignment]

    async def call(key: str, timeout_s: float = 5.0) -> None:
        await publisher.publish(b"", PROPERTIES, Target("", key, "a queue"), timeout_s=timeout_s)

    return call


async def test_a_connection_that_answers_nothing_is_given_up(link, publish):
    """After the time that is too long, and not by an impatient send before that."""
    with pytest.raises(PublishUncertain):
        await publish("silent", 0.01)
    assert link.given_up == []
    with pytest.raises(PublishUncertain):
        await publish("silent", 0.15)
    (why,) = link.given_up
    assert "nothing was confirmed" in why


@pytest.mark.parametrize("key", ["confirmed", "returned"])
async def test_one_that_answers_others_is_kept(link, publish, key):
    """Whether it confirms them or returns them: only the queue of the silent one has a trouble."""
    silent = asyncio.ensure_future(publish("silent", 0.3))
    while not silent.done():
        with contextlib.suppress(Unroutable):
            await publish(key)
        await asyncio.sleep(0.01)
    assert isinstance(silent.exception(), PublishUncertain)
    assert link.given_up == []


async def test_one_that_had_nothing_to_answer_for_long_is_kept(link, publish):
    """What counts is the time since something was under way."""
    await publish("confirmed")
    await asyncio.sleep(0.2)
    with pytest.raises(PublishUncertain):
        await publish("silent", 0.01)
    assert link.given_up == []


async def test_one_that_an_alarm_blocks_is_kept(link, publish):
    """Its end is waited for."""
    publishing = asyncio.ensure_future(publish("silent", 0.2))
    await asyncio.sleep(0)
    link.blocked = True
    with pytest.raises(PublishUncertain):
        await publishing
    assert link.given_up == []
