"""`asyncq ping | active | stats | pause | resume | scale | drain`: workers are asked, and changed while they run.

Exit codes: 0 all that were meant have answered; 1 nobody is there, or some did not answer in time, or could not do it,
or have not ended in time; 2 no such worker, host or queue; 3 the broker cannot be used. A pause, or a resume, of all
workers that nobody has heard is kept for those to come, so that is 0.
"""

from __future__ import annotations

from typing import Annotated

import typer

from asyncq.cli.arguments import MAX_SLOTS
from asyncq.cli.asking import Asking
from asyncq.cli.control_text import active_text, drain_text, not_ended, ping_text, queue_text, stats_text
from asyncq.cli.grouped import grouped
from asyncq.errors import InvalidOption

__all__ = ["active", "drain", "pause", "ping", "resume", "scale", "stats"]

QueueArgument = Annotated[str, typer.Argument(metavar="QUEUE", help="The queue's name.")]
TargetArgument = Annotated[
    str, typer.Argument(metavar="QUEUE:SLOTS", help="The queue, and its slots in each worker process.")
]

WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0,
        max=86400,
        help="Wait so long until they have ended, and tell who has and who has not.",
    ),
]


@grouped
def ping(*, asking: Asking) -> None:
    """Tell which workers are there: name, app, state, uptime, version, queues.

    Without --app the workers of all apps are asked. Exit code 1: nobody is there, or some did not answer in time.
    """
    found = asking.ask(lambda control, whom: control.ping(**whom))
    asking.show(found, ping_text(found.answers))


@grouped
def active(*, asking: Asking) -> None:
    """Tell what workers run: task, id, attempt, queue, since when, until when, progress."""
    found = asking.ask(lambda control, whom: control.active(**whom))
    asking.show(found, active_text(found.answers))


@grouped
def stats(*, asking: Asking) -> None:
    """Tell what workers have done since their start, and how they are."""
    found = asking.ask(lambda control, whom: control.stats(**whom))
    asking.show(found, stats_text(found.answers))


@grouped
def pause(queue: QueueArgument, *, asking: Asking) -> None:
    """Let workers take nothing from a queue until it is resumed; what runs may finish.

    All workers keep to it, of whatever app, and those that start later. With --host or --worker only those do that are
    there, until they are resumed or end.
    """
    found = asking.ask(lambda control, whom: control.pause(queue, **whom))
    asking.show(found, queue_text(found.answers), kept=f"Queue {queue} is paused for all workers.")


@grouped
def resume(queue: QueueArgument, *, asking: Asking) -> None:
    """Let workers take from a paused queue again.

    Without --host and --worker all its pauses end. With one of them a pause of all workers goes on.
    """
    found = asking.ask(lambda control, whom: control.resume(queue, **whom))
    asking.show(found, queue_text(found.answers), kept=f"Queue {queue} is not paused any more.")


@grouped
def scale(target: TargetArgument, *, asking: Asking) -> None:
    """Give a queue more slots, or fewer, in workers that run; what runs may finish.

    Each worker process gets so many: with --processes 4 they are four times that. It lasts until the process ends.
    """
    queue, slots = _target(target)
    found = asking.ask(lambda control, whom: control.scale(queue, slots, **whom))
    asking.show(found, queue_text(found.answers))


@grouped
def drain(*, wait: WaitOption = 0, asking: Asking) -> None:
    """Let workers finish what runs, and end. `asyncq worker --processes` starts none in their place.

    Without --app, --host and --worker all workers of all apps are meant. With --wait the exit code is 0 where all of
    them have ended in time, and 1 where some have not.
    """
    found = asking.ask(lambda control, whom: control.drain(**whom, wait=wait))
    asking.show(found, drain_text(found), missing=not_ended(found, wait))


def _target(text: str) -> tuple[str, int]:
    queue, colon, number = text.rpartition(":")
    if not colon or not queue or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise InvalidOption(f"QUEUE:SLOTS is wanted, for example mail:20, with 1 to {MAX_SLOTS} slots, not {text!r}.")
    return queue, int(number)
