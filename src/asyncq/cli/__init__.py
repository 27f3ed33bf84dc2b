"""The command line, `asyncq`: worker, send, call, scheduler, schedule, dead, topology, doctor, version, and more.

Exit codes: 0 it worked; 1 the task failed, or no result came in time; 2 the command line, the configuration or
the arguments are wrong; 3 the broker cannot be used; 70 a fault of asyncq or of its use that nothing here foresaw
(with a traceback); 130 interrupted. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: In place of the process's own.
    """
    try:
        from asyncq.cli.application import application  # noqa: PLC0415 - so that Ctrl-C is quiet from here on

        application(list(arguments) if arguments is not None else None, prog_name="asyncq")
    except KeyboardInterrupt:
        sys.exit(130)
