"""How a client's messages get to the broker: each with its span, and with those told who count sends.

Invariant: what is returned, or raised, is the broker's own answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from asyncq.broker import Broker, Publication
from asyncq.errors import PublishError
from asyncq.sends import SendObserver, Sent, outcome_of

if TYPE_CHECKING:
    from asyncq.tracing.spans import Tracing

__all__ = ["Outbox"]


class Outbox:
    """Publishes for a client.

    Args:
        broker: An open broker.
        timeout_s: How long a publish waits for its confirm.
        tracing: Makes the spans of what is sent; None for none.

    Attributes:
        observers: Hear of each task that was sent, or was to be.
    """

    def __init__(self, broker: Broker, timeout_s: float, tracing: Tracing | None = None) -> None:
        self.observers: Sequence[SendObserver] = ()
        self._broker = broker
        self._timeout_s = timeout_s
        self._tracing = tracing

    async def publish(
        self, publication: Publication, by: Callable[[Publication], Awaitable[None]] | None = None
    ) -> None:
        """Publish a message.

        Args:
            publication: The message, and where to.
            by: Another way to the broker, which counts for itself.

        Raises:
            PublishError: Its subclasses say what happened.
        """
        publish = by or self._publish
        if self._tracing is None:
            await publish(publication)
            return
        with self._tracing.sending(publication) as traced:
            await publish(traced)

    async def publish_many(self, publications: Sequence[Publication]) -> Sequence[PublishError | None]:
        """Publish messages with their confirms pipelined; return what has become of each."""
        if self._tracing is None:
            errors: Sequence[PublishError | None] = await self._broker.publish_many(
                publications, timeout_s=self._timeout_s
            )
        else:
            with self._tracing.sending_many(publications) as batch:
                errors = batch.errors = await self._broker.publish_many(batch.publications, timeout_s=self._timeout_s)
        for publication, error in zip(publications, errors, strict=True):
            self._tell(publication, error)
        return errors

    async def _publish(self, publication: Publication) -> None:
        try:
            await self._broker.publish(
                publication.message, publication.to, delay=publication.delay, timeout_s=self._timeout_s
            )
        except Exception as error:
            self._tell(publication, error)
            raise
        self._tell(publication, None)

    def _tell(self, publication: Publication, error: Exception | None) -> None:
        if self.observers:
            sent = Sent(publication.message.type, publication.to.queue, outcome_of(error))
            for observe in self.observers:
                observe(sent)
