"""Mails: retries, backoff, dead letters."""

import time
from datetime import timedelta

import pytest

from asyncq import TaskFailed
from bookshop import mail
from bookshop.tasks import send_mail

pytestmark = pytest.mark.asyncio


async def test_a_mail_server_that_is_away_for_an_hour_costs_no_mail(asyncq_app, asyncq_clock, monkeypatch):
    """Five attempts fail, each is tried again later, and the sixth succeeds; the test takes milliseconds."""
    attempts = []

    def deliver(to, subject):
        attempts.append(asyncq_clock.now())
        if len(attempts) < 6:
            raise ConnectionRefusedError("nobody listens on port 25")
        return "<6@bookshop.example>"

    monkeypatch.setattr(mail, "deliver", deliver)
    began, began_there = time.monotonic(), asyncq_clock.now()
    with asyncq_clock.jumping():
        assert await send_mail.call("ann@example.org", "Hello") == "<6@bookshop.example>"

    assert len(attempts) == 6
    assert attempts[-1] - began_there > timedelta(hours=1)
    assert time.monotonic() - began < 60


async def test_a_mail_server_that_stays_away_leaves_a_dead_letter(asyncq_app, run_until_idle, faults):
    """With the error that the last attempt ended with."""
    faults.fail(send_mail, times=6, error=ConnectionRefusedError("nobody listens on port 25"))
    handle = await send_mail.send("ann@example.org", "Hello")
    await run_until_idle()

    with pytest.raises(TaskFailed, match="nobody listens on port 25"):
        await handle.result(timeout=1)
    (letter,) = [letter async for letter in asyncq_app.dead_letters("mail").browse()]
    assert letter.message.type == "bookshop.send_mail"
    assert letter.record.attempts == 6
    assert letter.record.failure.type == "builtins.ConnectionRefusedError"


async def test_any_other_error_is_not_tried_again(asyncq_app, run_until_idle, faults, mailbox):
    """The policy names what is worth another attempt."""
    faults.fail(send_mail, error=ValueError("no such domain"))
    with pytest.raises(TaskFailed, match="no such domain"):
        await send_mail.call("ann@nowhere", "Hello")
    assert mailbox == []
