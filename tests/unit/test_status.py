"""The rules by which updates make a status: a table, and what holds for any order of arrival."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncq.outcome import Failure
from asyncq.status import Progress, StatusUpdate, TaskState, TaskStatus, merge

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STATES = [state for state in TaskState if state is not TaskState.UNKNOWN]
FINAL = [state for state in STATES if state.final]


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def update(text: str, second: float = 0, **fields) -> StatusUpdate:
    """`started 2` is a STARTED update of the second attempt."""
    state, _, attempt = text.partition(" ")
    return StatusUpdate("id", TaskState(state), at(second), attempt=int(attempt or 0), **fields)


def status_after(*updates: StatusUpdate) -> TaskStatus:
    status = None
    for item in updates:
        status = merge(status, item)
    assert status is not None
    return status


def shown(status: TaskStatus) -> str:
    return f"{status.state} {status.attempt}" if status.attempt else str(status.state)


@pytest.mark.parametrize(
    ("arrive", "stands"),
    [
        # a life as it should be
        ("queued", "queued"),
        ("queued, started 1", "started 1"),
        ("scheduled, started 1", "started 1"),
        ("queued, started 1, succeeded 1", "succeeded 1"),
        ("queued, started 1, retrying 1", "retrying 1"),
        ("queued, started 1, retrying 1, started 2, failed 2", "failed 2"),
        ("queued, expired 1", "expired 1"),
        ("started 1, retrying 1, started 1 run 1", "started 1"),  # a snooze does not count as an attempt
        # the producer is late
        ("started 1, queued", "started 1"),
        ("retrying 1, scheduled", "retrying 1"),
        ("succeeded 1, queued", "succeeded 1"),
        # a lower attempt
        ("started 2, started 1", "started 2"),
        ("started 2, retrying 1", "started 2"),
        ("retrying 2, started 1", "retrying 2"),
        # an end counts more than what goes on, also that of an attempt which never began
        ("started 2, failed 1", "failed 1"),
        ("failed 1, started 2", "failed 1"),
        ("retrying 2, expired 1", "expired 1"),
        ("started 1, cancelled 0", "cancelled"),
        ("failed 2, succeeded 1", "failed 2"),
        ("succeeded 2, failed 1", "succeeded 2"),
        # a final state stays
        ("failed 1, started 1", "failed 1"),
        ("cancelled 1, retrying 1", "cancelled 1"),
        ("succeeded 1, failed 1", "succeeded 1"),
        ("failed 1, cancelled 1", "failed 1"),
        ("expired 1, failed 1", "expired 1"),
        # but a success of the same or a later attempt wins
        ("failed 1, succeeded 1", "succeeded 1"),
        ("failed 1, succeeded 2", "succeeded 2"),
        ("expired 1, succeeded 1", "succeeded 1"),
        ("cancelled 1, succeeded 3", "succeeded 3"),
        ("failed 1, failed 2", "failed 2"),
        # a later life begins from nothing, an earlier one says nothing any more
        ("failed 4, queued!", "queued"),
        ("succeeded 4, scheduled!", "scheduled"),
        ("failed 4, queued!, started 1!", "started 1"),
        ("failed 4, started 1!, queued!", "started 1"),
        ("failed 4, succeeded 1!", "succeeded 1"),
        ("succeeded 1!, failed 4", "succeeded 1"),
        ("queued!, started 9, failed 9", "queued"),
        ("queued!", "queued"),
        # of one attempt, a later run counts whatever the clocks say; of one run, that another one follows
        ("started 1 run 1, retrying 1", "started 1"),
        ("retrying 1, started 1 run 1", "started 1"),
        ("retrying 1, started 1", "retrying 1"),
        ("started 2, started 1 run 7", "started 2"),
    ],
)
def test_what_stands_after_updates(arrive, stands):
    """Each a second after the one before."""
    updates = []
    for second, text in enumerate(arrive.split(", ")):
        what, _, run = text.rstrip("!").partition(" run ")
        updates.append(update(what, second, life=int(text.endswith("!")), run=int(run or 0)))
    assert shown(status_after(*updates)) == stands


def test_of_one_attempt_the_later_news_counts_whatever_comes_first():
    """Progress overtakes progress, and a retry is not undone by it."""
    first = update("started 1", 1, progress=Progress(1))
    second = update("started 1", 2, progress=Progress(2), started_at=at(1))
    retry = update("retrying 1", 3, retry_at=at(60), started_at=at(1))
    for order in itertools.permutations([first, second, retry]):
        status = status_after(*order)
        assert (shown(status), status.retry_at, status.progress) == ("retrying 1", at(60), None)
    status = status_after(second, first)
    assert (status.progress, status.started_at) == (Progress(2), at(1))


@pytest.mark.parametrize("state", FINAL)
def test_progress_never_goes_onto_a_final_state(state):
    """The end tells of the last progress itself, if it is to be seen."""
    end = StatusUpdate("id", state, at(2), attempt=1, progress=Progress(9, 10))
    assert status_after(end, update("started 1", 3, progress=Progress(10, 10))).progress == Progress(9, 10)
    assert status_after(update("started 1", 1, progress=Progress(10, 10)), update("failed 1", 2)).progress is None


def test_a_late_producer_fills_in_what_is_missing():
    """When it was queued and due, by whom it was sent, and what it is."""
    born = update(
        "scheduled", 0, task="shop.mail", queue="mail", due_at=at(5), parent_id="parent", root_id="root", workflow="[]"
    )
    end = update("succeeded 1", 9, result=b"1", worker="host:1", started_at=at(6))
    for order in ([born, end], [end, born]):
        assert status_after(*order) == TaskStatus(
            "id",
            TaskState.SUCCEEDED,
            task="shop.mail",
            queue="mail",
            attempt=1,
            worker="host:1",
            result=b"1",
            queued_at=at(0),
            due_at=at(5),
            started_at=at(6),
            finished_at=at(9),
            updated_at=at(9),
            parent_id="parent",
            root_id="root",
            workflow="[]",
        )


def test_a_replayed_dead_letter_keeps_nothing_of_the_life_before():
    """Neither its times nor its error."""
    before = [update("queued", 0, task="shop.mail"), update("failed 4", 1, error=Failure("E", "no"), life=5)]
    status = status_after(*before, update("queued", 100, task="shop.mail", queue="other", life=6))
    assert status == TaskStatus(
        "id",
        TaskState.QUEUED,
        task="shop.mail",
        queue="other",
        queued_at=at(100),
        updated_at=at(100),
        life=6,
    )


def test_a_status_that_is_unknown_is_none():
    """What a store could not read is replaced by what it is told."""
    assert shown(merge(TaskStatus("id"), update("started 1"))) == "started 1"


def test_a_result_is_kept_after_its_end_and_what_has_not_ended_for_longer():
    """A time to live of a minute must not forget a task that runs for an hour, or is due in a month."""
    week = timedelta(days=7)
    assert update("succeeded 1", 5, ttl_s=60).expires_at() == at(65)
    assert update("started 1", 5, ttl_s=60).expires_at() == at(5) + week
    assert update("scheduled", 5, ttl_s=60, due_at=at(1_000_000)).expires_at() == at(1_000_000) + week
    assert update("retrying 1", 5, ttl_s=1e6, retry_at=at(50)).expires_at() == at(50 + 1e6)
    assert update("started 1").expires_at() is None
    assert status_after(update("started 1", 5, ttl_s=60), update("succeeded 1", 9, ttl_s=60)).expires_at == at(69)
    assert status_after(update("succeeded 1", 9, ttl_s=60), update("queued", 5, ttl_s=60)).expires_at == at(69)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"state": TaskState.UNKNOWN}, "UNKNOWN"),
        ({"state": TaskState.QUEUED, "attempt": 1}, "attempt .* queued"),
        ({"state": TaskState.STARTED, "attempt": -1}, "attempt .* started"),
        ({"at": datetime(2026, 1, 1)}, "at needs a time zone"),  # noqa: DTZ001 - what is tested
        ({"due_at": datetime(2026, 1, 1)}, "due_at needs a time zone"),  # noqa: DTZ001
    ],
)
def test_an_update_that_cannot_be_is_refused(fields, message):
    """Where it is made, not where it is stored."""
    with pytest.raises(ValueError, match=message):
        StatusUpdate(**{"id": "id", "state": TaskState.QUEUED, "at": START, **fields})


# --- properties

seconds = st.integers(0, 1000)


@st.composite
def any_update(draw) -> StatusUpdate:
    state = draw(st.sampled_from(STATES))
    before_start = state in (TaskState.QUEUED, TaskState.SCHEDULED)
    return StatusUpdate(
        "id",
        state,
        at(draw(seconds)).astimezone(draw(st.sampled_from([UTC, timezone(timedelta(hours=3))]))),
        attempt=0 if before_start else draw(st.integers(1, 4)),
        progress=draw(st.none() | st.builds(Progress, seconds)) if state is TaskState.STARTED else None,
        result=draw(st.none() | st.just(b"1")) if state is TaskState.SUCCEEDED else None,
        started_at=None if before_start else at(draw(seconds)),
        due_at=draw(st.none() | seconds.map(at)),
        ttl_s=draw(st.none() | st.just(60.0)),
        life=draw(st.sampled_from([0, 0, 0, 7, 8])),
        run=0 if before_start else draw(st.integers(0, 2)),
    )


@st.composite
def lives(draw) -> list[StatusUpdate]:
    """What the rules decide: of one attempt, at most one success and one other end.

    Times are all different, as two updates of one moment can only be told apart by their state.
    """
    seen: set[tuple[int, int, bool]] = set()
    made = []
    for item in draw(st.lists(any_update(), min_size=1, max_size=8)):
        if item.state.final:
            end = (item.life, item.attempt, item.state is TaskState.SUCCEEDED)
            if end in seen:
                continue
            seen.add(end)
        made.append(item)
    times = draw(st.lists(seconds, min_size=len(made), max_size=len(made), unique=True))
    return [replace(item, at=at(second), task="shop.work") for item, second in zip(made, times, strict=True)]


@settings(derandomize=True, max_examples=100, deadline=None)
@given(lives(), st.randoms(use_true_random=False))
def test_the_order_of_arrival_does_not_matter(life, random):
    """Producer, workers and those that come too late, in any order, each perhaps twice."""
    shuffled = life + random.choices(life, k=3)
    random.shuffle(shuffled)
    assert status_after(*shuffled) == status_after(*life)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(any_update(), min_size=1, max_size=10))
def test_what_holds_for_any_updates(updates):
    """Writing twice is writing once; no attempt goes back; an end stays one; nothing that is known gets lost."""
    before = None
    for item in updates:
        after = merge(before, item)
        assert merge(after, item) == after
        assert after.updated_at is not None
        assert (after.finished_at is not None) == after.state.final
        if before is not None and after.life == before.life:
            assert after.attempt >= before.attempt or (after.state.final and not before.state.final)
            assert after.state.final or not before.state.final
            assert after.state is not TaskState.QUEUED or before.state in (TaskState.QUEUED, TaskState.SCHEDULED)
            if before.state is TaskState.SUCCEEDED and after.state is not TaskState.SUCCEEDED:
                assert after.attempt > before.attempt
            assert before.queued_at is None or (after.queued_at is not None and after.queued_at <= before.queued_at)
        elif before is not None:
            assert after == merge(None, item)
        before = after
