"""Paused queues as entries of a journal: what follows from them, read once or several times."""

import random

import pytest

from asyncq.cancellations import Cancellation
from asyncq.pauses import PauseNote, Pauses


def pause(queue="mail", pause_id="p1", at_ms=10):
    return PauseNote(queue, at_ms, pause_id)


def resume(queue="mail", ends=("p1",), at_ms=20):
    return PauseNote(queue, at_ms, ends=ends)


def paused_after(*notes):
    pauses = Pauses()
    for note in notes:
        pauses.take(note)
    return set(pauses.current)


@pytest.mark.parametrize("note", [pause(), resume(), pause("grüße", "ü", 0), PauseNote("mail", 1, "p1", again_ms=7)])
def test_what_is_written_is_read(note):
    """And it is nobody's cancellation, nor is one of these a pause."""
    assert PauseNote.read(note.to_json()) == note
    assert Cancellation.read(note.to_json()) is None
    assert PauseNote.read(Cancellation(("a",), 1).to_json()) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b"no JSON",
        b"{}",
        b'{"pause": "mail", "at": 1}',
        b'{"pause": "mail", "id": 7, "at": 1}',
        b'{"pause": 7, "id": "a", "at": 1}',
        b'{"resume": "mail", "at": 1}',
        b'{"resume": "mail", "ends": [7], "at": 1}',
        b'{"resume": "mail", "ends": [], "at": "1"}',
        b'{"resume": "mail", "ends": [], "at": true}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_such_entry_is_none(body):
    """A stranger's note must not stop a worker."""
    assert PauseNote.read(body) is None


@pytest.mark.parametrize(
    ("notes", "expected"),
    [
        ((), set()),
        ((pause(),), {"mail"}),
        ((pause(), resume()), set()),
        ((resume(ends=()), pause()), {"mail"}),
        ((pause(), pause("post", "p2"), resume()), {"post"}),
        ((pause(), resume(), pause(pause_id="p2")), {"mail"}),
        # who resumes may have a clock that is behind
        ((pause(at_ms=50), resume(at_ms=20)), set()),
        # the repetition of a pause meets its resume on the way
        ((pause(), resume(), pause()), set()),
        # the same, and its own entry is forgotten
        ((resume(), pause()), set()),
        # somebody pauses a paused queue, and who resumes has not seen it
        ((pause(), pause(pause_id="p2"), resume()), {"mail"}),
        ((pause(), pause(pause_id="p2"), resume(ends=("p1", "p2")), pause()), set()),
    ],
)
def test_a_queue_is_paused_until_all_its_pauses_are_ended(notes, expected):
    """Repetitions, and the order in which they come, say nothing."""
    assert paused_after(*notes) == expected


def test_entries_that_are_read_again_change_nothing():
    """After a lost connection a journal may be read from its beginning."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(200):
        notes = []
        for number in range(draw.randrange(1, 12)):
            queue = draw.choice(["mail", "post"])
            earlier = [note for note in notes if note.id is not None and note.queue == queue]
            kind = draw.choice(["pause", "resume", "repeat"])
            if kind == "resume":
                notes.append(resume(queue, tuple(draw.sample([note.id for note in earlier], min(2, len(earlier))))))
            elif kind == "repeat" and earlier:
                notes.append(draw.choice(earlier))
            else:
                notes.append(pause(queue, f"p{number}", number))
        assert paused_after(*notes, *notes) == paused_after(*notes), notes


def test_what_has_ended_is_not_kept_for_ever():
    """A queue that is paused every hour for years."""
    pauses = Pauses()
    for number in range(5000):
        pauses.take(pause(pause_id=f"p{number}", at_ms=number))
        pauses.take(resume(ends=(f"p{number}",)))
    assert len(pauses._ended) <= 1000
    assert pauses.current == {}
