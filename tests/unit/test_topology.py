"""Names and plans: what asyncq declares on a broker, and in which order."""

import dataclasses

import aiormq.exceptions as amqp
import pytest

from asyncq.broker import QueueSpec
from asyncq.errors import AccessRefused, BrokerUnavailable, InvalidQueueName, TopologyMismatch
from asyncq.queue_names import MAX_APP_NAME_BYTES, MAX_QUEUE_NAME_BYTES
from asyncq.rabbitmq.declarations import BindingDeclaration, ExchangeDeclaration, Plan, QueueDeclaration
from asyncq.rabbitmq.refusals import refusal
from asyncq.rabbitmq.topology import (
    DELAY_LEVELS,
    Names,
    base_plan,
    dead_letter_plan,
    destination_binding,
    queue_plan,
    reply_queue_declaration,
)

NAMES = Names()
SPEC = QueueSpec("mail", delivery_limit=7)


def exchange(plan: Plan, name: str) -> ExchangeDeclaration:
    (found,) = [part for part in plan if isinstance(part, ExchangeDeclaration) and part.name == name]
    return found


def queue(plan: Plan, name: str) -> QueueDeclaration:
    (found,) = [part for part in plan if isinstance(part, QueueDeclaration) and part.name == name]
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NAMES.tasks_exchange, "asyncq.tasks"),
        (NAMES.dead_exchange, "asyncq.dead"),
        (NAMES.unroutable, "asyncq.unroutable"),
        (NAMES.delay_enter, "asyncq.delay.v1.enter"),
        (NAMES.delay_deliver, "asyncq.delay.v1.deliver"),
        (NAMES.delay_level(3), "asyncq.delay.v1.level3"),
        (NAMES.delay_level(-1), "asyncq.delay.v1.deliver"),
        (NAMES.delay_queue(3, 10), "asyncq.delay.v1.level3.a"),
        (NAMES.dead_queue("mail"), "mail.dead"),
        (Names("shop").tasks_exchange, "shop.tasks"),
        (Names("shop").delay_enter, "shop.delay.v1.enter"),
    ],
)
def test_names_are_these(name, expected):
    """The names on the broker are a contract: other versions and other languages use them."""
    assert name == expected


def test_a_reply_queue_has_another_name_each_time_and_shows_whose_it_is():
    """Two processes, or two openings of one, never share a reply queue."""
    first, second = NAMES.reply_queue("shop"), NAMES.reply_queue("shop")
    assert first != second
    assert first.startswith("asyncq.reply.shop.")


def test_the_longest_reply_queue_name_fits(monkeypatch):
    """RabbitMQ allows 255 bytes, whatever the host is called."""
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 300)
    assert len(Names("n" * 40).reply_queue("a" * MAX_APP_NAME_BYTES)) <= 255


def test_a_reply_queue_is_classic_and_expires():
    """It outlives a dropped connection, not its process."""
    assert reply_queue_declaration("r", 2.5).arguments == {"x-queue-type": "classic", "x-expires": 2500}


@pytest.mark.parametrize("name", [NAMES.tasks_exchange, NAMES.delay_enter])
def test_what_publishers_use_has_no_alternate_exchange(name):
    """With an alternate exchange the broker counts a message as routed, and `mandatory` tells the sender nothing."""
    assert "alternate-exchange" not in exchange(base_plan(NAMES), name).arguments


@pytest.mark.parametrize("name", [NAMES.dead_exchange, NAMES.delay_deliver])
def test_what_the_broker_itself_publishes_to_has_an_alternate_exchange(name):
    """A confirmed message that finds no queue is parked, not dropped."""
    assert exchange(base_plan(NAMES), name).arguments == {"alternate-exchange": "asyncq.unroutable"}


def test_exchange_types_are_these():
    """Direct for one queue a key, topic for digits, fanout for the last resort, and for all workers at once."""
    types = {part.name: part.type for part in base_plan(NAMES) if isinstance(part, ExchangeDeclaration)}
    assert types == {
        "asyncq.unroutable": "fanout",
        "asyncq.delay.v1.deliver": "topic",
        "asyncq.delay.v1.enter": "topic",
        "asyncq.dead": "direct",
        "asyncq.tasks": "direct",
        "asyncq.control": "fanout",
    }


def test_a_task_queue_is_replicated_and_dead_letters_at_least_once():
    """Each argument is there because without it a message can be lost, blocked or loop."""
    assert queue(queue_plan(NAMES, SPEC), "mail").arguments == {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": "asyncq.dead",
        "x-dead-letter-routing-key": "mail",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": 7,
    }


@pytest.mark.parametrize("name", ["mail.dead", "asyncq.unroutable"])
def test_a_queue_that_only_keeps_cannot_be_destroyed_by_looking(name):
    """Looks count as deliveries: the limit is one that nobody reaches, and nothing is thrown out."""
    kept = queue(base_plan(NAMES) + queue_plan(NAMES, SPEC), name)
    assert kept.arguments == {"x-queue-type": "quorum", "x-delivery-limit": 2_000_000_000}


def test_a_task_queue_has_three_bindings():
    """For tasks, for its dead letters, and for what the delay ladder delivers."""
    bindings = [part for part in queue_plan(NAMES, SPEC) if isinstance(part, BindingDeclaration)]
    assert bindings == [
        BindingDeclaration("asyncq.dead", "mail", "mail.dead"),
        BindingDeclaration("asyncq.delay.v1.deliver", "*.*.*.*.*.*.*.*.mail", "mail"),
        BindingDeclaration("asyncq.tasks", "mail", "mail"),
    ]


def test_the_ladders_last_binding_has_a_star_for_each_digit_and_no_hash():
    """A leading `#` would deliver what is for the queue `a.mail` to the queue `mail` as well."""
    key = destination_binding(NAMES, "mail").key
    assert key.count("*") == DELAY_LEVELS
    assert "#" not in key


@pytest.mark.parametrize("plan", [base_plan(NAMES), base_plan(NAMES) + queue_plan(NAMES, SPEC)])
def test_a_plan_names_nothing_before_it_stands(plan):
    """Bindings, dead-letter and alternate exchanges are declared after what they lead to."""
    standing: set[tuple[str, str]] = set()
    for part in plan:
        match part:
            case BindingDeclaration(source, _, destination, kind):
                assert {("exchange", source), (kind, destination)} <= standing
            case ExchangeDeclaration(name, _, arguments):
                alternate = arguments.get("alternate-exchange")
                assert alternate is None or ("exchange", alternate) in standing
                standing.add(("exchange", name))
            case QueueDeclaration(name, arguments):
                target = arguments.get("x-dead-letter-exchange")
                assert target is None or ("exchange", target) in standing
                standing.add(("queue", name))


def test_the_dead_letter_queue_can_be_planned_alone():
    """It is declared again when somebody has deleted it, without bringing back a deleted task queue."""
    plan = dead_letter_plan(NAMES, "mail")
    assert [part.name for part in plan if isinstance(part, QueueDeclaration)] == ["mail.dead"]


@pytest.mark.parametrize("name", ["", "a b", "mail#", "mail.*", "ü", "asyncq.mail", "mail.dead", "amq.mail", "a" * 300])
def test_a_name_that_cannot_be_carried_is_refused_in_the_plan(name):
    """Nothing is declared under a name that the ladder would misread or the broker refuses."""
    with pytest.raises(InvalidQueueName):
        queue_plan(NAMES, QueueSpec(name))


def test_a_name_in_the_apps_own_namespace_is_refused():
    """The prefix that is kept for asyncq is the configured one."""
    with pytest.raises(InvalidQueueName, match="ASYNCQ_NAMESPACE"):
        queue_plan(Names("shop"), QueueSpec("shop.mail"))


def test_the_longest_queue_name_fits_into_every_key_and_name():
    """255 bytes is AMQP's limit for names and routing keys."""
    plan = queue_plan(NAMES, QueueSpec("q" * MAX_QUEUE_NAME_BYTES))
    for part in plan:
        texts = [value for value in dataclasses.asdict(part).values() if isinstance(value, str)]
        assert all(len(text.encode()) <= 255 for text in texts)


# --- refusals


MISMATCHES = [
    (  # 4.3 names both types
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'mail' in vhost '/': "
            "received 'quorum' but current is 'classic'"
        ),
        ["Queue 'mail'", "'x-queue-type' is 'classic' there", "needs 'quorum'", "--vhost / delete_queue mail"],
    ),
    (  # 3.10 has no word for the default
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'mail' in vhost 'my vhost': "
            "received the value 'quorum' of type 'longstr' but current is none"
        ),
        ["'my vhost'", "'x-queue-type' is not set there", "--vhost 'my vhost' delete_queue mail", "needs 'quorum'"],
    ),
    (
        (
            "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'mail' in vhost '/': "
            "received '50' but current is '20'"
        ),
        ["'x-delivery-limit' is '20' there", "needs '50'", "ASYNCQ_DELIVERY_LIMIT"],
    ),
    (
        (
            "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'asyncq.tasks' in vhost '/': "
            "received 'direct' but current is 'topic'"
        ),
        ["Exchange 'asyncq.tasks'", "'type' is 'topic' there", "needs 'direct'", "ASYNCQ_NAMESPACE"],
    ),
]


@pytest.mark.parametrize(("said", "expected"), MISMATCHES)
def test_a_mismatch_names_object_argument_both_values_and_the_remedy(said, expected):
    """The broker's texts are those of 3.10 and 4.3."""
    error = refusal(amqp.ChannelPreconditionFailed(said), "queue", "mail", "declaring queue 'mail'")
    assert isinstance(error, TopologyMismatch)
    assert all(part in str(error) for part in expected), str(error)


def test_a_mismatch_in_other_words_is_passed_on():
    """Whatever the broker says reaches the user."""
    said = "PRECONDITION_FAILED - invalid arg 'x-delivery-limit' for queue 'mail' in vhost '/'"
    error = refusal(amqp.ChannelPreconditionFailed(said), "queue", "mail", "declaring queue 'mail'")
    assert isinstance(error, TopologyMismatch)
    assert said in str(error)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (  # 3.10
            "ACCESS_REFUSED - access to queue 'mail' in vhost '/' refused for user 'shop'",
            ["User 'shop'", "configure, write or read on queue 'mail'", "set_permissions --vhost / shop"],
        ),
        (  # 4.3
            "ACCESS_REFUSED - configure access to queue 'mail' in vhost '/' refused for user 'shop'",
            ["User 'shop'", "permission configure on queue 'mail'", "set_permissions --vhost / shop"],
        ),
        ("ACCESS_REFUSED - queue name 'amq.x' contains reserved prefix 'amq.*'", ["reserved prefix"]),
    ],
)
def test_a_missing_permission_is_named_with_the_command_that_grants_it(said, expected):
    """The broker's texts are those of 3.10 and 4.3."""
    error = refusal(amqp.ChannelAccessRefused(said), "queue", "mail", "declaring queue 'mail'")
    assert isinstance(error, AccessRefused)
    assert all(part in str(error) for part in expected), str(error)


def test_a_queue_that_is_exclusive_to_another_connection_is_a_mismatch():
    """It exists, and we cannot have it."""
    error = refusal(amqp.ChannelLockedResource("RESOURCE_LOCKED - cannot obtain"), "queue", "mail", "declaring")
    assert isinstance(error, TopologyMismatch)
    assert "exclusive" in str(error)


def test_a_lost_connection_is_no_refusal():
    """Trying again may help, so it is said so."""
    assert isinstance(refusal(amqp.ConnectionClosed(320, "bye"), "queue", "mail", "declaring"), BrokerUnavailable)
