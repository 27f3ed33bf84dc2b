"""What can go wrong with a private broker.

Every message says what is missing and what to do about it.
"""


class NodeError(Exception):
    """A private RabbitMQ node could not do what was asked."""


class NodeUnavailable(NodeError):
    """No RabbitMQ of the wanted version can be had on this machine."""


class NodeFailed(NodeError):
    """The node was started and did not come up, or it answered with an error."""
