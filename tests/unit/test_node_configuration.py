"""A node's configuration: its own ports, and the user's file for the rest."""

import json
from pathlib import Path

import pytest

from asyncq.testing.node import NodeError, Setup
from asyncq.testing.node.configuration import Ports

PORTS = Ports(amqp=20001, management=20002, prometheus=20003, distribution=20004, epmd=20005)
REPOSITORY = Path(__file__).parents[2]


def test_urls_escape_what_urls_cannot_carry() -> None:
    """User, password and virtual host may hold any character."""
    setup = Setup(user="a@b", password="p:/", vhost="/")
    assert setup.amqp_url(5672) == "amqp://a%40b:p%3A%2F@127.0.0.1:5672/"
    assert setup.amqp_url(5672, "shop/eu") == "amqp://a%40b:p%3A%2F@127.0.0.1:5672/shop%2Feu"


def test_listeners_of_the_users_file_do_not_count(tmp_path: Path) -> None:
    """A private node must not take port 5672, whatever the file says."""
    conf = "listeners.tcp.default = 5672\nmanagement.tcp.port = 15672\nheartbeat = 7\nload_definitions = /x"
    Setup(conf=conf).write(tmp_path, PORTS, seen_as=Path("/inside"))
    lines = (tmp_path / "rabbitmq.conf").read_text().splitlines()
    assert "heartbeat = 7" in lines
    assert "listeners.tcp.1 = 127.0.0.1:20001" in lines
    assert "management.tcp.ip = 127.0.0.1" in lines
    assert "management.tcp.port = 20002" in lines
    assert "load_definitions = /inside/definitions.json" in lines
    assert not any("5672" in line for line in lines)


def test_definitions_have_the_user_and_the_vhost(tmp_path: Path) -> None:
    """Without definitions of one's own they are made from user, password and virtual host."""
    Setup(user="ann", vhost="shop").write(tmp_path, PORTS, seen_as=tmp_path)
    definitions = json.loads((tmp_path / "definitions.json").read_text())
    assert definitions["users"][0]["name"] == "ann"
    assert definitions["vhosts"] == [{"name": "shop"}]
    assert definitions["permissions"][0]["vhost"] == "shop"


def test_the_repositorys_folder_makes_a_setup() -> None:
    """`rabbitmq/` is what `rabbitmq/broker` starts with."""
    setup = Setup.from_folder(REPOSITORY / "rabbitmq")
    assert setup.amqp_url(5672) == "amqp://asyncq:asyncq@127.0.0.1:5672/asyncq"
    assert setup.plugins == ("rabbitmq_management", "rabbitmq_prometheus")
    assert [policy["name"] for policy in setup.all_definitions()["policies"]] == ["bound-task-queues"]


def test_a_folder_without_the_files_is_an_error_that_names_them(tmp_path: Path) -> None:
    """The first missing file is named."""
    with pytest.raises(NodeError, match=r"rabbitmq\.conf"):
        Setup.from_folder(tmp_path)


def test_definitions_without_a_user_are_an_error_that_says_so(tmp_path: Path) -> None:
    """A node's URL needs a user with a password."""
    (tmp_path / "rabbitmq.conf").write_text("")
    (tmp_path / "enabled_plugins").write_text("[].")
    (tmp_path / "definitions.json").write_text('{"users": [], "vhosts": [{"name": "a"}]}')
    with pytest.raises(NodeError, match="a user with a password"):
        Setup.from_folder(tmp_path)
