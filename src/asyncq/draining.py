"""Waiting until workers that drain have ended, as seen by the broker.

    the roll is called ──everybody missing, twice running──▶ all have ended
          ▲        └─ somebody there, or the broker away ─▶ a pause ─┐
          └───────────────────────────────────────────────────────────┘

A worker that ends leaves the roll (see `asyncq.control`), and so does one that is killed. One that has lost its
connection leaves it as well, and is soon back: so who is missing once has not ended yet.

Invariant: who is told as ended was missing from two rolls in a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from asyncq.asking import call_roll
from asyncq.broker import Broker
from asyncq.control import WorkerName
from asyncq.control_values import Order
from asyncq.errors import BrokerError, BrokerRefused

__all__ = ["wait_until_ended"]

_PAUSE_S = 1.0
_ANSWER_S = 2.0

_CALL = Order(do="ping")


async def wait_until_ended(broker: Broker, workers: Collection[WorkerName], wait_s: float) -> frozenset[WorkerName]:
    """Wait until these workers have ended, and return those that have not.

    While the broker cannot be used it is tried again.

    Args:
        broker: An open broker.
        workers: The workers.
        wait_s: For how long it waits at most, in seconds.

    Raises:
        BrokerError: The broker could not be used in the end, so that it is not known who has ended.
    """
    now = asyncio.get_running_loop().time
    end_s = now() + wait_s
    there = before = frozenset(workers)
    trouble: BrokerError | None = None
    while there | before and (left_s := end_s - now()) > 0:
        try:
            roll = await call_roll(broker, _CALL, min(left_s, _ANSWER_S))
        except BrokerRefused:
            raise
        except BrokerError as error:
            trouble = error
        else:
            trouble, before, there = None, there, frozenset(workers) & frozenset(roll.known)
        if there | before:
            await asyncio.sleep(max(0.0, min(_PAUSE_S, end_s - now())))
    if trouble is not None:
        raise trouble
    return there | before
