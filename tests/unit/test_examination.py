"""Comparing plan and broker, and what doctor makes of it: pure functions over plain values."""

import http.server
import threading
from dataclasses import replace

import pytest
from yarl import URL

from asyncq.broker import QueueSpec
from asyncq.errors import AccessRefused, BrokerUnavailable, ConfigurationError
from asyncq.rabbitmq.declarations import BindingDeclaration, ExchangeDeclaration, QueueDeclaration
from asyncq.rabbitmq.delay_routing import MAX_UNITS, path_plan
from asyncq.rabbitmq.diagnosis import diagnose, found_queues, plan_of
from asyncq.rabbitmq.examination import Grant, compare, missing_grants
from asyncq.rabbitmq.findings import Patient
from asyncq.rabbitmq.ladder_plan import ladder_plan
from asyncq.rabbitmq.management import ManagementApi, management_url, path_of
from asyncq.rabbitmq.management_reading import completed
from asyncq.rabbitmq.standing import Node, Permissions, SeenExchange, SeenQueue, Standing
from asyncq.rabbitmq.topology import Names

NAMES = Names()
SPEC = QueueSpec("mail")
PLAN = plan_of(NAMES, [SPEC])
ALL = Permissions(".*", ".*", ".*")
PATIENT = Patient(NAMES, "shop", (SPEC,), {"mail": ("shop.greet", 1500.0)})


def standing(plan=PLAN, *, version="4.3.6", **changed):
    """What is seen where a plan stands exactly as it should."""
    queues = {
        part.name: SeenQueue(part.name, 0, 1, None, "quorum", durable=True, arguments=dict(part.arguments))
        for part in plan
        if isinstance(part, QueueDeclaration)
    }
    exchanges = {
        part.name: SeenExchange(part.name, part.type, durable=True, arguments=dict(part.arguments))
        for part in plan
        if isinstance(part, ExchangeDeclaration)
    }
    seen = Standing(
        where="amqp://shop:***@h/",
        user="shop",
        vhost="/",
        product="RabbitMQ",
        version=version,
        queues=queues,
        exchanges=exchanges,
        bindings=frozenset(part for part in plan if isinstance(part, BindingDeclaration)),
        permissions=ALL,
        nodes=[Node("rabbit@h", running=True)],
        alarms=[],
        complete=True,
    )
    return replace(seen, **changed)


def with_queue(name, seen=None, **changed):
    """The same, but for one queue; None as `name`'s value removes it."""
    seen = seen or standing()
    return replace(seen, queues={**seen.queues, name: replace(seen.queues[name], **changed)})


def without(seen, name):
    """The same without a queue and an exchange of this name."""
    return replace(
        seen,
        queues={key: queue for key, queue in seen.queues.items() if key != name},
        exchanges={key: exchange for key, exchange in seen.exchanges.items() if key != name},
    )


def findings(seen, patient=PATIENT):
    """The findings that are not `ok`, as (severity, check)."""
    return [(one.severity, one.check) for one in diagnose(patient, seen) if one.severity != "ok"]


# --- comparing


def test_what_stands_as_planned_has_no_difference():
    """Not one false alarm."""
    assert compare(PLAN, standing()) == []


def test_everything_that_is_missing_is_named():
    """On an empty virtual host: the whole plan, in its order."""
    found = compare(PLAN, standing(()))
    assert [one.state for one in found] == ["missing"] * len(PLAN)
    assert str(found[1]) == "queue 'asyncq.unroutable' is missing"
    assert all("asyncq topology apply" in one.remedy for one in found)


def test_without_the_management_api_only_existence_is_compared():
    """What is unknown is no difference."""
    queues = {name: SeenQueue(name, 0, 0) for name in standing().queues}
    exchanges = {name: SeenExchange(name) for name in standing().exchanges}
    bare = standing(queues=queues, exchanges=exchanges, bindings=None, complete=False)
    assert compare(PLAN, bare) == []
    assert [str(one) for one in compare(PLAN, without(bare, "mail.dead"))] == ["queue 'mail.dead' is missing"]


@pytest.mark.parametrize(
    ("changed", "argument", "wanted", "found"),
    [
        ({"x-delivery-limit": 20}, "x-delivery-limit", 50, 20),
        ({"x-dead-letter-routing-key": None}, "x-dead-letter-routing-key", "mail", None),
        ({"x-max-length": 10}, "x-max-length", None, 10),
        ({"x-consumer-timeout": 10}, "x-consumer-timeout", None, 10),
    ],
)
def test_another_argument_is_named_with_both_values(changed, argument, wanted, found):
    """Also one that is not set, and one that asyncq does not set."""
    arguments = {**standing().queues["mail"].arguments, **changed}
    given = {name: value for name, value in arguments.items() if value is not None}
    (one,) = compare(PLAN, with_queue("mail", arguments=given))
    assert (one.kind, one.name, one.state) == ("queue", "mail", "different")
    assert (one.argument, one.wanted, one.found) == (argument, wanted, found)
    assert "delete_queue mail" in one.remedy


def test_an_argument_that_rabbitmq_does_not_compare_is_no_difference():
    """Declaring succeeds beside it."""
    arguments = {**standing().queues["mail"].arguments, "x-foo": 1}
    assert compare(PLAN, with_queue("mail", arguments=arguments)) == []


def test_the_setting_for_the_limit_is_named_for_a_task_queue_and_not_for_one_that_keeps():
    """`mail.dead` has no setting; there the danger is named."""
    arguments = {**standing().queues["mail"].arguments, "x-delivery-limit": 20}
    (task_queue,) = compare(PLAN, with_queue("mail", arguments=arguments))
    assert "ASYNCQ_DELIVERY_LIMIT" in task_queue.remedy
    (keeping,) = compare(PLAN, with_queue("mail.dead", arguments={"x-queue-type": "quorum"}))
    assert str(keeping) == "queue 'mail.dead': x-delivery-limit is not set, and asyncq needs 2000000000"
    assert "ASYNCQ_DELIVERY_LIMIT" not in keeping.remedy
    assert "destroy" in keeping.remedy


def test_a_classic_queue_is_known_by_its_type_whatever_its_arguments_say():
    """A virtual host's default type makes one without the argument."""
    seen = with_queue("mail.dead", type="classic", arguments={"x-delivery-limit": 2_000_000_000})
    (one,) = compare(PLAN, seen)
    assert str(one) == "queue 'mail.dead': x-queue-type is 'classic', and asyncq needs 'quorum'"


def test_a_queue_that_the_broker_will_not_show_is_no_missing_one():
    """Exclusive to somebody, or its node is down."""
    (one,) = compare(PLAN, with_queue("mail", trouble="RESOURCE_LOCKED - ...", arguments=None))
    assert str(one) == "queue 'mail' cannot be used: RESOURCE_LOCKED - ..."


def test_exchanges_differ_in_type_and_alternate_exchange():
    """Other arguments of exchanges are not compared by RabbitMQ."""
    seen = standing()
    odd = {
        "asyncq.tasks": SeenExchange("asyncq.tasks", "topic", durable=True, arguments={"x-foo": 1}),
        "asyncq.dead": SeenExchange("asyncq.dead", "direct", durable=True, arguments={}),
    }
    found = compare(PLAN, replace(seen, exchanges={**seen.exchanges, **odd}))
    assert [(one.name, one.argument, one.found) for one in found] == [
        ("asyncq.dead", "alternate-exchange", None),
        ("asyncq.tasks", "type", "topic"),
    ]


def test_a_missing_binding_is_a_difference():
    """Sends would be returned, though exchange and queue stand."""
    binding = BindingDeclaration("asyncq.tasks", "mail", "mail")
    (one,) = compare(PLAN, standing(bindings=standing().bindings - {binding}))
    assert (one.kind, one.state) == ("binding", "missing")
    assert "'asyncq.tasks' with key 'mail'" in str(one)


# --- the whole ladder


@pytest.mark.parametrize("units", [1, 0xF, 0x10, 0x4D2, 0x1020_0304, 0x8000_0000, MAX_UNITS])
def test_the_whole_ladder_holds_every_path(units):
    """Whatever the delay."""
    assert set(path_plan(NAMES, units)) <= set(ladder_plan(NAMES))


def test_the_whole_ladder_has_120_queues_and_its_entries_come_last():
    """Nothing is declared twice; nothing gets in before all of it stands."""
    plan = ladder_plan(NAMES)
    assert len(plan) == len(set(plan))
    assert sum(isinstance(part, QueueDeclaration) and ".level" in part.name for part in plan) == 120
    entries = [isinstance(part, BindingDeclaration) and part.exchange == NAMES.delay_enter for part in plan]
    assert sum(entries) == 120
    assert entries == sorted(entries)


def test_no_binding_of_the_whole_ladder_comes_before_its_ends():
    """A broker refuses it otherwise."""
    stood = set()
    for part in ladder_plan(NAMES):
        if isinstance(part, BindingDeclaration):
            assert {part.exchange, part.destination} <= stood
        else:
            stood.add(part.name)


# --- permissions


def test_a_user_who_may_do_everything_lacks_nothing():
    """`.*` matches all names."""
    assert missing_grants(PLAN, ALL) == []


def test_an_empty_pattern_matches_nothing():
    """As RabbitMQ takes it: not everything, as Python would."""
    lacking = missing_grants(PLAN, Permissions("", ".*", ".*"))
    assert Grant("configure", "mail") in lacking
    assert {grant.permission for grant in lacking} == {"configure"}


def test_what_is_needed_to_publish_consume_and_dead_letter_is_known():
    """A user who may touch its own queue only."""
    lacking = missing_grants(PLAN, Permissions("^mail", "^mail", "^mail"))
    assert {Grant("write", "asyncq.tasks"), Grant("write", "amq.default"), Grant("write", "asyncq.dead")} <= {*lacking}
    assert not [grant for grant in lacking if grant.name.startswith("mail")]


# --- diagnosing


def test_a_healthy_broker_has_no_findings():
    """On the current version: nothing to do."""
    assert findings(standing()) == []


@pytest.mark.parametrize(
    ("version", "severity"),
    [("3.9.29", "error"), ("3.10.8", "note"), ("4.2.5", "note"), ("4.3.6", "ok"), ("4.10.1", "note"), ("?", "warning")],
)
def test_the_version_is_judged(version, severity):
    """Unsupported, old, current, newer than known, unknown."""
    found = {one.check: one.severity for one in diagnose(PATIENT, standing(version=version))}
    assert found["version"] == severity


@pytest.mark.parametrize(("version", "told"), [("3.10.8", True), ("3.13.7", True), ("4.0.5", False)])
def test_of_rabbitmq_3_it_is_told_how_many_slots_a_queue_may_have(version, told):
    """Its quorum queues mix up the messages of more consumers."""
    (found,) = (one for one in diagnose(PATIENT, standing(version=version)) if one.check == "version")
    assert ("at most 32 slots" in found.todo) is told


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"alarms": [("rabbit@a", "memory")]}, "rabbit@a has its memory alarm on"),
        ({"alarms": [("rabbit@a", "disk")]}, "rabbit@a has its disk alarm on"),
        ({"nodes": [Node("rabbit@a", running=True, partitions=("rabbit@b",))]}, "cut off from rabbit@b"),
        ({"nodes": [Node("rabbit@a", running=False)]}, "does not run"),
    ],
)
def test_a_node_in_trouble_is_an_error(changed, said):
    """Publishing waits, or the cluster is in parts."""
    (one,) = [one for one in diagnose(PATIENT, standing(**changed)) if one.severity == "error"]
    assert said in one.seen


def test_dead_letters_unroutable_messages_and_a_queue_without_consumers_are_warnings():
    """With counts, and what to do."""
    seen = with_queue("mail", ready=3, consumers=0)
    seen = with_queue("mail.dead", seen, ready=1)
    seen = with_queue("asyncq.unroutable", seen, ready=2)
    found = [one for one in diagnose(PATIENT, seen) if one.severity == "warning"]
    assert [one.check for one in found] == ["unroutable", "consumers", "dead-letters"]
    assert "2 messages in asyncq.unroutable" in found[0].seen
    assert "3 messages in queue 'mail', and no consumer" in found[1].seen
    assert "1 message in mail.dead" in found[2].seen
    assert "asyncq dead list mail" in found[2].todo


def test_an_empty_queue_without_a_consumer_is_no_finding():
    """A worker that is scaled to zero at night."""
    assert findings(with_queue("mail", ready=0, consumers=0)) == []


def test_missing_objects_are_one_error_and_each_different_one_another():
    """A hundred lines of the same kind help nobody."""
    seen = with_queue("mail", type="classic", arguments={})
    seen = without(without(seen, "asyncq.dead"), "mail.dead")
    found = [one for one in diagnose(PATIENT, seen) if one.severity == "error"]
    assert found[0].seen == "missing: exchange 'asyncq.dead', queue 'mail.dead'"
    assert len(found) > 2
    assert all("queue 'mail': " in one.seen for one in found[1:])


def test_a_hole_in_the_ladder_is_found():
    """A queue stands, and a binding or an exchange behind it does not; of a ladder that is not used none is missed."""
    ladder = standing((*PLAN, *path_plan(NAMES, 0x4D2)))
    assert findings(ladder) == []
    pass_on = next(
        part for part in path_plan(NAMES, 0x4D2) if isinstance(part, BindingDeclaration) and part.kind == "exchange"
    )
    (one,) = [
        one
        for one in diagnose(PATIENT, replace(ladder, bindings=ladder.bindings - {pass_on}))
        if one.severity == "error"
    ]
    assert "asyncq.delay.v1.level" in one.seen
    assert ("error", "topology") in findings(without(ladder, "asyncq.delay.v1.level1"))


def test_an_app_that_may_not_declare_gets_a_note_and_a_warning_for_its_replies():
    """It works where everything stands; results and control need queues of its own."""
    note, warning = ("note", "permissions"), ("warning", "permissions")
    for own, expected in (
        ("^$", [warning, warning, note]),
        (r"^asyncq\.reply\.", [warning, note]),
        (r"^asyncq\.(reply|control)\.", [note]),
    ):
        assert findings(standing(permissions=Permissions(own, ".*", ".*"))) == expected


def test_an_app_that_declares_nothing_needs_the_whole_ladder():
    """Its retries go by it too; an app that declares makes what a delay needs."""
    patient = replace(PATIENT, declares=False)
    assert findings(standing(), patient) == [("error", "delays")]
    assert findings(standing(), PATIENT) == []
    assert findings(standing((*PLAN, *ladder_plan(NAMES))), patient) == []


def test_an_app_that_may_not_publish_gets_an_error():
    """It cannot work."""
    (one,) = [
        one for one in diagnose(PATIENT, standing(permissions=Permissions(".*", "", ".*"))) if one.severity == "error"
    ]
    assert "may not write amq.default" in one.seen
    assert "and " in one.seen
    assert "set_permissions" in one.todo


def limited(limit_s, seen):
    """The finding about a task's time limit."""
    patient = replace(PATIENT, limits={"mail": ("shop.greet", limit_s)})
    return next(one for one in diagnose(patient, seen) if one.check == "time-limits")


def test_a_time_limit_below_the_default_consumer_timeout_is_well_as_far_as_can_be_seen():
    """That the broker's own is not told is said."""
    found = limited(1500, standing())
    assert (found.severity, "no API tells" in found.seen) == ("ok", True)


def test_a_longer_time_limit_is_a_warning_while_no_timeout_can_be_seen():
    """The default is taken; on old versions only the configuration helps."""
    found = limited(7200, standing())
    assert found.severity == "warning"
    assert """'^mail$' '{"consumer-timeout": 7500000}'""" in found.todo
    assert "rabbitmq.conf" in limited(7200, standing(version="3.10.8")).todo


def test_a_policy_that_is_long_enough_makes_it_well():
    """And is not believed where the version does not know it."""
    seen = with_queue("mail", policy={"consumer-timeout": 7_500_000})
    assert limited(7200, seen).severity == "ok"
    assert limited(7200, replace(seen, version="3.11.2")).severity == "warning"


def test_a_timeout_that_is_too_short_is_an_error():
    """Known, so the task will run again and again. The shorter one of argument and policy counts."""
    arguments = {**standing().queues["mail"].arguments, "x-consumer-timeout": 60_000}
    found = limited(90, with_queue("mail", policy={"consumer-timeout": 7_500_000}, arguments=arguments))
    assert found.severity == "error"
    assert "60 s" in found.seen


def test_a_policy_that_makes_messages_leave_is_a_warning():
    """A time to live on a task queue loses tasks to the dead letters without a run."""
    (one,) = [
        one
        for one in diagnose(PATIENT, with_queue("mail", policy={"message-ttl": 5, "consumer-timeout": 9_999_999}))
        if one.severity != "ok"
    ]
    assert (one.severity, one.check) == ("warning", "policies")
    assert "message-ttl=5" in one.seen
    assert "consumer-timeout" not in one.seen


@pytest.mark.parametrize(
    ("queue", "limit", "severity"),
    [
        ("mail", 20, "warning"),
        ("mail", 50, "ok"),
        ("mail", -1, "ok"),
        ("mail.dead", 20, "error"),
        ("asyncq.unroutable", 20, "error"),
        ("other", 1, "ok"),
    ],
)
def test_a_policy_that_brings_a_delivery_limit_down_is_told(queue, limit, severity):
    """RabbitMQ takes the lower one: looking at dead letters would then throw them away."""
    seen = standing()
    known = seen.queues.get(queue) or SeenQueue(queue, arguments={})
    seen = replace(seen, queues={**seen.queues, queue: replace(known, policy={"delivery-limit": limit})})
    (one,) = [one for one in diagnose(PATIENT, seen) if one.check == "delivery-limits"]
    assert one.severity == severity
    assert severity == "ok" or f"a delivery limit of {limit}" in one.seen


def test_what_could_not_be_read_is_a_note_each():
    """Silence never means well."""
    assert findings(standing(unread=("a", "b"))) == [("note", "not-checked")] * 2


def test_the_task_queues_of_a_broker_are_known_by_where_they_dead_letter_to():
    """With their own delivery limit, so that no setting of this machine is held against them."""
    seen = with_queue("mail", arguments={**standing().queues["mail"].arguments, "x-delivery-limit": 7})
    seen = replace(seen, queues={**seen.queues, "other": SeenQueue("other", arguments={})})
    assert found_queues(NAMES, seen) == (QueueSpec("mail", 7),)
    assert found_queues(Names("two"), seen) == ()


def test_a_broker_without_anything_of_asyncq_is_no_error_when_no_app_was_named():
    """RabbitMQ's own exchanges are not ours."""
    nobody = Patient(NAMES, None, (), {})
    bare = standing((), exchanges={"amq.direct": SeenExchange("amq.direct")})
    assert findings(bare, nobody) == [("note", "topology")]
    assert ("error", "topology") in findings(bare)


# --- the management API's address


@pytest.mark.parametrize(
    ("broker", "url"),
    [
        ("amqp://u:p@h/v", "http://h:15672"),
        ("amqp://h:1234", "http://h:15672"),
        ("amqps://u:p@h:5671/v", "https://h:15671"),
        ("amqp://[::1]:5672/", "http://[::1]:15672"),
    ],
)
def test_the_management_api_is_looked_for_beside_the_broker(broker, url):
    """With TLS where the broker has it: the password goes there too."""
    assert management_url(URL(broker)) == url


def test_a_management_url_may_have_a_user_of_its_own_and_a_path():
    """Behind a reverse proxy, for example. The password is not in what is shown."""
    api = ManagementApi("https://ops:a%2Fb@proxy/rabbit/", URL("amqp://u:p@h"), 1)
    assert (api.url, api.user) == ("https://proxy/rabbit", "ops")
    assert ManagementApi("http://h:15672", URL("amqp://u:p@h"), 1).user == "u"


@pytest.mark.parametrize("url", ["h:15672", "ftp://h", "http://", "http://h:99999999", "http://h:secret@x:y"])
def test_a_management_url_that_cannot_be_read_is_refused_without_showing_it(url):
    """It may hold a password."""
    with pytest.raises(ConfigurationError, match="http://host:15672") as caught:
        ManagementApi(url, URL("amqp://u:p@h"), 1)
    assert "secret" not in str(caught.value)


def test_names_are_percent_encoded():
    """The virtual host "/" is one of them."""
    assert path_of("/", "a b", "ü#?") == "/%2F/a%20b/%C3%BC%23%3F"


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers as the test says."""

    def do_GET(self):
        """Answer."""
        status, headers, body = self.server.answers.pop(0) if self.server.answers else self.server.answer
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def server():
    """Something that listens where the management API should be."""
    with http.server.HTTPServer(("127.0.0.1", 0), Scripted) as listening:
        listening.asked, listening.answers = [], []
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening
        listening.shutdown()
        thread.join()


def api_of(server):
    """The management API at the test's server."""
    return ManagementApi(f"http://127.0.0.1:{server.server_port}", URL("amqp://u:p@h"), 5)


async def test_an_answer_is_read_with_user_and_password(server):
    """As HTTP's basic authentication wants them."""
    server.answer = (200, {}, b'{"a": 1}')
    assert await api_of(server).get("/overview") == {"a": 1}
    assert server.asked == [("/api/overview", "Basic dTpw")]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((401, {}, b'{"reason":"Not management user"}'), AccessRefused, "tag `management`"),
        ((401, {}, b'{"reason":"Not monitor user"}'), AccessRefused, "tag `monitoring`"),
        ((401, {}, b'{"reason":"Login failed"}'), AccessRefused, "does not accept user 'u'"),
        ((404, {}, b""), BrokerUnavailable, "404"),
        ((503, {}, b"<html>"), BrokerUnavailable, "503"),
        ((200, {}, b"<html>"), BrokerUnavailable, "no JSON"),
    ],
)
async def test_what_is_no_answer_is_said_in_words(server, answer, kind, said):
    """The wrong user, the wrong place."""
    server.answer = answer
    with pytest.raises(kind, match=said):
        await api_of(server).get("/overview")


async def test_an_api_that_has_stumbled_is_asked_again(server):
    """RabbitMQ 3.10 answers 500 for a moment to who lists queues while a stream is being declared."""
    server.answers = [(500, {}, b""), (500, {}, b"")]
    server.answer = (200, {}, b"[]")
    assert await api_of(server).get("/queues") == []
    assert len(server.asked) == 3
    server.answer = (500, {}, b"")
    with pytest.raises(BrokerUnavailable, match="says 500"):
        await api_of(server).get("/queues")


async def test_a_failed_health_check_is_an_answer(server):
    """RabbitMQ says by 503 that there are alarms, and which."""
    server.answer = (503, {}, b'{"status":"failed","alarms":[{"node":"rabbit@a","resource":"disk"}]}')
    assert (await api_of(server).get("/health/checks/alarms"))["status"] == "failed"


async def test_alarms_are_read_from_the_health_check():
    """What the nodes tell of them is seconds old."""

    class Api:
        url = "http://h:15672"

        async def get(self, path):
            health = {"status": "failed", "alarms": [{"node": "rabbit@a", "resource": "disk"}]}
            told = {"/overview": {}, "/health/checks/alarms": health, "/permissions/%2F/shop": {"read": ".*"}}
            return told.get(path, [])

    seen = await completed(standing(alarms=None), Api(), "here", everything=True)
    assert list(seen.alarms) == [("rabbit@a", "disk")]
    assert seen.permissions == Permissions("", "", ".*")
    assert seen.unread == ()


async def test_a_redirect_is_not_followed(server):
    """The password stays where it was sent."""
    server.answer = (302, {"Location": f"http://127.0.0.1:{server.server_port}/elsewhere"}, b"")
    with pytest.raises(BrokerUnavailable, match="302"):
        await api_of(server).get("/overview")
    assert [path for path, _ in server.asked] == ["/api/overview"]


@pytest.mark.parametrize(
    ("overview", "another"),
    [
        ({"cluster_name": "here", "rabbitmq_version": "4.3.6"}, False),
        ({"cluster_name": "there", "rabbitmq_version": "4.3.6"}, True),
        ({"cluster_name": "here", "rabbitmq_version": "3.10.8"}, True),
    ],
)
async def test_another_brokers_management_api_is_not_believed(overview, another):
    """Port 15672 of a machine with two brokers is one of theirs."""

    class Api:
        url = "http://h:15672"

        async def get(self, path):
            return overview if path == "/overview" else []

    seen = await completed(standing(complete=False), Api(), "here", everything=False)
    assert seen.complete is not another
    assert [reason for reason in seen.unread if "belongs to another broker" in reason] == list(seen.unread[:+another])
