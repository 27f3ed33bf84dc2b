"""What the bookshop does in the background."""

from datetime import timedelta
from decimal import Decimal

from pydantic import BaseModel, Field

from asyncq import AsyncQ, Exponential, Reject, RetryPolicy
from bookshop import mail

app = AsyncQ("bookshop")

PRICES = {"9780141439600": Decimal("8.99"), "9780140449136": Decimal("12.50")}


class Line(BaseModel):
    """So many copies of a book."""

    isbn: str = Field(pattern=r"^\d{13}$")
    copies: int = Field(ge=1)


class Order(BaseModel):
    """What a customer wants."""

    number: int
    customer: str
    lines: list[Line] = Field(min_length=1)


class Receipt(BaseModel):
    """What the customer owes."""

    number: int
    total: Decimal


@app.task(
    queue="mail",
    retry=RetryPolicy(
        on=(ConnectionError,), max_attempts=6, backoff=Exponential(first=60, factor=4, max=3600), jitter=True
    ),
    time_limit=30,
)
def send_mail(to: str, subject: str) -> str:
    """Send a mail; a mail server that is away is tried for more than an hour."""
    return mail.deliver(to, subject)


@app.task
async def total_of(lines: list[Line]) -> Decimal:
    """Add up the prices."""
    for line in lines:
        if line.isbn not in PRICES:
            raise Reject(f"we do not sell {line.isbn}")
    return sum((PRICES[line.isbn] * line.copies for line in lines), Decimal())


@app.task
async def place_order(order: Order) -> Receipt:
    """Price an order and confirm it; in two weeks the customer is asked for a review."""
    total = await total_of.call(order.lines)
    await send_mail.options(reply=False).send(order.customer, f"Your order {order.number}: {total} EUR")
    await send_mail.options(reply=False, delay=timedelta(days=14)).send(order.customer, "How was your book?")
    return Receipt(number=order.number, total=total)


@app.task(queue="reports", time_limit=60)
async def sales_report(year: int, month: int) -> str:
    """Build the report of a month."""
    return f"Sales of {year}-{month:02}: {len(PRICES)} titles"
