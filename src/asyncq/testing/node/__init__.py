"""A private RabbitMQ node for development and tests: one command, own data, own ports.

Standard library only, and the folder runs by its path as well
(`python3 src/asyncq/testing/node start`), so that a broker can be had before
anything is installed.
"""

from .configuration import Setup
from .errors import NodeError, NodeFailed, NodeUnavailable
from .management import ManagementError
from .node import Node

__all__ = ["ManagementError", "Node", "NodeError", "NodeFailed", "NodeUnavailable", "Setup"]
