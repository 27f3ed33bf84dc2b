"""The run's broker: the one that `ASYNCQ_BROKER_URL` names, or a private node.

A broker that was there before is never stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aio_pika
from pydantic import BaseModel, ValidationError

from demo.settings import ROOT, WITHOUT_RABBITMQ, DemoError

COMMAND = ROOT / "rabbitmq" / "broker"
DELETE_S = 15


class Broker(BaseModel):
    """Where the broker is.

    Attributes:
        url: Its AMQP URL, with user and password.
        management_url: Its web page; None where that is not known.
        user: Who may log in there.
        password: That user's password.
        version: Its version; None where that is not known.
        started_by_us: Whether it is to be stopped at the end.
    """

    url: str
    management_url: str | None = None
    user: str | None = None
    password: str | None = None
    version: str | None = None
    started_by_us: bool = False


async def start_private_broker() -> Broker:
    """Start a private node, or find the one that runs already.

    A cancelled start is waited for and undone, since a node that is half started cannot be stopped.

    Raises:
        DemoError: There is no node to be had here; says what the command said, and how the demo does without.
    """
    starting = asyncio.ensure_future(_command("start", "--json"))
    try:
        output = await asyncio.shield(starting)
    except asyncio.CancelledError:
        broker = _parse(await starting)
        if broker.started_by_us:
            await stop_private_broker()
        raise
    return _parse(output)


async def stop_private_broker() -> None:
    """Stop the private node.

    Raises:
        DemoError: It could not be stopped.
    """
    await _command("stop")


async def delete_queues(url: str, names: Iterable[str]) -> None:
    """Delete this run's own queues: their names carry its id, so they are nobody else's.

    Raises:
        DemoError: The broker did not do it.
    """
    try:
        async with asyncio.timeout(DELETE_S), await aio_pika.connect(url.split(",", maxsplit=1)[0]) as connection:
            channel = await connection.channel()
            for name in names:
                await channel.queue_delete(name)  # one that does not exist is no error to the broker
    except (OSError, aio_pika.exceptions.AMQPError) as exc:
        raise DemoError(f"The queues of this run could not be deleted: {exc}") from exc


def _parse(output: str) -> Broker:
    try:
        return Broker.model_validate_json(output)
    except ValidationError as exc:
        raise DemoError(f"`{COMMAND} start --json` printed something else than expected: {output!r}") from exc


async def _command(*arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the demo, which then stops the node in order
    )
    output, errors = await process.communicate()
    if process.returncode:
        said = (errors or output).decode(errors="replace").strip()
        if arguments[0] == "start":
            said += f"\nOr without RabbitMQ, in one process: {WITHOUT_RABBITMQ}"
        raise DemoError(f"`{COMMAND} {' '.join(arguments)}` failed (code {process.returncode}):\n{said}")
    return output.decode()
