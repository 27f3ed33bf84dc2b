"""What workers answer, as tables for people.

Pure. Invariant: whatever a worker has answered can be printed: control characters as escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncq.cli.text import moment, printable
from asyncq.control_values import (
    Answers,
    Drained,
    QueueState,
    QueueView,
    RunningView,
    WorkerPing,
    WorkerStatistics,
    WorkerTasks,
)

__all__ = ["active_text", "drain_text", "not_ended", "ping_text", "queue_text", "remarks", "stats_text"]

_NUMBERS = frozenset({"UPTIME", "SLOTS", "RUNNING", "ATTEMPT", "FOR"})


def ping_text(answers: Sequence[WorkerPing]) -> str:
    """Return a table with a line a worker."""
    rows = [
        (item.name, item.app, item.state, _span(item.uptime_s), item.version, ", ".join(item.queues))
        for item in answers
    ]
    return _table(("WORKER", "APP", "STATE", "UPTIME", "VERSION", "QUEUES"), rows)


def active_text(answers: Sequence[WorkerTasks]) -> str:
    """Return, for each worker, its queues with slots, and a table of what runs."""
    parts = []
    for item in answers:
        lines = [printable(f"{item.name}  {item.app}"), *(f"  {_queue(queue)}" for queue in item.queues)]
        if item.running:
            head = ("ID", "TASK", "ATTEMPT", "QUEUE", "SINCE", "FOR", "UNTIL", "")
            lines.append(_indented(_table(head, [_running(running) for running in item.running])))
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def stats_text(answers: Sequence[WorkerStatistics]) -> str:
    """Return, for each worker, its figures."""
    return "\n\n".join(map(_stats, answers))


def queue_text(answers: Sequence[QueueState]) -> str:
    """Return a table with how a queue is on each worker that consumes it."""
    rows = [
        (item.name, item.app, item.queue.name, str(item.queue.slots), str(item.queue.running), _paused(item.queue))
        for item in answers
        if item.queue is not None
    ]
    return _table(("WORKER", "APP", "QUEUE", "SLOTS", "RUNNING", "PAUSED"), rows)


def drain_text(found: Drained) -> str:
    """Return a line for each worker that has begun to drain, and one for each that has ended."""
    drains = [
        f"{printable(item.name)} {'drains already' if item.already else 'drains'}, {item.running} running"
        for item in found.answers
    ]
    return "\n".join([*drains, *(f"{printable(name)} has ended" for name in found.ended)])


def remarks(found: Answers[Any], timeout_s: float) -> list[str]:
    """Return what is to be said of workers that have not answered, or could not do it."""
    lines = [f"{printable(name)}: {printable(why)}" for name, why in found.failed.items()]
    if found.silent:
        names = ", ".join(map(printable, found.silent))
        lines.append(
            f"No answer within {timeout_s:g} s from: {names}. The broker holds their connections, so they are frozen, "
            "blocked by a task, or overloaded; when they go on they may still do what was asked."
        )
    return lines


def not_ended(found: Drained, wait_s: float) -> str:
    """Return what is to be said of workers that have not ended; nothing where all have."""
    if not found.remaining:
        return ""
    names = ", ".join(map(printable, found.remaining))
    return f"Not ended within {wait_s:g} s: {names}. `asyncq active` tells what they run."


def _stats(item: WorkerStatistics) -> str:
    outcomes = ", ".join(f"{count} {name}" for name, count in sorted(item.outcomes.items())) or "none yet"
    memory = "unknown" if item.memory_bytes is None else f"{item.memory_bytes / 2**20:.0f} MiB"
    pool = item.process_pool
    processes = f"{pool.busy} of {pool.processes} processes busy, {pool.places} at most"
    facts = {
        "state": f"{item.state}, for {_span(item.uptime_s)}, connection {item.connection}",
        "in flight": f"{item.in_flight}, begun {item.started}, retried {item.retries}, given up {item.overdue}",
        "ended": outcomes,
        "memory": f"{memory}, event loop late by {item.loop_lag_s * 1000:.1f} ms",
        "pools": f"{item.threads_busy} threads busy; {processes}",
    }
    lines = [f"{item.name}  {item.app}", *(f"  {name:<9}  {value}" for name, value in facts.items())]
    return printable("\n".join([*lines, *(f"  {'queue':<9}  {_queue(queue)}" for queue in item.queues)]))


def _queue(queue: QueueView) -> str:
    words = [f"{queue.name}: {queue.running} of {queue.slots} slots at work"]
    if queue.paused is not None:
        words.append(f"paused {queue.paused}")
    if queue.breaker not in {None, "closed"}:
        words.append(f"circuit breaker {queue.breaker}")
    return printable(", ".join(words))


def _paused(queue: QueueView) -> str:
    return queue.paused or "no"


def _running(item: RunningView) -> tuple[str, ...]:
    until = "" if item.deadline_ms is None else moment(item.deadline_ms)
    note = f"stopping: {item.stopping}" if item.stopping else _progress(item.progress)
    return (
        item.task_id,
        item.task,
        str(item.attempt),
        item.queue,
        moment(item.since_ms),
        _span(item.seconds),
        until,
        note,
    )


def _progress(progress: dict[str, object] | None) -> str:
    if progress is None:
        return ""
    done, total, label = progress.get("done"), progress.get("total"), progress.get("label")
    text = f"{done}" if total is None else f"{done}/{total}"
    return f"{text} {label}" if label else text


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    shown = [head, *(tuple(printable(cell).replace("\n", " ") for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in shown) for column in range(len(head))]
    adjust: list[Callable[[str, int], str]] = [str.rjust if name in _NUMBERS else str.ljust for name in head]
    return "\n".join(
        "  ".join(put(cell, width) for put, cell, width in zip(adjust, row, widths, strict=True)).rstrip()
        for row in shown
    )


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
