"""The spans of attempts, in a worker: begun before the code, current while it runs and is settled, ended after both.

Tracing is no middleware: it also tells of tasks that never begin, it tells the outcome that was settled, and what the
settlement sends is below it. Middleware is inside of it: there the attempt's span is the current one.
"""

from __future__ import annotations

import contextvars
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from asyncq.broker import Delivery
from asyncq.outcome import Cancelled, Expired, Failed, Outcome, Rejected
from asyncq.worker.attempt import Attempt

if TYPE_CHECKING:
    from asyncq.tracing.spans import AttemptSpan, Tracing

__all__ = ["Traces", "current"]

_NOTHING: AbstractContextManager[None] = nullcontext()


def current(span: AttemptSpan | None) -> AbstractContextManager[None]:
    """Make a span, if there is one, the current one in the block: for what is sent and logged to settle a delivery."""
    return _NOTHING if span is None else span.current()


class Traces:
    """Makes the spans of a worker's attempts.

    Args:
        tracing: The app's; None makes none.
    """

    def __init__(self, tracing: Tracing | None = None) -> None:
        self._tracing = tracing

    def begin(self, attempt: Attempt, variables: contextvars.Context) -> None:
        """Begin the span of an attempt that is about to begin.

        Args:
            attempt: It gets the span.
            variables: The context variables of its code, where the span becomes the current one.
        """
        if self._tracing is None:
            return
        span = self._tracing.attempt(attempt.delivery.message, attempt.delivery.queue, attempt.number)
        if span is not None:
            span.enter(variables)
            attempt.span = span

    def of_end(self, delivery: Delivery, number: int, outcome: Outcome) -> AttemptSpan | None:
        """Return the span of a task that has come to its end without having begun; None where it comes again.

        Args:
            delivery: The task's.
            number: Of the attempt that did not begin.
            outcome: How it ended.
        """
        if self._tracing is None or not isinstance(outcome, (Failed, Rejected, Cancelled, Expired)):
            return None
        return self._tracing.attempt(delivery.message, delivery.queue, number)
