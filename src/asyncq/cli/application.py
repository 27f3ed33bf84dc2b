"""The table of commands."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from asyncq.cli.cancel import cancel
from asyncq.cli.control import active, drain, pause, ping, resume, scale, stats
from asyncq.cli.dead import dead
from asyncq.cli.doctor import doctor
from asyncq.cli.health import health
from asyncq.cli.report import exit_code_of, report
from asyncq.cli.results import result, results, status
from asyncq.cli.schedule import schedule
from asyncq.cli.scheduler import scheduler
from asyncq.cli.send import call, send
from asyncq.cli.topology import topology
from asyncq.cli.version import version
from asyncq.cli.worker import worker

__all__ = ["application"]

_PASSED_ON = (typer.Exit, typer.Abort, BrokenPipeError)


class _ReportingGroup(TyperGroup):
    """Turns every error of a command into one message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _PASSED_ON:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if hasattr(error, "exit_code"):  # typer's own usage errors, which it shows itself
                raise
            report(error)
            raise typer.Exit(exit_code_of(error)) from error


application = typer.Typer(
    cls=_ReportingGroup,
    help="RabbitMQ-native async task workers.",
    epilog=(
        "Exit codes: 0 it worked; 1 the task failed, or no result came in time, or nothing is known of it; "
        "2 wrong command line, configuration or arguments; 3 the broker or the result store cannot be used, or the "
        "broker did not take the message; 130 interrupted. "
        "`ping` and the like: 1 where nobody is there, or some did not answer. "
        "`doctor`: 0 nothing to do; 1 warnings; 2 errors. `topology verify` and `diff`: 1 for differences."
    ),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
application.command()(worker)
application.command()(send)
application.command()(call)
application.command()(scheduler)
application.add_typer(schedule, name="schedule")
application.command()(cancel)
for question in (ping, active, stats, pause, resume, scale, drain):
    application.command()(question)
application.command()(result)
application.command()(status)
application.add_typer(results, name="results")
application.add_typer(dead, name="dead")
application.add_typer(topology, name="topology")
application.command()(doctor)
application.command()(health)
application.command()(version)
