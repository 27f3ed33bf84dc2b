"""Findings about the task queues of an app: what lies in them, and what the broker does to it.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from asyncq.rabbitmq.findings import CURRENT, Finding, Patient, messages, release_of
from asyncq.rabbitmq.standing import Standing

__all__ = ["delivery_limits", "messages_left", "policies", "time_limits"]

_QUEUE_TIMEOUTS_SINCE = (3, 12)
_DEFAULT_CONSUMER_TIMEOUT_S = 30 * 60.0

# Policies that make a task queue lose, move or refuse messages otherwise than asyncq counts on.
_RISKY_POLICIES = ("message-ttl", "expires", "max-length", "max-length-bytes", "overflow")


def messages_left(patient: Patient, standing: Standing) -> Iterator[Finding]:
    """Messages that nobody takes: no route, no consumer, finally failed."""
    unroutable = standing.queues.get(patient.names.unroutable)
    if unroutable is not None and unroutable.ready:
        yield Finding(
            "warning",
            "unroutable",
            f"{messages(unroutable.ready)} in {unroutable.name}: confirmed, and their queue was gone in the end",
            f"`asyncq dead list {unroutable.name}` shows them; once their queue stands, "
            f"`asyncq dead replay {unroutable.name} --all` sends them there.",
        )
    elif unroutable is not None and unroutable.ready == 0:
        yield Finding("ok", "unroutable", f"{unroutable.name} is empty")
    waiting = dead = False
    for spec in patient.queues:
        queue = standing.queues.get(spec.name)
        if queue is not None and queue.ready and queue.consumers == 0:
            waiting = True
            yield Finding(
                "warning",
                "consumers",
                f"{messages(queue.ready)} in queue {spec.name!r}, and no consumer",
                f"Start a worker for it: `asyncq worker MODULE:APP --queue {spec.name}`.",
            )
        letters = standing.queues.get(patient.names.dead_queue(spec.name))
        if letters is not None and letters.ready:
            dead = True
            yield Finding(
                "warning",
                "dead-letters",
                f"{messages(letters.ready)} in {letters.name}: tasks that have finally failed",
                f"`asyncq dead list {spec.name} --summary` says why; after the repair, "
                f"`asyncq dead replay {spec.name} --all` sends them back.",
            )
    if patient.queues and not waiting:
        yield Finding("ok", "consumers", "no queue holds messages without a consumer")
    if patient.queues and not dead:
        yield Finding("ok", "dead-letters", "no dead letters")


def policies(patient: Patient, standing: Standing) -> Iterator[Finding]:
    """Policies that make messages leave a queue."""
    for spec in patient.queues:
        for name in (spec.name, patient.names.dead_queue(spec.name)):
            queue = standing.queues.get(name)
            risky = [] if queue is None else [key for key in _RISKY_POLICIES if key in queue.policy]
            if queue is not None and risky:
                rules = ", ".join(f"{key}={queue.policy[key]}" for key in risky)
                yield Finding(
                    "warning",
                    "policies",
                    f"a policy gives queue {name!r} {rules}: messages can leave it, or be refused, without having run",
                    "See `rabbitmqctl list_policies`; narrow its pattern so that it leaves out asyncq's queues.",
                )


def delivery_limits(patient: Patient, standing: Standing) -> Iterator[Finding]:
    """Policies that bring a delivery limit down: of it and the queue's own argument, RabbitMQ takes the lower one."""
    kept = {patient.names.dead_queue(spec.name): None for spec in patient.queues} | {patient.names.unroutable: None}
    bounds: dict[str, int | None] = {**{spec.name: spec.delivery_limit for spec in patient.queues}, **kept}
    well = True
    for name, declared in bounds.items():
        queue = standing.queues.get(name)
        limit = None if queue is None else queue.policy.get("delivery-limit")
        if not isinstance(limit, int) or limit < 0 or (declared is not None and limit >= declared):
            continue
        well = False
        remedy = "See `rabbitmqctl list_policies`; take `delivery-limit` out of it, or narrow its pattern."
        if declared is None:
            yield Finding(
                "error",
                "delivery-limits",
                f"a policy gives queue {name!r} a delivery limit of {limit}: each look at its messages counts, and so "
                "many looks throw them away",
                remedy,
            )
        else:
            yield Finding(
                "warning",
                "delivery-limits",
                f"a policy gives queue {name!r} a delivery limit of {limit}, below the declared one of {declared}: the "
                "broker itself may dead-letter messages, without an error, a reply or a callback",
                remedy,
            )
    if patient.queues and well:
        yield Finding("ok", "delivery-limits", "no policy brings a delivery limit down")


def time_limits(patient: Patient, standing: Standing) -> Iterator[Finding]:
    """Tasks that may run for longer than the broker lets a message be unsettled."""
    release = release_of(standing.version) or CURRENT
    well = True
    for spec in patient.queues:
        if spec.name not in patient.limits:
            continue
        task, limit_s = patient.limits[spec.name]
        timeout_s = _consumer_timeout_s(standing, spec.name) if release >= _QUEUE_TIMEOUTS_SINCE else None
        if limit_s < (timeout_s or _DEFAULT_CONSUMER_TIMEOUT_S):
            continue
        well = False
        policy = (
            f"`rabbitmqctl set_policy --vhost '{standing.vhost}' long-tasks '^{re.escape(spec.name)}$' "
            f"'{{\"consumer-timeout\": {round((limit_s + 300) * 1000)}}}' --apply-to queues`"
        )
        raising = policy if release >= _QUEUE_TIMEOUTS_SINCE else "`consumer_timeout` in rabbitmq.conf"
        if timeout_s is None:
            yield Finding(
                "warning",
                "time-limits",
                f"task {task} may run for {limit_s:g} s; queue {spec.name!r} has no consumer timeout that can be seen, "
                f"and the broker's own, which no API tells, is {_DEFAULT_CONSUMER_TIMEOUT_S:g} s by default: where "
                "that holds, the broker takes the message from the running task, and it runs again",
                f"Raise the timeout: {raising}; or lower the task's time limit.",
            )
        else:
            yield Finding(
                "error",
                "time-limits",
                f"task {task} may run for {limit_s:g} s, and the consumer timeout of queue {spec.name!r} is "
                f"{timeout_s:g} s: the broker takes the message from the running task, and it runs again",
                f"Raise the timeout: {raising}; or lower the task's time limit.",
            )
    if patient.limits and well:
        yield Finding(
            "ok",
            "time-limits",
            "all time limits are below the consumer timeouts, as far as these can be seen: the broker's own, which no "
            f"API tells, is taken for {_DEFAULT_CONSUMER_TIMEOUT_S:g} s, its default",
        )


def _consumer_timeout_s(standing: Standing, name: str) -> float | None:
    queue = standing.queues.get(name)
    if queue is None:
        return None
    values = [(queue.arguments or {}).get("x-consumer-timeout"), queue.policy.get("consumer-timeout")]
    known = [value / 1000 for value in values if isinstance(value, int) and value > 0]
    return min(known, default=None)
