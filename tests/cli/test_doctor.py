"""`asyncq doctor`: what is wrong on a real broker, what to do, and an exit status for monitoring."""

import asyncio
import json
import shlex
from urllib.parse import quote, urlsplit, urlunsplit

import aio_pika
import pytest

from asyncq import AsyncQ
from lost_streams import lose_stream
from support import eventually


@pytest.fixture
def at_management(node):
    """The environment of a command that finds the management API."""
    return {"ASYNCQ_MANAGEMENT_URL": node.management_url}


@pytest.fixture
def doctor(in_process, at_management):
    """Run the command with --json: the exit status, and the findings that are not `ok`, by what was looked at."""

    async def run(*arguments, environment=None):
        ended = await in_process.arun(
            "doctor", *arguments, "--json", environment={**at_management, **(environment or {})}
        )
        assert ended.stderr == ""
        report = json.loads(ended.stdout)
        findings = {}
        for finding in report["findings"]:
            findings.setdefault(finding["check"], []).append(finding)
        return ended.exit_code, findings

    return run


@pytest.fixture
def offline(offline_in_process):
    """Run a command that needs no broker, or finds none."""
    return lambda *arguments, **env: offline_in_process.run(
        "doctor", *arguments, environment={"ASYNCQ_CONNECT_TIMEOUT_S": "1", **env}
    )


def severities(findings, check):
    """How the findings of one check are ranked."""
    return [finding["severity"] for finding in findings[check]]


# --- without a broker


def test_an_absent_broker_is_an_error_with_what_to_do(offline):
    """Exit status 2, on standard output as every finding; no traceback, no password."""
    ended = offline("shop:app")
    assert ended.exit_code == 2
    assert ended.stdout.startswith("error   connection    No RabbitMQ can be reached at amqp://guest:***@127.0.0.1:1/")
    assert "Traceback" not in ended.output
    assert "secret-word" not in ended.output
    report = json.loads(offline("--json").stdout)
    assert (report["status"], report["findings"][0]["check"]) == ("error", "connection")


def test_a_wrong_app_exits_with_2(offline):
    """As for every command."""
    ended = offline("shop:nothing")
    assert ended.exit_code == 2
    assert ended.stderr.startswith("error: ")


def test_in_memory_there_is_nothing_to_look_at(offline):
    """It is said, and there is nothing to do."""
    said = offline("shop:app", ASYNCQ_BROKER_URL="memory://")
    assert (said.exit_code, "nothing to look at" in said.stdout) == (0, True)


@pytest.mark.parametrize(
    ("netloc", "path", "said"),
    [("asyncq:wrong-word@", None, "does not accept user"), (None, "/no-such-vhost", "no virtual host 'no-such-vhost'")],
    ids=["password", "virtual host"],
)
def test_wrong_credentials_and_a_wrong_virtual_host_are_errors_in_words(in_process, broker_url, netloc, path, said):
    """Exit status 2, as for everything that does not work."""
    parts = urlsplit(broker_url)
    if netloc is not None:
        parts = parts._replace(netloc=f"{netloc}{parts.hostname}:{parts.port}")
    url = urlunsplit(parts._replace(path=path or parts.path))
    ended = in_process.run("doctor", "shop:app", "--broker-url", url)
    assert ended.exit_code == 2
    assert said in ended.stdout
    assert "wrong-word" not in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


# --- with one


async def test_a_healthy_broker_has_nothing_to_do(shell, in_process, doctor, at_management):
    """Exit status 0, with the app and without, as text and as JSON."""
    await in_process.arun("topology", "apply", "shop:app")
    status, findings = await doctor("shop:app")
    assert status == 0, findings
    assert {check: severities(findings, check) for check in findings if check != "version"} == {
        check: ["ok"]
        for check in (
            "connection",
            "alarms",
            "nodes",
            "permissions",
            "topology",
            "unroutable",
            "consumers",
            "dead-letters",
            "delivery-limits",
            "time-limits",
        )
    }
    text = await shell.arun("doctor", "shop:app", environment=at_management)
    assert (text.returncode, text.stderr) == (0, "")
    assert text.stdout.endswith("\n\nNothing to do.\n")


async def test_without_the_management_api_the_rest_is_looked_at(in_process, doctor):
    """What could not be seen is named; who has named the management API is warned."""
    await in_process.arun("topology", "apply", "shop:app")
    nowhere = {"ASYNCQ_MANAGEMENT_URL": "http://127.0.0.1:1"}
    status, findings = await doctor("shop:app", environment=nowhere)
    assert status == 1
    assert severities(findings, "management") == ["warning"]
    assert "no management API answers at http://127.0.0.1:1" in findings["not-checked"][0]["seen"]
    assert "their arguments and bindings were not checked" in findings["topology"][0]["seen"]
    assert severities(findings, "unroutable") == ["ok"]


async def test_nothing_on_the_broker_is_an_error_for_an_app_and_a_note_without_one(doctor):
    """It is the app that needs something."""
    status, findings = await doctor("shop:app")
    assert status == 2
    assert severities(findings, "topology") == ["error"]
    assert "asyncq topology apply" in findings["topology"][0]["todo"]
    status, findings = await doctor()
    assert (status, severities(findings, "topology")) == (0, ["note"])


async def test_messages_that_nobody_takes_are_warnings_with_counts(in_process, broker_url, doctor):
    """In the queue, in its dead letters, in unroutable; the app's queues are found without the app too."""
    async with AsyncQ("shop", broker=broker_url) as app, await aio_pika.connect(broker_url) as connection:
        await in_process.arun("topology", "apply", "shop:app")
        for _ in range(2):
            await app.send("shop.greet", {"name": "x"}, queue="mail", reply=False)
        channel = await connection.channel()
        for queue in ("mail.dead", "asyncq.unroutable"):
            await channel.default_exchange.publish(aio_pika.Message(b"{}", message_id=queue, delivery_mode=2), queue)
    for arguments in (("shop:app",), ()):
        status, findings = await doctor(*arguments)
        assert status == 1
        assert "2 messages in queue 'mail', and no consumer" in findings["consumers"][0]["seen"]
        assert "1 message in mail.dead" in findings["dead-letters"][0]["seen"]
        assert "1 message in asyncq.unroutable" in findings["unroutable"][0]["seen"]


async def test_queues_that_are_not_as_they_should_be_are_errors(in_process, broker_url, doctor):
    """A classic dead-letter queue; a limit that is not the setting's."""
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        await channel.declare_queue("mail.dead", durable=True)
        await in_process.arun("topology", "apply", "shop:app", environment={"ASYNCQ_DELIVERY_LIMIT": "3"})
    status, findings = await doctor("shop:app")
    assert status == 2
    seen = [finding["seen"] for finding in findings["topology"]]
    assert "queue 'mail.dead': x-queue-type is 'classic', and asyncq needs 'quorum'" in seen
    assert "queue 'mail.dead': x-delivery-limit is not set, and asyncq needs 2000000000" in seen


async def test_another_delivery_limit_than_the_settings_is_an_error(in_process, doctor):
    """The app would be refused at its next start; without the app the broker's value is taken as it is."""
    await in_process.arun("topology", "apply", "shop:app", environment={"ASYNCQ_DELIVERY_LIMIT": "3"})
    status, findings = await doctor("shop:app")
    assert status == 2
    assert findings["topology"][0]["seen"] == "queue 'mail': x-delivery-limit is 3, and asyncq needs 50"
    status, findings = await doctor()
    assert (status, severities(findings, "topology")) == (0, ["ok"])


async def test_an_app_that_declares_nothing_is_told_to_have_the_ladder_declared(in_process, doctor):
    """And is well as soon as it stands."""
    declares_nothing = {"ASYNCQ_DECLARE": "false"}
    await in_process.arun("topology", "apply", "shop:app")
    status, findings = await doctor("shop:app", environment=declares_nothing)
    assert (status, severities(findings, "delays")) == (2, ["error"])
    assert "asyncq topology apply MODULE:APP --delays" in findings["delays"][0]["todo"]
    await in_process.arun("topology", "apply", "shop:app", "--delays", environment=declares_nothing)
    status, findings = await doctor("shop:app", environment=declares_nothing)
    assert (status, "delays" in findings) == (0, False)


async def test_a_lost_stream_of_cancellations_is_an_error_with_the_command_that_mends_it(
    in_process, node, broker_url, doctor
):
    """Declaring it tells nothing: it has to be read. Nothing of that is left on the broker."""
    await in_process.arun("topology", "apply", "shop:app")
    await asyncio.to_thread(lose_stream, node, "asyncq.cancellations", urlsplit(broker_url).path[1:])
    commands = set()
    for arguments in (("shop:app",), ()):
        status, findings = await doctor(*arguments)
        (found,) = findings["topology"]
        assert (status, found["severity"]) == (2, "error")
        assert "queue 'asyncq.cancellations' cannot be used: INTERNAL_ERROR" in found["seen"]
        commands.add(found["todo"].split("`")[1])
    program, *arguments = shlex.split(commands.pop())
    assert (program, commands) == ("rabbitmqctl", set())
    await asyncio.to_thread(node.rabbitmqctl, *arguments)
    await in_process.arun("topology", "apply", "shop:app")
    assert (await doctor("shop:app"))[0] == 0


async def test_a_policy_with_a_time_to_live_and_a_consumer_timeout_are_seen(in_process, node, broker_url, doctor):
    """The first is a warning, the second is compared with the time limits where the version knows it."""
    await in_process.arun("topology", "apply", "shop:app")
    vhost = quote(urlsplit(broker_url).path[1:], safe="")
    definition = {"message-ttl": 3_600_000}
    _, findings = await doctor("shop:app")
    knows_timeouts = not findings["version"][0]["seen"].startswith("RabbitMQ 3.1")
    if knows_timeouts:
        definition["consumer-timeout"] = 60_000
    node.api("PUT", f"/policies/{vhost}/short", {"pattern": "^mail$", "definition": definition, "apply-to": "queues"})

    async def seen():
        status, findings = await doctor("shop:app")
        return "policies" in findings and (status, findings)

    status, findings = await eventually(seen)
    assert "message-ttl=3600000" in findings["policies"][0]["seen"]
    assert severities(findings, "time-limits") == (["error"] if knows_timeouts else ["ok"])
    assert status == (2 if knows_timeouts else 1)


async def test_a_policy_that_brings_the_delivery_limit_of_dead_letters_down_is_an_error(
    in_process, node, broker_url, doctor
):
    """On each version the lower one of policy and argument holds: a few looks, and the letter is gone."""
    await in_process.arun("topology", "apply", "shop:app")
    vhost = quote(urlsplit(broker_url).path[1:], safe="")
    policy = {"pattern": r"^mail\.dead$", "definition": {"delivery-limit": 2}, "apply-to": "queues"}
    node.api("PUT", f"/policies/{vhost}/low", policy)

    async def seen():
        status, findings = await doctor("shop:app")
        return (status, severities(findings, "delivery-limits")) == (2, ["error"])

    await eventually(seen, 20)
    async with await aio_pika.connect(broker_url) as connection, connection.channel() as channel:
        await channel.default_exchange.publish(aio_pika.Message(b"{}"), "mail.dead")
        queue = await channel.get_queue("mail.dead", ensure=False)

        async def look():
            letter = await queue.get(fail=False)
            if letter is not None:
                await letter.reject(requeue=True)
            return letter

        await eventually(look)
        misses = []

        async def it_stays_away():
            misses.append(1) if await look() is None else misses.clear()
            return len(misses) >= 25  # half a second: what is given back is there again long before

        await eventually(it_stays_away, 20)


async def test_a_task_that_may_run_longer_than_the_default_consumer_timeout_is_a_warning(doctor, in_process):
    """What the broker's own is cannot be seen; that is said."""
    await in_process.arun("topology", "apply", "shop:app")
    status, findings = await doctor("shop:app", environment={"ASYNCQ_TIME_LIMIT_S": "7200"})
    assert status == 1
    assert severities(findings, "time-limits") == ["warning", "warning"]
    assert "no API tells" in findings["time-limits"][0]["seen"]


async def test_a_user_without_rights_is_told_which_lack(in_process, node, broker_url, doctor):
    """By the eyes of one who may read permissions; by their own, that these could not be read."""
    await in_process.arun("topology", "apply", "shop:app")
    parts = urlsplit(broker_url)
    node.api("PUT", "/users/doctor-reader", {"password": "secret", "tags": "administrator"})
    try:
        rights = {"configure": "^$", "write": "^mail$", "read": ".*"}
        node.api("PUT", f"/permissions/{parts.path[1:]}/doctor-reader", rights)
        url = urlunsplit(parts._replace(netloc=f"doctor-reader:secret@{parts.hostname}:{parts.port}"))
        status, findings = await doctor("shop:app", "--broker-url", url)
        assert status == 2
        # reply queues, queues for control, and the rest
        assert severities(findings, "permissions") == ["error", "warning", "warning", "note"]
        assert "may not write amq.default" in findings["permissions"][0]["seen"]
        node.api("PUT", "/users/doctor-reader", {"password": "secret", "tags": "management"})
        status, findings = await doctor("shop:app", "--broker-url", url)
        assert status == 0
        assert [one["seen"] for one in findings["not-checked"] if "Permissions of user 'doctor-reader'" in one["seen"]]
        assert [one["seen"] for one in findings["not-checked"] if "tag `monitoring`" in one["seen"]]
    finally:
        node.api("DELETE", "/users/doctor-reader")
