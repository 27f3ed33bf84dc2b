"""The command line: start, stop and look at a private RabbitMQ node.

Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the node is not running (status),
4 no RabbitMQ can be had here. What a program reads goes to standard output,
everything else to standard error.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .configuration import Setup
from .errors import NodeError, NodeUnavailable
from .node import Node

_OK, _FAILED, _NOT_RUNNING, _UNAVAILABLE = 0, 1, 3, 4

_DESCRIPTION = """\
A private RabbitMQ node for development: its own data folder, its own free ports,
on 127.0.0.1 only. No other broker is used, changed or stopped.

`start` takes the first way that works: an installed rabbitmq-server; apt, as root,
on Debian and Ubuntu (announced first; no system service is started); Docker or
Podman with the official image. With --version also a Debian system that is
unpacked into ~/.cache/asyncq (or $ASYNCQ_CACHE), as root: 3.10, 4.0, 4.3.

Tried on Debian 12. Not tried: macOS, Docker, Podman.
"""
_EPILOG = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 3 not running (status),
            4 no RabbitMQ can be had here
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Args:
        arguments: The command line without the program's name; by default this process's.
    """
    options = _parser().parse_args(arguments)
    try:
        match options.command:
            case "start":
                return _start(options)
            case "stop":
                return _stop(options)
            case "end":
                return _end(options)
            case _:
                return _status(options)
    except NodeUnavailable as error:
        print(error, file=sys.stderr)
        return _UNAVAILABLE
    except NodeError as error:
        print(error, file=sys.stderr)
        return _FAILED


def _start(options: argparse.Namespace) -> int:
    before = Node.recorded(options.folder)
    started = before is None or not before.running
    setup = Setup() if options.config is None else Setup.from_folder(options.config)
    node = Node.provide(options.version, name=options.name, folder=options.folder, setup=setup)
    if started and not options.json:
        print(f"Starting {node.how} ...", file=sys.stderr, flush=True)
    node.start()
    _show(options, _facts(node, started=started), "RabbitMQ {version} runs.")
    return _OK


def _stop(options: argparse.Namespace) -> int:
    node = Node.recorded(options.folder)
    if node is None or not node.running:
        # Its port mapper may have outlived a broker that was killed.
        _end(options)
        print("It is not running.", file=sys.stderr)
        return _OK
    node.stop()
    print(f"Stopped. Its data stays in {options.folder}.", file=sys.stderr)
    return _OK


def _end(options: argparse.Namespace) -> int:
    node = Node.recorded(options.folder)
    if node is not None:
        node.end()
    return _OK


def _status(options: argparse.Namespace) -> int:
    node = Node.recorded(options.folder)
    if node is None or not node.running:
        print("{}" if options.json else "It is not running.")
        return _NOT_RUNNING
    _show(options, _facts(node, started=True), "RabbitMQ {version} runs.")
    return _OK


def _facts(node: Node, *, started: bool) -> dict[str, Any]:
    return {
        "url": node.url,
        "management_url": node.management_url,
        "user": node.user,
        "password": node.password,
        "version": node.version,
        "how": node.how,
        "started_by_us": started,
    }


def _show(options: argparse.Namespace, facts: dict[str, Any], headline: str) -> None:
    if options.json:
        print(json.dumps(facts, indent=2))
        return
    text = f"""\
        {headline}
          AMQP URL       {{url}}
          Management UI  {{management_url}}   user {{user}}, password {{password}}
          Run by         {{how}}
          Data           {{folder}}
        For workers and programs:  export ASYNCQ_BROKER_URL={{url}}
        To stop it:                {{stop}}"""
    by_module = f"python -m asyncq.testing.node stop --folder {options.folder}"
    stop = f"{options.program} stop" if options.program else by_module
    print(textwrap.dedent(text).format(**facts, folder=options.folder, stop=stop))


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--folder",
        type=Path,
        default=Path(".local/rabbitmq"),
        help="the node's folder, for its record and data (default: %(default)s)",
    )
    common.add_argument("--json", action="store_true", help="print the facts as JSON")
    common.add_argument("--program", help=argparse.SUPPRESS)  # how the user called us, for the hints
    parser = argparse.ArgumentParser(
        prog="broker",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    start = commands.add_parser("start", parents=[common], help="start the node, or find it running")
    start.add_argument("--version", help="the RabbitMQ version, such as 4.3 (default: the first found)")
    start.add_argument("--name", default="asyncq", help="the node's name (default: %(default)s)")
    start.add_argument("--config", type=Path, help="a folder with rabbitmq.conf, enabled_plugins and definitions.json")
    commands.add_parser("stop", parents=[common], help="stop the node; its data stays")
    commands.add_parser("status", parents=[common], help="say whether it runs, and where")
    commands.add_parser("end", parents=[common], help="end the node at once, by SIGKILL")
    return parser
