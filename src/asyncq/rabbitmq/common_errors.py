"""The errors that do not depend on how a broker is reached, in one wording.

Pure. The broker in memory raises the same ones.
"""

from __future__ import annotations

from asyncq.errors import AnswersLost, LeaseLost, MessageTooLarge, QueueGone, Refused, ReplyLost, Unroutable

__all__ = [
    "answers_lost",
    "lease_lost",
    "no_dead_letters",
    "no_destination",
    "queue_gone",
    "reply_queue_gone",
    "too_large",
    "unroutable",
    "unwritable",
]


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


def lease_lost(task_id: str) -> LeaseLost:
    """Return the error for a delivery that can no longer be settled here."""
    return LeaseLost(
        f"The delivery of task {task_id} is no longer this worker's: the connection, the queue or the consumer "
        "timeout took it. The broker delivers it again."
    )


def queue_gone(queue: str) -> QueueGone:
    """Return the error for a subscription to a queue that does not exist."""
    return QueueGone(f"The queue {queue!r} does not exist (any more). Start a worker that declares it.")


def no_dead_letters(dead: str, queue: str) -> QueueGone:
    """Return the error for a look at a dead-letter queue that does not exist."""
    if dead == queue:
        return QueueGone(f"There is no queue {dead!r}. Whatever app is opened first declares it.")
    return QueueGone(
        f"There is no queue {dead!r}. The worker of queue {queue!r} declares it when it starts: start "
        "one once, or check the name."
    )


def answers_lost() -> AnswersLost:
    """Return the error for a question to workers whose answers cannot all be known."""
    return AnswersLost(
        "The connection to the broker was lost while workers were asked, so it is not known who is there, and what "
        "they have done. Ask again: what is done already is not done twice."
    )


def reply_queue_gone(address: str) -> ReplyLost:
    """Return the error for what was awaited on a reply queue that does not exist any more."""
    return ReplyLost(
        f"The reply queue {address} is gone: it expired while the connection was down, its node was lost, "
        "or somebody deleted it. The tasks themselves are not affected."
    )
