"""`asyncq dead`: what has finally failed: shown, sent back, exported, removed.

Invariant: only `replay` and `purge` change anything.
"""

from __future__ import annotations

import typer

from asyncq.cli.dead_export import export
from asyncq.cli.dead_list import list_dead, show
from asyncq.cli.dead_repair import purge, replay

__all__ = ["dead"]

dead = typer.Typer(help="Dead letters, messages whose task has finally failed: look, send back.", no_args_is_help=True)
dead.command("list")(list_dead)
dead.command()(show)
dead.command()(replay)
dead.command()(purge)
dead.command()(export)
