"""What a command says when it fails: one message on standard error, and an exit code.

Invariant: an error that a user can cause is never shown as a traceback of asyncq. A fault that nothing foresaw is
shown with one, after a sentence which says what it is.
"""

from __future__ import annotations

import traceback
from typing import Final

import typer
from pydantic import ValidationError

from asyncq.cli.text import printable
from asyncq.errors import (
    AsyncQError,
    BrokerError,
    ConfigurationError,
    MalformedMessage,
    NoResultStore,
    ResultError,
    ResultStoreError,
    UsageError,
)

__all__ = ["FAULT", "exit_code_of", "message_of", "report", "validation_lines"]

TASK_FAILED: Final = 1
WRONG_INPUT: Final = 2
BROKER: Final = 3
FAULT: Final = 70
INTERRUPTED: Final = 130


def exit_code_of(error: BaseException) -> int:
    """Return the exit code that the documentation promises for this error."""
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED
        case ResultError() if not isinstance(error, NoResultStore):
            return TASK_FAILED
        case NoResultStore() | ConfigurationError() | UsageError() | MalformedMessage() | ValidationError():
            return WRONG_INPUT
        case BrokerError() | ResultStoreError() | ConnectionError():
            return BROKER
        case AsyncQError():
            return TASK_FAILED
        case _:
            return FAULT


def report(error: BaseException) -> None:
    """Print the error for people. Nothing is printed for Ctrl-C."""
    if isinstance(error, KeyboardInterrupt):
        return
    message = message_of(error)
    if exit_code_of(error) == FAULT:
        trace = "".join(traceback.format_exception(error)).rstrip()
        message = f"{message}\nasyncq did not foresee this. What follows tells where it happened.\n{trace}"
    typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
    typer.echo(printable(message), err=True)


def message_of(error: BaseException) -> str:
    """Return what the error says, with its notes."""
    if isinstance(error, ValidationError):
        message = "\n".join([f"The values do not fit {error.title}:", *validation_lines(error)])
    elif exit_code_of(error) == FAULT:
        message = f"Unexpected {type(error).__name__}: {error}"
    else:
        message = str(error) or type(error).__name__
    return "\n".join([message.rstrip(), *getattr(error, "__notes__", [])])


def validation_lines(error: ValidationError) -> list[str]:
    """Return pydantic's findings, one a line: where, and what is wrong there."""
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in item["loc"]) or "(all of it)"
        given = "" if item["type"] == "missing" else f" (given: {_short(item['input'])})"
        lines.append(f"  {where}: {item['msg']}{given}")
    return lines


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
