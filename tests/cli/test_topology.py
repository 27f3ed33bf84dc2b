"""`asyncq topology`: what an app needs, shown, declared, and compared with what stands."""

import json
from urllib.parse import urlsplit, urlunsplit

import aio_pika
import pytest


@pytest.fixture
def at_management(node):
    """The environment of a command that finds the management API."""
    return {"ASYNCQ_MANAGEMENT_URL": node.management_url}


@pytest.fixture
def offline(offline_in_process):
    """Run a command that needs no broker, or finds none."""
    return lambda *arguments, **env: offline_in_process.run(
        "topology", *arguments, environment={"ASYNCQ_CONNECT_TIMEOUT_S": "1", **env}
    )


@pytest.fixture
def declarer(node, broker_url):
    """The URL of a user who may use everything, and configure nothing."""
    vhost = urlsplit(broker_url).path[1:]
    node.api("PUT", "/users/topology-reader", {"password": "secret-word", "tags": ""})
    node.api("PUT", f"/permissions/{vhost}/topology-reader", {"configure": "^$", "write": ".*", "read": ".*"})
    parts = urlsplit(broker_url)
    yield urlunsplit(parts._replace(netloc=f"topology-reader:secret-word@{parts.hostname}:{parts.port}"))
    node.api("DELETE", "/users/topology-reader")


# --- show


def test_show_names_what_the_app_needs_and_asks_no_broker(offline):
    """Exchanges, queues with their arguments, bindings."""
    shown = offline("show", "shop:app")
    assert shown.exit_code == 0, shown.output
    assert "asyncq.tasks             direct" in shown.stdout
    assert "  mail\n      x-queue-type = quorum\n" in shown.stdout
    assert "asyncq.tasks -> mail  key mail" in shown.stdout
    assert "level" not in shown.stdout


def test_show_as_json_can_be_read_by_programs(offline):
    """With the settings of the app."""
    plan = json.loads(offline("show", "shop:app", "--json", ASYNCQ_DELIVERY_LIMIT="7").stdout)
    queues = {queue["name"]: queue["arguments"] for queue in plan["queues"]}
    assert set(queues) == {"asyncq.unroutable", "asyncq.cancellations", "mail", "mail.dead", "slow", "slow.dead"}
    assert queues["mail"]["x-delivery-limit"] == 7
    assert {"exchange": "asyncq.tasks", "key": "mail", "destination": "mail", "kind": "queue"} in plan["bindings"]
    assert {exchange["name"]: exchange["type"] for exchange in plan["exchanges"]}["asyncq.delay.v1.enter"] == "topic"


def test_show_with_delays_names_the_whole_ladder(offline):
    """120 queues more."""
    plan = json.loads(offline("show", "shop:app", "--json", "--delays").stdout)
    assert len(plan["queues"]) == 126


def test_a_namespace_is_respected(offline):
    """Two installations on one virtual host."""
    assert "two.tasks" in offline("show", "shop:app", ASYNCQ_NAMESPACE="two").stdout


@pytest.mark.parametrize("command", ["apply", "verify", "diff"])
def test_in_memory_there_is_nothing_to_look_at(offline, command):
    """It is said, and is no failure."""
    said = offline(command, "shop:app", ASYNCQ_BROKER_URL="memory://")
    assert (said.exit_code, "nothing to look at" in said.stdout) == (0, True)
    assert json.loads(offline(command, "shop:app", "--json", ASYNCQ_BROKER_URL="memory://").stdout)["note"]


@pytest.mark.parametrize("command", ["apply", "verify", "diff"])
def test_an_absent_broker_exits_with_3_and_one_message(offline, command):
    """No traceback, no password."""
    ended = offline(command, "shop:app")
    assert ended.exit_code == 3
    assert "No RabbitMQ can be reached at amqp://guest:***@127.0.0.1:1/" in ended.stderr
    assert "Traceback" not in ended.output
    assert "secret-word" not in ended.output


@pytest.mark.parametrize("target", ["nowhere:app", "shop:nothing", "shop"])
def test_a_wrong_app_exits_with_2(offline, target):
    """Before any broker is asked."""
    for command in ("show", "verify"):
        ended = offline(command, target)
        assert ended.exit_code == 2
        assert ended.stderr.startswith("error: ")
        assert "Traceback" not in ended.output


def test_a_management_url_that_is_none_exits_with_2(in_process):
    """It is the command line that is wrong."""
    ended = in_process.run("topology", "verify", "shop:app", "--management-url", "localhost:15672")
    assert ended.exit_code == 2
    assert "http://host:15672" in ended.stderr


# --- apply, verify, diff


async def test_what_is_applied_stands_and_is_verified(in_process, management, at_management):
    """From nothing to everything; verify itself declares nothing."""
    missing = await in_process.arun("topology", "verify", "shop:app", environment=at_management)
    assert missing.exit_code == 1, missing.stderr
    assert "queue 'mail' is missing" in missing.stdout
    assert "asyncq topology apply" in missing.stdout
    assert await management.queues() == {}

    applied = await in_process.arun("topology", "apply", "shop:app")
    assert applied.exit_code == 0, applied.stderr
    assert "mail.dead                new" in applied.stdout
    task_queues = {"mail", "mail.dead", "slow", "slow.dead"}
    assert set(await management.queues()) == {"asyncq.unroutable", "asyncq.cancellations", *task_queues}

    again = await in_process.arun("topology", "apply", "shop:app", "--json")
    assert again.exit_code == 0, again.stderr
    assert not [part for part in json.loads(again.stdout)["declared"] if part["new"]]

    verified = await in_process.arun("topology", "verify", "shop:app", environment=at_management)
    assert verified.exit_code == 0, verified.stdout
    assert "stand as the app needs them" in verified.stdout
    compared = await in_process.arun("topology", "diff", "shop:app", environment=at_management)
    assert (compared.exit_code, compared.stdout) == (0, "")


async def test_the_whole_ladder_is_applied_and_verified(in_process, management, at_management):
    """For apps that may not declare what a delay needs."""
    applied = await in_process.arun("topology", "apply", "shop:app", "--delays")
    assert applied.exit_code == 0, applied.stderr
    assert len(await management.queues()) == 126
    verified = await in_process.arun("topology", "verify", "shop:app", "--delays", "--json", environment=at_management)
    assert verified.exit_code == 0, verified.stdout
    assert json.loads(verified.stdout)["arguments_and_bindings_checked"] is True


async def test_differences_are_shown_as_a_diff_and_as_json(in_process, broker_url, at_management):
    """Another argument, another type, a missing binding, a missing queue."""
    await in_process.arun("topology", "apply", "shop:app")
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        for queue in ("mail", "slow.dead"):
            await (await channel.get_queue(queue)).delete(if_unused=False, if_empty=False)
        await channel.declare_queue(
            "mail", durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 3, "x-max-length": 9}
        )
    compared = await in_process.arun("topology", "diff", "shop:app", environment=at_management)
    assert compared.exit_code == 1, compared.stderr
    lines = compared.stdout.splitlines()
    assert lines[0].startswith("--- amqp://")
    assert lines[1] == "+++ app shop"
    assert "+queue slow.dead" in lines
    at = lines.index(" queue mail")
    for line in (
        "-    x-delivery-limit = 3",
        "+    x-delivery-limit = 50",
        "-    x-max-length = 9",
        "+    x-overflow = reject-publish",
    ):
        assert lines.index(line) > at
    assert "+the binding of queue 'mail' to exchange 'asyncq.tasks' with key 'mail'" in lines

    found = json.loads(
        (await in_process.arun("topology", "diff", "shop:app", "--json", environment=at_management)).stdout
    )
    limit = next(one for one in found["differences"] if one["argument"] == "x-delivery-limit")
    assert (limit["name"], limit["wanted"], limit["found"]) == ("mail", 50, 3)
    assert "ASYNCQ_DELIVERY_LIMIT" in limit["remedy"]

    refused = await in_process.arun("topology", "apply", "shop:app")
    assert refused.exit_code == 3
    for said in ("Queue 'mail'", "asyncq needs", "delete_queue mail"):
        assert said in refused.stderr


async def test_without_the_management_api_existence_is_verified_and_the_rest_is_named(in_process, management):
    """Nobody listens on the port that is given."""
    nowhere = ("--management-url", "http://127.0.0.1:1")
    missing = await in_process.arun("topology", "verify", "shop:app", *nowhere)
    assert missing.exit_code == 1
    assert "queue 'mail' is missing" in missing.stdout
    assert await management.queues() == {}
    await in_process.arun("topology", "apply", "shop:app")
    verified = await in_process.arun("topology", "verify", "shop:app", *nowhere)
    assert verified.exit_code == 0, verified.stdout
    assert "all exchanges and queues of the app exist" in verified.stdout
    assert "Not checked: arguments, types and bindings" in verified.stdout
    assert "http://127.0.0.1:1" in verified.stdout
    assert "ASYNCQ_MANAGEMENT_URL" in verified.stdout


async def test_a_user_who_may_not_declare_is_told_so_and_can_still_verify(in_process, declarer, at_management):
    """Its own permission is what lacks; the management API wants a tag that it has not."""
    as_reader = {"ASYNCQ_BROKER_URL": declarer, **at_management}
    refused = await in_process.arun("topology", "apply", "shop:app", environment=as_reader)
    assert refused.exit_code == 3
    assert "User 'topology-reader' lacks the permission configure" in refused.stderr
    assert "set_permissions" in refused.stderr
    assert "secret-word" not in refused.stderr
    await in_process.arun("topology", "apply", "shop:app")
    verified = await in_process.arun("topology", "verify", "shop:app", environment=as_reader)
    assert verified.exit_code == 0, verified.stderr
    assert "has not the tag `management`" in verified.stdout


async def test_a_queue_that_is_exclusive_to_somebody_is_not_taken_for_a_missing_one(in_process, broker_url):
    """It is there, and cannot be used."""
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        await channel.declare_queue("mail", durable=False, exclusive=True)
        compared = await in_process.arun("topology", "diff", "shop:app", "--management-url", "http://127.0.0.1:1")
    assert compared.exit_code == 1
    assert " queue mail\n!    " in compared.stdout
    assert "RESOURCE_LOCKED" in compared.stdout
