"""`asyncq version`: what is installed here."""

from __future__ import annotations

import json
import platform
from importlib import metadata
from typing import Annotated

import typer

__all__ = ["version"]

_PACKAGES = ("asyncq", "aio-pika", "aiormq", "pydantic")


def version(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Print the versions of asyncq, Python and the libraries below; useful in bug reports."""
    versions = {name: metadata.version(name) for name in _PACKAGES}
    versions = {"asyncq": versions.pop("asyncq"), "python": platform.python_version(), **versions}
    if as_json:
        typer.echo(json.dumps(versions))
        return
    for name, number in versions.items():
        typer.echo(f"{name:<9} {number}")
