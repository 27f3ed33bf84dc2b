"""`asyncq health`: asks the workers and schedulers of this machine how they are; for container probes.

It imports no app and needs no broker: it asks the processes, by the sockets that they have, or by a port.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from asyncq.cli.text import printable
from asyncq.errors import InvalidOption
from asyncq.health import HealthReport
from asyncq.observability.sockets import sockets

__all__ = ["health"]

_Answer = HealthReport | str
"""What a process says; or, for people, why it says nothing."""


def health(
    alive: Annotated[
        bool,
        typer.Option("--alive", help="Ask only whether a restart would help, not whether it works at the moment."),
    ] = False,
    pid: Annotated[
        int | None,
        typer.Option(
            min=1, help="Of several on this machine, the one with this process id: a worker's own, or its supervisor's."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Ask at this --metrics-port, also of another machine."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where that port is; 127.0.0.1 by default.")] = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long one process may take to answer.")
    ] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Ask the workers and schedulers of this machine whether they are ready.

    Without options it asks all that this user runs here; in a container, that is the one.

    Exit codes: 0 all are ready, or alive with --alive; 1 one is not, or does not answer, or there is none; 2 wrong
    command line.
    """
    if host is not None and port is None:
        raise InvalidOption("--host says where --port is; give --port as well.")
    if pid is not None and port is not None:
        raise InvalidOption("Give --pid or --port: each says which process is asked.")
    answers = [_ask_port(host or "127.0.0.1", port, timeout)] if port is not None else _ask_here(pid, timeout)
    good = bool(answers) and all(_is_good(answer, alive=alive) for answer in answers)
    if as_json:
        typer.echo(json.dumps(_as_json(answers, good=good)))
    else:
        for line in [_words(answer) for answer in answers] or [_nobody(pid)]:
            typer.echo(printable(line))
    raise typer.Exit(0 if good else 1)


def _is_good(answer: _Answer, *, alive: bool) -> bool:
    return not isinstance(answer, str) and (answer.alive if alive else answer.ready)


def _words(answer: _Answer) -> str:
    return answer if isinstance(answer, str) else answer.words


def _nobody(pid: int | None) -> str:
    which = (
        "worker or scheduler of this user runs" if pid is None else f"worker or scheduler with process id {pid} runs"
    )
    return (
        f"No {which} here, or it has no place for its socket ($TMPDIR, /dev/shm): then start it with --metrics-port, "
        "and give the port to this command."
    )


def _as_json(answers: Sequence[_Answer], *, good: bool) -> dict[str, object]:
    found = [answer.as_json() for answer in answers if not isinstance(answer, str)]
    return {"ok": good, "reports": found, "errors": [answer for answer in answers if isinstance(answer, str)]}


def _ask_here(pid: int | None, timeout_s: float) -> list[_Answer]:
    answers = []
    for found, path in sockets():
        if pid is None or pid == found:
            connection = _LocalConnection(path, timeout_s)
            answers.append(_ask(connection, f"process {found}", timeout_s))
    return answers


def _ask_port(host: str, port: int, timeout_s: float) -> _Answer:
    return _ask(http.client.HTTPConnection(host, port, timeout=timeout_s), f"{host}:{port}", timeout_s)


def _ask(connection: http.client.HTTPConnection, who: str, timeout_s: float) -> _Answer:
    try:
        connection.request("GET", "/readyz")
        return HealthReport.from_json(json.loads(connection.getresponse().read()))
    except TimeoutError:
        return f"{who} did not answer within {timeout_s:g} s: it is frozen, or the machine is too busy"
    except (OSError, http.client.HTTPException) as error:
        return f"{who} cannot be asked: {(isinstance(error, OSError) and error.strerror) or error}"
    except ValueError:
        return f"{who} answers, but not as a worker or a scheduler of asyncq"
    finally:
        connection.close()


class _LocalConnection(http.client.HTTPConnection):
    """HTTP by a socket in the file system."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(self.timeout)
        try:
            connection.connect(os.fspath(self._path))
        except OSError:
            connection.close()
            raise
        self.sock = connection
