"""The message that both sides send and take: a JSON object of three fields."""

from __future__ import annotations

from pydantic import BaseModel

__all__ = ["FIELDS", "Order"]

FIELDS = {"number": 4711, "customer": "ada@example.org", "price": 12.5}


class Order(BaseModel):
    """What asyncq validates in the producer and again in the worker."""

    number: int
    customer: str
    price: float
