"""Orders: calls between tasks, delays, and what is wrong from the start."""

from datetime import timedelta
from decimal import Decimal

import pytest
from pydantic import ValidationError

from asyncq import TaskFailed
from bookshop.tasks import Line, Order, Receipt, place_order, sales_report, send_mail, total_of

pytestmark = pytest.mark.asyncio

ORDER = Order(number=7, customer="ann@example.org", lines=[Line(isbn="9780141439600", copies=2)])


async def test_an_order_is_priced_by_another_task(asyncq_app, sent, mailbox):
    """A call from a task: send, and wait for the result, which has its type."""
    assert await place_order.call(ORDER) == Receipt(number=7, total=Decimal("17.98"))
    asked = sent.once(total_of, arguments={"lines": ORDER.lines})
    assert asked.parent_id == sent.once(place_order).task_id


async def test_a_review_is_asked_for_two_weeks_later(asyncq_app, asyncq_clock, sent, mailbox):
    """The confirmation goes at once; the clock decides about the other mail."""
    await place_order.call(ORDER)
    sent.times(2, send_mail)
    sent.once(send_mail, arguments={"subject": "How was your book?"}, queue="mail", delay=timedelta(days=14))

    await asyncq_clock.advance(timedelta(days=13))
    assert [subject for _, subject in mailbox] == ["Your order 7: 17.98 EUR"]
    await asyncq_clock.advance(timedelta(days=1))
    assert [subject for _, subject in mailbox] == ["Your order 7: 17.98 EUR", "How was your book?"]


async def test_wrong_arguments_fail_where_they_are_sent(asyncq_app, sent):
    """By pydantic's own error; nothing leaves the sender."""
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        await total_of.send([{"isbn": "9780141439600", "copies": 0}])
    with pytest.raises(TypeError):
        await place_order.send()
    assert len(sent) == 0


async def test_an_unknown_book_is_refused_and_nobody_gets_a_mail(asyncq_app, sent):
    """The failure of a call is the caller's failure."""
    order = ORDER.model_copy(update={"lines": [Line(isbn="9999999999999", copies=1)]})
    with pytest.raises(TaskFailed, match="we do not sell 9999999999999"):
        await place_order.call(order)
    sent.never(send_mail)


async def test_a_report_that_hangs_ends_at_its_time_limit(asyncq_app, run_until_idle, faults):
    """A minute of the app's time, none of ours."""
    faults.hang(sales_report)
    handle = await sales_report.send(2026, 1)
    await run_until_idle()
    with pytest.raises(TaskFailed, match="TimeLimitExceeded"):
        await handle.result(timeout=1)
