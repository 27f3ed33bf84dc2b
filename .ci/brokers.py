"""Get the RabbitMQ versions that are wanted here, before output is captured: python .ci/brokers.py VERSION...

Packages are announced on the terminal this way, and the tests' own time is
not spent on downloads. A version that cannot be had is only said: the tests
that need it are skipped with the reason, or fail under CI.

"any" is the broker of the demo: the node of this checkout, or the first
version that can be had. Where there is none, that is the end, with an offer:
the demo also runs without RabbitMQ, but not without being told to.
"""
# ruff: noqa: INP001, T201 - a program that prints, not a package

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from asyncq.testing.node import Node, NodeUnavailable

CHECKOUT_NODE = Path(__file__).resolve().parents[1] / ".local" / "rabbitmq"
OFFER = "Or see the demo without any RabbitMQ, in one process:\n  make demo BROKER=memory"


def main(versions: Sequence[str]) -> int:
    """Get each version and return the exit code: 1 where the demo has no broker."""
    code = 0
    for version in versions:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if version == "any":
                    Node.provide(folder=CHECKOUT_NODE)
                else:
                    Node.provide(version, folder=Path(folder))
            except NodeUnavailable as error:
                print(f"{error}\n", flush=True)
                if version == "any":
                    print(f"{OFFER}\n", flush=True)
                    code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
