"""Get the RabbitMQ versions that are wanted here, before output is captured: python .ci/brokers.py VERSION...

Packages are announced on the terminal this way, and the tests' own time is
not spent on downloads. A version that cannot be had is only said: the tests
that need it are skipped with the reason, or fail under CI. "any" is the first
version that can be had.
"""
# ruff: noqa: INP001, T201 - a program that prints, not a package

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from asyncq.testing.node import Node, NodeUnavailable


def main(versions: Sequence[str]) -> int:
    """Get each version and return the exit code."""
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            try:
                Node.provide(None if version == "any" else version, folder=Path(folder))
            except NodeUnavailable as error:
                print(f"{error}\n", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
