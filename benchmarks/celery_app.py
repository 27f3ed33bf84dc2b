"""Celery's side: the app that its producer uses, and that `celery worker` runs."""

from __future__ import annotations

import os

from celery import Celery

from celery_settings import BACKEND, POOL, settings
from meter import SharedMeter

__all__ = ["add_one", "app", "number_of", "total"]

app = Celery("bench", broker=os.environ["ASYNCQ_BROKER_URL"], backend=os.environ[BACKEND])
app.conf.update(settings(os.environ[POOL]), worker_redirect_stdouts=False)  # standard output is the meter's
meter = SharedMeter()


@app.task(name="number_of")
def number_of(number: int, customer: str, price: float) -> int:  # noqa: ARG001 - the same message as asyncq's
    """Answer with one of the fields."""
    meter.tick()
    return number


@app.task(name="add_one")
def add_one(number: int) -> int:
    """A step of a workflow."""
    return number + 1


@app.task(name="total")
def total(numbers: list[int]) -> int:
    """The body of a chord."""
    return sum(numbers)
