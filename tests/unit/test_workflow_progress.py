"""From the ends of a workflow's tasks to the end of the whole, whatever the workflow is and in whatever order."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncq.errors import ChordExpired, ChordFailed, InvalidOption, ReplyLost, TaskCancelled, TaskFailed
from asyncq.message import Message, new_id
from asyncq.outcome import Failure
from asyncq.program import Fork, Step, node_id
from asyncq.status import TaskState, TaskStatus
from asyncq.workflow_handle import WorkflowHandle
from asyncq.workflow_progress.outcome import failure_of, own_failure, value_of, whole_value
from asyncq.workflow_progress.replies import WorkflowReplies
from asyncq.workflow_progress.shape import ForkShape, WorkflowShape, shape_of
from asyncq.workflow_progress.status import track, workflow_status
from asyncq.workflow_progress.tracking import FailedChord, FailedStep, Tracker

ID = "the-workflow"
lines = st.deferred(
    lambda: st.lists(
        st.sampled_from(["a", "b", "c"])
        | st.builds(ForkShape, st.lists(lines, max_size=3).map(tuple), st.sampled_from(["stop", "collect"])),
        min_size=1,
        max_size=3,
    ).map(tuple)
)
shapes = lines.map(WorkflowShape).filter(lambda shape: shape.size < 40)


def at(path):
    """Return the id of the task at a place."""
    return node_id(ID, path)


def a_fork(*members, errors="stop"):
    """Return a fork of lines, each given as a task's name or as a tuple."""
    return ForkShape(tuple((member,) if isinstance(member, str) else member for member in members), errors)


def ended(tracker, *paths, succeeded=True):
    """Let tasks end, and return the tracker."""
    for path in paths:
        tracker.end(at(path), succeeded=succeeded)
    return tracker


# --- shapes


@given(shapes)
@settings(max_examples=100, deadline=None)
def test_a_shape_is_read_as_it_was_written(shape):
    """Its size, too."""
    assert WorkflowShape.from_json(shape.to_json()) == shape
    assert len(Tracker(ID, shape).nodes) == shape.size


def test_ten_thousand_equal_members_take_a_few_bytes():
    """They are counted, and not listed."""
    shape = WorkflowShape((a_fork(*["shop.resize"] * 10_000), "shop.total"))
    assert len(shape.to_json()) < 100
    assert WorkflowShape.from_json(shape.to_json()) == shape


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[1]",
        "[null]",
        '[{"members":[["a"]]}]',
        '[{"members":[[-1,"a"]]}]',
        '[{"members":[[1000001,"a"]]}]',
        '[{"members":[[1,"a"]],"errors":"ignore"}]',
        '[{"members":[[1000,{"members":[[100000,"a"]]}]]}]',
        "[" * 100_000,
        '[{"members":[[1,' * 200 + '"a"' + "]]}]" * 200,
    ],
)
def test_what_is_no_shape_is_refused(text):
    """A record may have been written by somebody else."""
    with pytest.raises(ValueError, match=r".") as caught:
        WorkflowShape.from_json(text)
    assert type(caught.value) in {ValueError, json.JSONDecodeError}


def test_the_shape_of_a_program_has_its_ids():
    """Whoever knows the workflow's id and the shape knows the ids of all tasks."""
    members = tuple((Step(at(f"1.{number}.0"), "b", "q"), Step(at(f"1.{number}.1"), "c", "q")) for number in range(3))
    program = (Step(at("0"), "a", "q"), Fork(at("1"), members, errors="collect"), Step(at("2"), "d", "q"))
    shape = shape_of(program)
    assert shape == WorkflowShape(("a", a_fork(*[("b", "c")] * 3, errors="collect"), "d"))
    ids = [step.id for member in members for step in member]
    assert list(Tracker(ID, shape).nodes) == [at("0"), *ids, at("2")]


# --- ends


def test_a_chain_ends_with_its_last_task():
    """Each end counts once."""
    tracker = Tracker(ID, WorkflowShape(("a", "b", "c")))
    ended(tracker, "0", "1", "1")
    assert (tracker.done, tracker.ended, tracker.failures) == (2, False, [])
    ended(tracker, "2")
    assert (tracker.done, tracker.ended, tracker.failures) == (3, True, [])


def test_what_comes_behind_a_failure_never_runs():
    """The chain has ended with it."""
    tracker = ended(Tracker(ID, WorkflowShape(("a", "b", a_fork("c", "d")))), "0")
    ended(tracker, "1", succeeded=False)
    assert tracker.ended
    assert [failing.node.task for failing in tracker.failures] == ["b"]
    assert [node.task for node in tracker.nodes.values() if node.stopped] == ["c", "d"]


def test_an_end_whose_word_was_lost_is_known_by_those_behind_it():
    """The end of the last task tells that all before it have ended, those of a chord as well."""
    tracker = Tracker(ID, WorkflowShape(("a", a_fork("b", ("c", "d")), "e")))
    ended(tracker, "2")
    assert (tracker.done, tracker.ended) == (5, True)
    inner = ended(Tracker(ID, WorkflowShape(("a", a_fork("b", "c"), "d"))), "1.0.0")
    assert (inner.done, inner.ended) == (2, False)


def test_a_group_has_ended_when_all_its_members_have():
    """It fails as soon as one has; the others go on."""
    tracker = Tracker(ID, WorkflowShape((a_fork("a", ("b", "c"), "d"),)))
    ended(tracker, "0.1.0", succeeded=False)
    assert [type(failing) for failing in tracker.failures] == [FailedStep]
    assert not tracker.ended
    ended(tracker, "0.0.0", "0.2.0")
    assert tracker.ended


def test_a_chord_fails_when_all_its_members_have_ended_and_names_those_that_failed():
    """Not before: the last one may fail as well."""
    tracker = Tracker(ID, WorkflowShape((a_fork("a", ("b", "c"), "d"), "e")))
    ended(tracker, "0.1.0", succeeded=False)
    ended(tracker, "0.0.0")
    assert not tracker.failures
    ended(tracker, "0.2.0", succeeded=False)
    (failing,) = tracker.failures
    assert isinstance(failing, FailedChord)
    assert (failing.path, failing.size, [index for index, _ in failing.members]) == ("0", 3, [1, 2])
    assert tracker.ended


def test_a_chord_that_collects_goes_on_with_its_errors():
    """Its body runs."""
    tracker = Tracker(ID, WorkflowShape((a_fork("a", "b", errors="collect"), "c")))
    ended(tracker, "0.0.0", "0.1.0", succeeded=False)
    assert not tracker.failures
    assert ended(tracker, "1").ended


def test_a_chord_within_a_chord_fails_as_a_member():
    """The outer one names it."""
    shape = WorkflowShape((a_fork("a", (a_fork("b", "c"), "d")), "e"))
    tracker = ended(Tracker(ID, shape), "0.0.0", "0.1.0.0.0")
    ended(tracker, "0.1.0.1.0", succeeded=False)
    (failing,) = tracker.failures
    ((index, inner),) = failing.members
    assert (failing.path, index, inner.path) == ("0", 1, "0.1.0")


@pytest.mark.parametrize("line", [(), (a_fork(),), (a_fork(), a_fork()), (a_fork((a_fork(),)),)])
def test_where_there_is_nothing_to_do_it_is_done(line):
    """An empty group has ended when it is sent."""
    assert Tracker(ID, WorkflowShape(line)).ended


def test_empty_groups_on_the_way_are_passed():
    """Nothing waits for ever."""
    tracker = Tracker(ID, WorkflowShape((a_fork(), "a", a_fork((a_fork(), "b"), (a_fork(),)))))
    ended(tracker, "1", "2.0.1")
    assert tracker.ended


def reference(line, ends, prefix=""):
    """Return `True`, `False` or None for a line that something waits for: succeeded, failed, not ended yet."""
    for position, element in enumerate(line):
        path = f"{prefix}{position}"
        if isinstance(element, str):
            if ends.get(path) is not True:
                return ends.get(path)
            continue
        inner = [reference(member, ends, f"{path}.{index}.") for index, member in enumerate(element.members)]
        if None in inner:
            return None
        if False in inner and element.errors == "stop":
            return False
    return True


def runnable(line, ends, prefix=""):
    """Return the places of tasks that could end next: what comes before them has ended well."""
    found = []
    for position, element in enumerate(line):
        path = f"{prefix}{position}"
        if isinstance(element, str):
            if path not in ends:
                return [*found, path]
            if not ends[path]:
                return found
            continue
        for index, member in enumerate(element.members):
            found += runnable(member, ends, f"{path}.{index}.")
        inner = [reference(member, ends, f"{path}.{index}.") for index, member in enumerate(element.members)]
        if None in inner or (False in inner and element.errors == "stop"):
            return found
    return found


@given(shapes, st.integers(0, 2**32), st.sampled_from([0.0, 0.1, 0.5]))
@settings(max_examples=100, deadline=None)
def test_any_workflow_ends_as_a_simple_reading_of_it_says(shape, seed, share_that_fails):
    """Something waits for the whole here, so that the last group is a chord as well. Ends come in any order."""
    chance = random.Random(seed)
    whole = WorkflowShape((*shape.line, "the body"))
    tracker, ends = Tracker(ID, whole), {}
    while places := runnable(whole.line, ends):
        path = chance.choice(places)
        ends[path] = chance.random() >= share_that_fails
        assert tracker.end(at(path), succeeded=ends[path])
        assert tracker.done == len(ends)
        said = reference(whole.line, ends)
        assert tracker.ended is (said is not None)
        assert bool(tracker.failures) is (said is False)
    assert tracker.ended
    never_ran = {node.path for node in tracker.nodes.values() if node.stopped}
    assert never_ran == {node.path for node in tracker.nodes.values()} - set(ends)


@given(shapes, st.integers(0, 2**32), st.sampled_from([0.0, 0.2]))
@settings(max_examples=100, deadline=None)
def test_the_end_does_not_depend_on_the_order_in_which_it_is_read(shape, seed, share_that_fails):
    """Replies overtake each other, and a store is read whole."""
    chance, ends = random.Random(seed), {}
    while places := runnable(shape.line, ends):
        ends[chance.choice(places)] = chance.random() >= share_that_fails
    orders = [sorted(ends), sorted(ends, reverse=True), chance.sample(sorted(ends), len(ends))]
    seen = []
    for order in orders:
        tracker = Tracker(ID, shape)
        for path in order:
            tracker.end(at(path), succeeded=ends[path])
        failing = {getattr(failing, "path", None) or failing.node.path for failing in tracker.failures}
        seen.append((tracker.done, tracker.ended, failing))
    assert all(one == other for one, other in pairwise(seen))
    assert seen[0][0] == len(ends)
    assert seen[0][1]


def test_an_empty_group_ends_only_once_what_comes_before_it_has():
    """Else the whole would have ended before its first task."""
    shape = WorkflowShape(("first", a_fork("a", ("x", a_fork((a_fork(),))))))
    tracker = Tracker(ID, shape)
    assert not tracker.ended
    for path in ("0", "1.0.0"):
        tracker.end(at(path), succeeded=True)
        assert not tracker.ended
    tracker.end(at("1.1.0"), succeeded=True)
    assert tracker.ended
    failing = Tracker(ID, shape)
    for path in ("1.1.0", "1.0.0", "0"):
        failing.end(at(path), succeeded=path != "1.1.0")
    assert failing.ended
    assert [failure.node.path for failure in failing.failures] == ["1.1.0"]


# --- outcomes


def succeeded(path, value):
    """Return the status of a task that has returned a value."""
    return at(path), TaskStatus(at(path), TaskState.SUCCEEDED, result=json.dumps(value).encode())


def failed(path, message="no", state=TaskState.FAILED):
    """Return the status of a task that has not succeeded."""
    error = Failure("builtins.ValueError", message) if state is TaskState.FAILED else None
    return at(path), TaskStatus(at(path), state, error=error)


def test_the_value_of_a_group_is_a_list_in_order_and_nested_as_the_groups_are():
    """Whatever order the ends came in."""
    shape = WorkflowShape(("first", a_fork("a", ("x", a_fork("b", "c")), "d")))
    known = dict([succeeded("1.2.0", 4), succeeded("1.1.1.1.0", 3), succeeded("1.0.0", 1), succeeded("1.1.1.0.0", 2)])
    assert value_of(ID, shape.line, json.loads, known) == [1, [2, 3], 4]
    readings = [lambda _: "one", [json.loads, lambda _: "three"], json.loads]
    assert value_of(ID, shape.line, readings, known) == ["one", [2, "three"], 4]


def test_the_value_of_the_whole_may_be_told_at_once():
    """By the worker that ended it."""
    status = TaskStatus(ID, TaskState.SUCCEEDED, result=b"[1,[2,3]]")
    assert whole_value(status, json.loads) == [1, [2, 3]]
    assert whole_value(status, [json.loads, [json.loads, bytes]]) == [1, [2, b"3"]]


def test_a_failed_chord_names_its_members_with_their_errors():
    """Each with number, task, id and error; a chord within it as one member."""
    shape = WorkflowShape((a_fork("a", "b", (a_fork("c", "c"), "d")), "e"))
    known = dict([failed("0.1.0", "too large"), failed("0.2.0.1.0", "broken")])
    tracker = ended(Tracker(ID, shape), "0.0.0", "0.2.0.0.0")
    ended(tracker, "0.1.0", "0.2.0.1.0", succeeded=False)
    error = failure_of(ID, tracker, known)
    assert isinstance(error, ChordFailed)
    assert isinstance(error, TaskFailed)
    assert error.task_id == at("0")
    assert [(member.index, member.task_id, member.task) for member in error.members] == [
        (1, at("0.1.0"), "b"),
        (2, at("0.2.0"), "a chord"),
    ]
    assert error.members[0].error_message == "too large"
    assert "2 of 3 members failed" in str(error)
    assert "too large" in str(error)
    assert "broken" in str(error)


def test_a_failed_step_is_that_tasks_own_failure():
    """With its id."""
    tracker = ended(Tracker(ID, WorkflowShape(("a", "b"))), "0", succeeded=False)
    error = failure_of(ID, tracker, dict([failed("0", "no luck")]))
    assert (error.task_id, error.message) == (at("0"), "no luck")


@pytest.mark.parametrize("line", [("a",), (a_fork("a", "b"), "c"), (a_fork("a", "b"),)])
def test_a_cancelled_workflow_is_said_to_be_cancelled(line):
    """Also where that makes a chord fail."""
    shape = WorkflowShape(line)
    paths = [node.path for node in Tracker(ID, shape).nodes.values() if node.task != "c"]
    tracker = ended(Tracker(ID, shape), *paths, succeeded=False)
    known = dict(failed(path, state=TaskState.CANCELLED) for path in paths)
    assert isinstance(failure_of(ID, tracker, known), TaskCancelled)


@pytest.mark.parametrize(
    ("kind", "error"), [("ChordFailed", ChordFailed), ("ChordExpired", ChordExpired), ("TaskFailed", TaskFailed)]
)
def test_what_a_worker_tells_of_the_whole_is_raised(kind, error):
    """Whatever else is in its body."""
    body = {"type": f"asyncq.errors.{kind}", "message": "too late", "task_id": "the-chord", "members": "nonsense"}
    replies = WorkflowReplies(ID, WorkflowShape(("a",)))
    replies.feed(reply(ID, "failed", body))
    failure = own_failure(replies.own_status(), replies.own)
    assert type(failure) is error
    assert failure.task_id == "the-chord"
    assert "too late" in str(failure)


# --- replies


def reply(task_id, kind, value):
    """Return a reply."""
    return Message(type=kind, body=json.dumps(value).encode(), task_id=task_id, message_id=new_id())


async def test_the_replies_of_all_tasks_go_to_one_place():
    """A second answer of a task changes nothing, nor does progress."""
    replies = WorkflowReplies(ID, WorkflowShape(("a", "b")))
    assert replies.ids == [ID, at("0"), at("1")]
    for message in (
        reply(at("0"), "progress", {"done": 1}),
        reply(at("0"), "succeeded", 1),
        reply(at("0"), "failed", 1),
    ):
        replies.feed(message)
    assert (replies.tracker.done, replies.over) == (1, False)
    replies.feed(reply(at("1"), "succeeded", 7))
    await replies.end()
    assert value_of(ID, replies.shape.line, json.loads, replies.known) == 7
    assert list(replies.known) == [at("1")]
    replies.lose(ReplyLost("gone"))
    assert replies.lost is None


async def test_what_is_left_of_a_failed_group_can_be_cancelled():
    """Its handle raises as soon as one member has failed; the others go on, and so there is something to stop."""
    replies = WorkflowReplies(ID, WorkflowShape((a_fork("a", "b"),)))
    asked = []

    async def cancel():
        asked.append(ID)

    handle = WorkflowHandle(ID, bytes, replies=replies, cancel=cancel)
    for task_id in (at("0.0.0"), ID):
        replies.feed(reply(task_id, "failed", {"type": "builtins.ValueError", "message": "no"}))
    with pytest.raises(TaskFailed):
        await handle.result()
    assert await handle.cancel()
    assert asked == [ID]
    replies.feed(reply(at("0.1.0"), "cancelled", None))
    assert not await handle.cancel()
    assert asked == [ID]


async def test_a_lost_reply_queue_ends_the_waiting():
    """Nothing more can come."""
    replies = WorkflowReplies(ID, WorkflowShape(("a",)))
    replies.lose(ReplyLost("gone"))
    await replies.end()
    assert replies.over


# --- status


def a_status(shape, known):
    """Return the status of a workflow of which some is known."""
    known = dict(known)
    return workflow_status(
        track(ID, shape, {key: status.state for key, status in known.items()}), shape, TaskStatus(ID), known
    )


def test_a_status_has_all_tasks_with_their_places():
    """And finds one by its place, its id, or a name that only one has."""
    shape = WorkflowShape(("a", a_fork("b", "b"), "c"))
    status = a_status(shape, [succeeded("0", 1), failed("1.1.0")])
    assert [(node.path, node.task, node.state.value) for node in status.nodes] == [
        ("0", "a", "succeeded"),
        ("1.0.0", "b", "unknown"),
        ("1.1.0", "b", "failed"),
        ("2", "c", "unknown"),
    ]
    assert (status.done, status.total, status.state) == (2, 4, TaskState.STARTED)
    assert status.node("a") is status.node("0") is status.node(at("0"))
    assert [node.path for node in status.failed] == ["1.1.0"]
    with pytest.raises(InvalidOption, match=r"2 tasks 'b'.*1\.0\.0, 1\.1\.0"):
        status.node("b")
    with pytest.raises(InvalidOption, match="no task"):
        status.node("9")


@pytest.mark.parametrize(
    ("known", "state"),
    [
        ([], "unknown"),
        ([(at("0"), TaskStatus(at("0"), TaskState.SCHEDULED))], "scheduled"),
        ([(at("0"), TaskStatus(at("0"), TaskState.RETRYING))], "started"),
        ([succeeded("0", 1)], "started"),
        ([succeeded("0", 1), succeeded("1", 1)], "succeeded"),
        ([failed("0")], "failed"),
        ([failed("0", state=TaskState.EXPIRED)], "expired"),
    ],
)
def test_the_state_of_the_whole(known, state):
    """It is that of its tasks."""
    assert a_status(WorkflowShape(("a", "b")), known).state == state
