"""Settings from arguments, environment and defaults."""

from __future__ import annotations

import pytest

from asyncq.errors import ConfigurationError
from asyncq.rabbitmq.connection import parse_urls
from asyncq.settings import load_settings


def test_arguments_win_over_the_environment_and_the_environment_over_defaults(monkeypatch):
    """As everybody expects."""
    monkeypatch.setenv("ASYNCQ_PUBLISH_TIMEOUT_S", "7")
    monkeypatch.setenv("ASYNCQ_HEARTBEAT_S", "20")
    settings = load_settings(publish_timeout_s=3)
    assert (settings.publish_timeout_s, settings.heartbeat_s, settings.call_timeout_s) == (3, 20, 60)


def test_a_value_that_cannot_be_used_names_its_environment_variable(monkeypatch):
    """So that the person who reads the container's log knows what to change."""
    monkeypatch.setenv("ASYNCQ_SLOTS", "many")
    with pytest.raises(ConfigurationError, match="ASYNCQ_SLOTS"):
        load_settings()
    with pytest.raises(ConfigurationError, match="colour"):
        load_settings(colour="blue")


@pytest.mark.parametrize("url", ["", "http://host/", "amqp://", "redis://host", "amqp://host:notaport/"])
def test_what_is_no_broker_url_is_refused_with_an_example(url):
    """Before any connection is tried."""
    with pytest.raises(ConfigurationError, match="amqp://user:password@host"):
        parse_urls(url)


def test_several_brokers_are_separated_by_commas():
    """They are tried in turn."""
    assert [url.host for url in parse_urls("amqp://a/, amqps://b:5671/v")] == ["a", "b"]


@pytest.mark.parametrize("password", ["s3/cret", "s3#cret", "s3?cret", "s3,cret", "12/cret", "[s3cret", "s3cret@x/y"])
def test_a_password_with_special_characters_is_never_shown_and_the_error_says_how_to_write_it(password):
    """Split at the wrong place, a part of it looks like a host, a port or a path."""
    for url in (f"amqp://user:{password}@host/", f"user:{password}@host", f"http://user:{password}@host/"):
        with pytest.raises(ConfigurationError, match="percent-encoded") as caught:
            parse_urls(url)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "vhost"),
    [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/%2f", "/"), ("amqp://h/a%40b?heartbeat=5", "a@b")],
)
def test_a_url_names_its_virtual_host(url, vhost):
    """With none, it is the default one; special characters are percent-encoded."""
    from asyncq.rabbitmq.failures import connect_error

    (parsed,) = parse_urls(url)
    error = connect_error(ConnectionError("NOT_ALLOWED - vhost not found"), parsed)
    assert f"virtual host {vhost!r}" in str(error)
