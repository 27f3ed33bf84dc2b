"""The command line that a supervisor starts its workers with."""

import sys

from asyncq.cli.supervising import WorkerCommand


def test_options_that_were_given_are_passed_on_and_flags_have_no_value():
    """MODULE:APP comes last, so that nothing in it is taken for an option."""
    options = {"slots": 3, "max-tasks": None, "scheduler": True, "drain-timeout": 0.5}
    command = WorkerCommand("shop:app", ["mail:2", "images"], options)
    assert command.arguments() == [
        *(sys.executable, "-m", "asyncq", "worker", "--queue=mail:2", "--queue=images"),
        *("--slots=3", "--scheduler", "--drain-timeout=0.5", "--", "shop:app"),
    ]
