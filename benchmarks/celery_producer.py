"""Celery's producer, in a process of its own: it fills its queue, and looks whether all results are there.

It is talked to as the producers of `producers.py` are: one command a line comes in as JSON, one answer a line goes out.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from celery import chain, chord, group
from celery.exceptions import TimeoutError  # noqa: A004 - Celery's own

from celery_app import add_one, app, number_of, total
from celery_settings import QUEUE
from payload import FIELDS

__all__: list[str] = []

_PAUSE_S = 0.05
_RESULT_TIMEOUT_S = 60.0


class Commands:
    """Does what the benchmark's main process asks for."""

    def __init__(self) -> None:
        self._ids: list[str] = []

    def fill_kept(self, count: int) -> dict[str, Any]:
        """Send tasks whose results are kept, each one confirmed, on one connection."""
        with app.connection_for_write() as connection, connection.channel() as channel:
            app.amqp.queues[QUEUE].bind(channel).declare()
            producer = app.amqp.Producer(channel)
            self._ids = [number_of.apply_async(kwargs=FIELDS, producer=producer).id for _ in range(count)]
        return {}

    def count_kept(self, timeout_s: float) -> dict[str, Any]:
        """Wait until all results are in Redis, forget them, and return how many there were."""
        backend, until_s = app.backend, time.monotonic() + timeout_s
        keys = [backend.get_key_for_task(task_id) for task_id in self._ids]
        while True:
            found = [json.loads(text) for text in backend.client.mget(keys) if text is not None]
            right = sum(result["status"] == "SUCCESS" and result["result"] == FIELDS["number"] for result in found)
            if right == len(keys) or time.monotonic() > until_s:
                backend.client.flushdb()
                return {"count": right}
            time.sleep(_PAUSE_S)

    def workflow(self, kind: str, size: int) -> dict[str, Any]:
        """Send a workflow, wait for its result, and return how long that took."""
        queue = app.amqp.queues[QUEUE]
        with app.connection_for_write() as connection, connection.channel() as channel:
            queue.bind(channel).declare()
        started = time.perf_counter()
        match kind:
            case "chain":
                result = chain(add_one.s(0), *(add_one.s() for _ in range(size - 1))).apply_async()
                wanted: Any = size
            case "group":
                result = group(add_one.s(number) for number in range(size)).apply_async()
                wanted = list(range(1, size + 1))
            case _:
                result = chord((add_one.s(number) for number in range(size)), total.s()).apply_async()
                wanted = size * (size + 1) // 2
        try:
            found = result.get(timeout=_RESULT_TIMEOUT_S)
        except TimeoutError:  # the pool with a hundred processes may take so long on a small, busy machine
            return {"seconds": None}
        if found != wanted:
            raise AssertionError(f"a wrong result: {found}")
        return {"seconds": time.perf_counter() - started}


def serve() -> None:
    """Answer commands until standard input ends."""
    print(json.dumps({"ready": True}), flush=True)
    commands = Commands()
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(commands, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
