"""A stream that the broker has lost: it exists, and can be neither read nor written, for good.

Seen where a node was killed within seconds of the stream's first declaration. What the broker then says, at each try:

    3.10, 4.0   declare, consume   404 on the channel: home node ... is down or inaccessible
                publish            returned as unroutable
    4.3         declare            succeeds, a passive declaration too
                consume            541 INTERNAL_ERROR, which ends the connection
                publish            506 RESOURCE_ERROR - Stream not found, which ends the connection

All of them say the latter where the stream is lost while its node runs.

A node that is only starting, or is down for a while, says the same: so time must pass before it counts as lost.

Invariant: asyncq never deletes such a stream. Only a person can know that its node will not come back with it.
"""

from __future__ import annotations

import re
import time
from shlex import quote

from asyncq.loggers import get_logger

__all__ = ["WHERE_TO_LOOK", "LossWatch", "looks_lost", "mending_command"]

log = get_logger("asyncq.rabbitmq")

_SIGNS = ("down or inaccessible", "INTERNAL_ERROR", "Stream not found")
_LOST_AFTER_S = 15.0
"""A node that was restarted has its streams back before that."""

_APART_S = 60.0
"""Signs that are further apart have another cause each."""

_NEVER_S = -2 * _APART_S

_DELETES_LOST_STREAMS_SINCE = (4, 3)

WHERE_TO_LOOK = (
    "If this goes on although all nodes run, the broker has lost the stream: `asyncq doctor` says what mends it."
)


def looks_lost(said: str) -> bool:
    """Tell whether this is what the broker says of a stream that is lost, or not there at the moment."""
    return any(sign in said for sign in _SIGNS)


def mending_command(name: str, vhost: str, release: tuple[int, int]) -> str:
    """Return the shell command that deletes a lost stream, for an operator on one of the broker's nodes.

    Args:
        name: The stream's name.
        vhost: Its virtual host.
        release: Major and minor version of the broker. Before 4.3 there is "no queue" to delete, so what the broker
            still knows of it is taken out; the function for that was changed in between. (Tried on 3.10, 4.0 and 4.3.)
    """
    if release >= _DELETES_LOST_STREAMS_SINCE:
        return f"rabbitmqctl delete_queue --vhost {quote(vhost)} {quote(name)}"
    return "rabbitmqctl eval " + quote(
        f"N = rabbit_misc:r({_binary(vhost)}, queue, {_binary(name)}), U = {_binary('operator')}, "
        "try rabbit_amqqueue:internal_delete(N, U) catch error:function_clause -> "
        "{ok, Q} = rabbit_db_queue:get_durable(N), rabbit_amqqueue:internal_delete(Q, U) end."
    )


def _binary(text: str) -> str:
    """Return a text as Erlang writes it; where that would need an escape, as its bytes."""
    plain = re.fullmatch(r"[A-Za-z0-9 ._:/-]*", text)
    return f'<<"{text}">>' if plain else f"<<{','.join(map(str, text.encode()))}>>"


class LossWatch:
    """Finds out that a stream is lost, from failures to read it, and says so once.

    Args:
        name: The stream's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._first_s = self._last_s = _NEVER_S
        self._said = False

    def failed(self, cause: str) -> bool:
        """Note that it could not be read, and log it: each time at first, and no more once it is said to be lost.

        Args:
            cause: What the broker said.

        Returns:
            Whether it counts as lost by now.
        """
        now_s = time.monotonic()
        if looks_lost(cause):
            if now_s - self._last_s > _APART_S:
                self._first_s = now_s
            self._last_s = now_s
        if not self._said and self._last_s - self._first_s >= _LOST_AFTER_S:
            self._said = True
            log.error(
                "the broker has lost a journal: cancellations and pauses are not heard until it is deleted, and "
                "workers that start wait for it; tasks that run are not disturbed",
                journal=self._name,
                todo="`asyncq doctor` says which command deletes it; it is declared again by itself",
                cause=cause,
            )
        elif not self._said:
            log.warning("a journal cannot be read, trying again", journal=self._name, cause=cause)
        return self._said

    def recovered(self) -> None:
        """Note that it can be read."""
        if self._said:
            log.info("a journal that was lost can be read again", journal=self._name)
        self._first_s = self._last_s = _NEVER_S
        self._said = False
