"""No error of the AMQP client reaches a user as it is."""

from __future__ import annotations

import inspect
import ssl

import aio_pika.exceptions
import aiormq.exceptions
import pytest
from pamqp import commands

from asyncq.errors import AuthenticationFailed, BrokerError, BrokerUnavailable, TopologyMismatch, VirtualHostNotFound
from asyncq.rabbitmq.failures import connect_error, operation_error, safe_url

URL = "amqp://me:p%40ss@broker.example/shop"


def client_errors():
    found = set()
    for module in (aiormq.exceptions, aio_pika.exceptions):
        for value in vars(module).values():
            if inspect.isclass(value) and issubclass(value, Exception):
                found.add(value)
    return sorted(found, key=lambda kind: (kind.__module__, kind.__name__))


def instance(kind):
    if issubclass(kind, aiormq.exceptions.DeliveryError):
        error = kind.__new__(kind)
        error.message, error.frame = None, commands.Basic.Nack(delivery_tag=1)
        Exception.__init__(error, "nack")
        return error
    return kind("said by the broker")


@pytest.mark.parametrize("kind", client_errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_client_becomes_one_of_ours(kind):
    """While connecting, and on an open connection; the broker's words stay, the password does not."""
    error = instance(kind)
    for ours in (connect_error(error, URL), operation_error(error, "declaring queue 'mail'")):
        assert isinstance(ours, BrokerError)
        assert "p@ss" not in str(ours)
        assert "p%40ss" not in str(ours)
    assert "declaring queue 'mail'" in str(operation_error(error, "declaring queue 'mail'"))


def test_a_wrong_password_an_unknown_virtual_host_and_an_absent_broker_are_told_apart():
    """Each with what to do about it."""
    wrong = connect_error(aiormq.exceptions.ProbableAuthenticationError("ACCESS_REFUSED"), URL)
    assert isinstance(wrong, AuthenticationFailed)
    assert "'me'" in str(wrong)
    missing = connect_error(aiormq.exceptions.ConnectionClosed(530, "NOT_ALLOWED - vhost shop not found"), URL)
    assert isinstance(missing, VirtualHostNotFound)
    assert "add_vhost shop" in str(missing)
    absent = connect_error(ConnectionRefusedError(111, "Connect call failed"), URL)
    assert isinstance(absent, BrokerUnavailable)
    assert "ASYNCQ_BROKER_URL" in str(absent)
    assert "TLS" in str(connect_error(ssl.SSLError("certificate verify failed"), URL))


def test_a_precondition_that_fails_is_a_topology_mismatch():
    """RabbitMQ answers 406 where a queue has other arguments."""
    error = aiormq.exceptions.ChannelPreconditionFailed("PRECONDITION_FAILED - inequivalent arg")
    assert isinstance(operation_error(error, "declaring"), TopologyMismatch)


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("amqp://me:secret@host:5672/v", "amqp://me:***@host:5672/v"),
        ("amqp://host/", "amqp://host/"),
        ("amqps://me:a%2Fb@host/%2F?heartbeat=1&keyfile=x", "amqps://me:***@host/%2F"),
    ],
)
def test_a_url_is_shown_without_its_password(url, safe):
    """Nor its query, where keys may be."""
    assert safe_url(url) == safe
