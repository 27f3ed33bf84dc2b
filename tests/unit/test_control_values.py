"""Names of workers, questions and answers as values; and the tables that are made of answers."""

import pytest

from asyncq.cli.control_text import active_text, drain_text, not_ended, ping_text, queue_text, remarks, stats_text
from asyncq.control import WorkerName
from asyncq.control_values import (
    Answers,
    Drained,
    Draining,
    Order,
    PoolStats,
    QueueState,
    QueueView,
    RunningView,
    WorkerPing,
    WorkerStatistics,
    WorkerTasks,
)
from asyncq.queue_names import MAX_APP_NAME_BYTES
from asyncq.rabbitmq.topology import Names

NAME = WorkerName("shop.eu", "web-1.example.org", 4711, "a1b2c3d4")
WHO = {"name": NAME.name, "app": NAME.app, "host": NAME.host, "pid": NAME.pid}


def test_a_name_is_read_as_it_was_written():
    """Also from the queue by which the broker tells of it."""
    assert WorkerName.read(str(NAME)) == NAME
    names = Names("ns")
    assert names.worker_of_roll(names.control_roll(NAME, 12)) == NAME
    assert names.worker_of_roll(names.control_inbox(NAME, 12)) is None
    for text in ("", "a:b", "a:b:c:d", "a:b:1:d:e"):
        assert WorkerName.read(text) is None
        assert names.worker_of_roll(f"ns.control.roll.{text}") is None


def test_the_longest_names_of_queues_fit():
    """RabbitMQ allows 255 bytes."""
    longest = WorkerName("a" * MAX_APP_NAME_BYTES, "h" * 300, 4_194_304, "a1b2c3d4")
    names = Names("n" * 40)
    for queue in (names.control_inbox(longest, 10**9), names.control_roll(longest, 10**9)):
        assert len(queue.encode()) <= 255


@pytest.mark.parametrize(
    ("whom", "meant"),
    [
        ({}, True),
        ({"app": "shop.eu"}, True),
        ({"app": "shop"}, False),
        ({"host": "web-1.example.org"}, True),
        ({"host": "web-1"}, False),
        ({"worker": "web-1.example.org:4711"}, True),
        ({"worker": "web-1.example.org:471"}, False),
        ({"worker": "web-1.example.org:4711", "app": "other"}, False),
    ],
)
def test_a_question_is_for_those_whom_it_names(whom, meant):
    """Whole names only."""
    assert Order(do="ping", **whom).is_for(NAME) is meant


def test_answers_of_newer_workers_are_read_by_older_askers():
    """What they do not know they leave alone."""
    ping = WorkerPing(**WHO, version="9", state="consuming", uptime_s=1, queues=("mail",))
    newer = ping.model_dump() | {"mood": "good"}
    assert WorkerPing.model_validate(newer) == ping


def test_only_the_answers_of_all_are_complete():
    """Nobody at all is not all."""
    answer = Draining(**WHO, running=0, already=False)
    assert Answers[Draining](answers=(answer,), silent=(), failed={}).complete
    assert not Answers[Draining](answers=(), silent=(), failed={}).complete
    assert not Answers[Draining](answers=(answer,), silent=("a:1",), failed={}).complete
    assert not Answers[Draining](answers=(answer,), silent=(), failed={"a:1": "no"}).complete


def test_a_drain_that_was_waited_for_is_complete_when_nobody_is_left():
    """Whether they had answered or not; and without a wait when all have answered."""
    answer = Draining(**WHO, running=0, already=False)
    assert Drained(answers=(answer,), silent=(), failed={}).complete
    assert not Drained(answers=(), silent=(), failed={}).complete
    assert Drained(answers=(), silent=("a:1",), failed={}, ended=("a:1",)).complete
    assert not Drained(answers=(answer,), silent=(), failed={}, ended=("a:1",), remaining=("b:1",)).complete
    assert not Drained(answers=(answer,), silent=(), failed={}, remaining=("b:1",)).complete


# --- tables


def test_tables_show_no_control_characters_of_others():
    """Names come from elsewhere."""
    evil = {**WHO, "name": "a\x1b[2J:1", "app": "b\x07"}
    queue = QueueView(name="q\x1b", slots=1, running=0)
    texts = [
        ping_text([WorkerPing(**evil, version="1\x1b", state="consuming", uptime_s=1, queues=("q\x1b",))]),
        queue_text([QueueState(**evil, queue=queue)]),
        drain_text(
            Drained(answers=(Draining(**evil, running=0, already=True),), silent=(), failed={}, ended=("\x1b",))
        ),
        not_ended(Drained(answers=(), silent=(), failed={}, remaining=("\x1b",)), 3),
        active_text([WorkerTasks(**evil, queues=(queue,), running=(_running(task="t\x1b\n"),))]),
        *remarks(Answers[Draining](answers=(), silent=("s\x1b:1",), failed={"f\x1b:1": "why\x1b"}), 2),
    ]
    assert not any(set("\x1b\x07") & set(text) for text in texts), texts


def _running(**fields):
    known = {"task": "shop.add", "task_id": "id-1", "attempt": 2, "queue": "mail", "since_ms": 1_750_000_000_000}
    return RunningView(**{**known, "seconds": 75.5, **fields})


def test_what_runs_is_a_table_under_its_worker():
    """Times in UTC; what it is told to do, or how far it is."""
    text = active_text(
        [
            WorkerTasks(
                **WHO,
                queues=(QueueView(name="mail", slots=3, running=2, paused="everywhere", breaker="open"),),
                running=(
                    _running(progress={"done": 3, "total": 10, "label": "pages"}, deadline_ms=1_750_000_300_000),
                    _running(task_id="id-2", stopping="cancel", progress={"done": 1, "total": None}),
                ),
            )
        ]
    )
    assert text.splitlines() == [
        "web-1.example.org:4711  shop.eu",
        "  mail: 2 of 3 slots at work, paused everywhere, circuit breaker open",
        "  ID    TASK      ATTEMPT  QUEUE  SINCE                        FOR  UNTIL",
        "  id-1  shop.add        2  mail   2025-06-15T15:06:40Z  1 min 15 s  2025-06-15T15:11:40Z  3/10 pages",
        "  id-2  shop.add        2  mail   2025-06-15T15:06:40Z  1 min 15 s                        stopping: cancel",
    ]


def test_figures_are_told_in_words():
    """Nothing is left out because it is zero."""
    text = stats_text(
        [
            WorkerStatistics(
                **WHO,
                state="stopping",
                uptime_s=3700,
                queues=(QueueView(name="mail", slots=3, running=0),),
                in_flight=0,
                started=7,
                outcomes={"Succeeded": 5, "RetryLater": 2},
                retries=2,
                overdue=0,
                threads_busy=1,
                connection="ready",
                memory_bytes=52_428_800,
                loop_lag_s=0.0012,
                process_pool=PoolStats(places=4, processes=2, busy=1),
            )
        ]
    )
    assert text.splitlines() == [
        "web-1.example.org:4711  shop.eu",
        "  state      stopping, for 1 h 1 min, connection ready",
        "  in flight  0, begun 7, retried 2, given up 0",
        "  ended      2 RetryLater, 5 Succeeded",
        "  memory     50 MiB, event loop late by 1.2 ms",
        "  pools      1 threads busy; 1 of 2 processes busy, 4 at most",
        "  queue      mail: 0 of 3 slots at work",
    ]
