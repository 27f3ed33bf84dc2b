"""The errors of a publish that do not depend on how the broker is reached, in one wording.

Pure. The broker in memory raises the same ones.
"""

from __future__ import annotations

from asyncq.errors import MessageTooLarge, Refused, Unroutable

__all__ = ["no_destination", "too_large", "unroutable", "unwritable"]


def too_large(size: int, limit: int, words: str) -> MessageTooLarge:
    """Return the error for a body of `size` bytes where `limit` are allowed, for the target in words."""
    return MessageTooLarge(
        f"A message of {size} bytes for {words} was not sent: at most {limit} "
        "may be (max_message_bytes, ASYNCQ_MAX_MESSAGE_BYTES; RabbitMQ has a max_message_size of its own). "
        "Put large data into a file or an object store, and send its name."
    )


def unroutable(words: str) -> Unroutable:
    """Return the error for a message that no queue takes."""
    return Unroutable(
        f"There is no {words} to take the message, so it was not kept. Start a worker for it, which declares it, or "
        "check the name."
    )


def unwritable(error: Exception, words: str) -> Refused:
    """Return the error for a message that cannot be written as AMQP frames."""
    return Refused(
        f"The message for {words} cannot be written as AMQP ({type(error).__name__}: {error}). "
        "Nothing was sent. Look at its headers, ids and priority."
    )


def no_destination(queue: str) -> Unroutable:
    """Return the error for a delayed message whose queue does not exist."""
    return Unroutable(
        f"There is no queue {queue!r}, so the delayed message for it was not sent: it would have nowhere to go "
        "when its delay is over. Start a worker for the queue once, which declares it, or check the name."
    )
