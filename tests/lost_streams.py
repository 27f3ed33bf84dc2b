"""A stream that the broker has lost, made in a second: its queue stands, and nothing is behind it.

The same as a node killed within seconds of the stream's declaration leaves on RabbitMQ 4.3: declaring succeeds, and
consuming and publishing end the connection.
"""

from __future__ import annotations

from asyncq.testing.node import Node

_LOSE = """
{ok, Queue} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"%s">>, queue, <<"%s">>)),
Stream = maps:get(name, amqqueue:get_type_state(Queue)),
{ok, ok, _} = ra:process_command({rabbit_stream_coordinator, node()}, {delete_stream, Stream, #{}}).
"""


def lose_stream(node: Node, name: str, vhost: str = "/") -> None:
    """Let a node lose a stream of a virtual host. Its other streams are left alone."""
    node.rabbitmqctl("eval", _LOSE % (vhost, name))
