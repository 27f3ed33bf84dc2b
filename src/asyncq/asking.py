"""One question to workers: who is meant, what they answer, and who is silent.

Invariant: whoever is meant is in the answers, among the silent, or among those that failed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import ValidationError

from asyncq.broker import Broker
from asyncq.control import Control, Roll, WorkerName
from asyncq.control_values import Answers, Order, WorkerAnswer
from asyncq.errors import InvalidOption, UnknownWorker

__all__ = ["Asked", "ask_workers", "call_roll", "names_of"]

A = TypeVar("A", bound=WorkerAnswer)


@dataclass(frozen=True, slots=True)
class Asked(Generic[A]):
    """What became of a question.

    Attributes:
        meant: Who was meant.
        answers: What they answered.
    """

    meant: tuple[WorkerName, ...]
    answers: Answers[A]


async def ask_workers(broker: Broker, order: Order, kind: type[A], timeout_s: float) -> Asked[A]:
    """Ask workers, and wait for their answers.

    Args:
        broker: An open broker.
        order: What they are asked, and which of them.
        kind: What they answer.
        timeout_s: How long answers are waited for, in seconds.

    Raises:
        InvalidOption: This broker has no control.
        UnknownWorker: There are workers, and none of this name, or on this host.
        BrokerError: The broker cannot be used for it.
    """
    roll = await call_roll(broker, order, timeout_s)
    meant = tuple(name for name in roll.known if order.is_for(name))
    if not meant and (order.host is not None or order.worker is not None):
        raise _unknown_worker(order, roll)
    return Asked(meant, _read(roll, meant, kind))


async def call_roll(broker: Broker, order: Order, timeout_s: float) -> Roll:
    """Ask workers, and return who is there, and what came. Arguments and errors as for `ask_workers`."""
    if not isinstance(broker, Control):
        raise InvalidOption(f"{type(broker).__name__} has no control, so no worker can be asked.")
    body = order.model_dump_json(exclude_defaults=True).encode()
    return await broker.ask(body, wanted=order.is_for, timeout_s=timeout_s)


def names_of(workers: Iterable[WorkerName]) -> tuple[str, ...]:
    """Return what people call them, sorted."""
    return tuple(sorted(worker.name for worker in workers))


def _read(roll: Roll, meant: tuple[WorkerName, ...], kind: type[A]) -> Answers[A]:
    answers: dict[WorkerName, A] = {}
    failed: dict[str, str] = {}
    answered = set()
    for name, body in roll.answers:
        answered.add(name)
        try:
            refusal = json.loads(body).get("error")
            if refusal is None:
                answers[name] = kind.model_validate_json(body)
            else:
                failed[name.name] = str(refusal)
        except (ValueError, AttributeError, ValidationError) as error:
            failed[name.name] = f"its answer cannot be read: {error}"
    silent = names_of(name for name in meant if name not in answered)
    return Answers[kind](  # type: ignore[valid-type]
        answers=tuple(answers[name] for name in sorted(answers, key=str)), silent=silent, failed=failed
    )


def _unknown_worker(order: Order, roll: Roll) -> UnknownWorker:
    there = [name for name in roll.known if order.app in {None, name.app}]
    if order.worker is not None:
        wanted, known = f"no worker {order.worker!r}", sorted({name.name for name in there})
    else:
        wanted, known = f"no worker on host {order.host!r}", sorted({name.host for name in there})
    shown = ", ".join(known[:20]) + (" ..." if len(known) > 20 else "")
    return UnknownWorker(f"The broker knows {wanted}. There {'are' if len(known) > 1 else 'is'}: {shown or 'none'}.")
