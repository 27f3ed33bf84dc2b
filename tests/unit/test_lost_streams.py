"""When a stream counts as lost, and which command mends it."""

from __future__ import annotations

import logging
import shlex

import pytest

import asyncq.rabbitmq.lost_streams as module
from asyncq.rabbitmq.lost_streams import LossWatch, looks_lost, mending_command

LOST = "The connection to the broker was lost while reading the stream: INTERNAL_ERROR"


@pytest.fixture
def clock(monkeypatch):
    """The watch's seconds, as a list of one that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize(
    "said",
    [
        "NOT_FOUND - home node 'a@b' of durable queue 'asyncq.cancellations' in vhost '/' is down or inaccessible",
        "INTERNAL_ERROR",
        "RESOURCE_ERROR - Stream not found for queue 'asyncq.cancellations' in vhost '/'",
    ],
)
def test_what_brokers_say_of_a_lost_stream_is_known(said):
    """And a broker that is away is something else."""
    assert looks_lost(said)
    assert not looks_lost("No RabbitMQ can be reached at amqp://localhost/: Connection refused")


def test_a_stream_counts_as_lost_when_it_has_looked_so_for_a_while_and_it_is_said_once(clock, caplog):
    """A node that starts says the same for some seconds. When it can be read again, that is said too."""
    caplog.set_level(logging.INFO)
    watch = LossWatch("asyncq.cancellations")
    assert not watch.failed(LOST)
    clock[0] += 14
    assert not watch.failed(LOST)
    clock[0] += 1
    assert watch.failed(LOST)
    clock[0] += 30
    assert watch.failed(LOST)
    assert [line.split(" journal=")[0][:38] for line in caplog.messages] == [
        "a journal cannot be read, trying again",
        "a journal cannot be read, trying again",
        "the broker has lost a journal: cancell",
    ]
    watch.recovered()
    assert "a journal that was lost can be read again" in caplog.messages[-1]
    assert not watch.failed(LOST)


def test_signs_that_are_far_apart_or_none_at_all_do_not_add_up(clock):
    """Two restarts of a node on one day are no loss, and neither is a long outage."""
    watch = LossWatch("asyncq.cancellations")
    assert not watch.failed(LOST)
    clock[0] += 3600
    assert not watch.failed(LOST)
    clock[0] += 20
    assert not watch.failed("No RabbitMQ can be reached")


def test_the_command_that_mends_it_fits_the_version_and_survives_the_shell():
    """Names that Erlang would have to escape are written as bytes."""
    assert mending_command("a.b", "/", (4, 3)) == "rabbitmqctl delete_queue --vhost / a.b"
    assert "--vhost 'my shop'" in mending_command("a.b", "my shop", (4, 3))
    program, do, code = shlex.split(mending_command("a.b", 'q"q', (3, 10)))
    assert (program, do) == ("rabbitmqctl", "eval")
    assert code.startswith('N = rabbit_misc:r(<<113,34,113>>, queue, <<"a.b">>), ')
