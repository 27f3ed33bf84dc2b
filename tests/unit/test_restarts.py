"""What follows from the end of a worker process."""

import signal

import pytest

from asyncq.supervisor.restarts import MAX_STARTS, Again, Ended, GiveUp, Restarts, exit_code_of_all
from asyncq.worker.exit_codes import BROKER, DRAINED, FAULT, HANDED_BACK, REFUSED, RESTART, WRONG_INPUT


def ended(status: int, *, was_ready: bool = True, lived_s: float = 1) -> Ended:
    return Ended(status, was_ready, lived_s)


def decide(restarts: Restarts, end: Ended) -> float | int:
    """Return the pause, or the exit code of giving up."""
    match restarts.after(0, end):
        case Again(after_s):
            return after_s
        case GiveUp(exit_code):
            return exit_code


@pytest.mark.parametrize("status", [DRAINED, HANDED_BACK, RESTART, 143, 130, -signal.SIGTERM, -signal.SIGINT], ids=str)
def test_what_was_asked_to_end_is_started_again_at_once_and_for_ever(status):
    """By itself, or by a signal of its own."""
    restarts = Restarts(1)
    restarts.ready()
    assert [decide(restarts, ended(status)) for _ in range(100)] == [0.0] * 100


@pytest.mark.parametrize("status", [1, FAULT, -signal.SIGKILL, -signal.SIGSEGV], ids=str)
def test_quick_deaths_of_what_was_ready_are_followed_by_longer_and_longer_pauses(status):
    """Never by the end: a message that kills its worker kills several, until it is poison."""
    restarts = Restarts(1)
    restarts.ready()
    pauses = [decide(restarts, ended(status)) for _ in range(20)]
    assert pauses[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert pauses[-1] == 30
    assert decide(restarts, ended(status, lived_s=60)) == 0.5
    assert decide(restarts, ended(status)) == 0.5


def test_each_place_has_pauses_of_its_own():
    """One that dies again and again does not slow down the others."""
    restarts = Restarts(2)
    restarts.ready()
    for _ in range(5):
        restarts.after(0, ended(FAULT))
    assert restarts.after(1, ended(FAULT)) == Again(0.5)


def test_processes_that_die_before_they_are_ready_are_given_up_after_some():
    """The exit code is that of the last one, and a process that was ready makes the count begin anew."""
    restarts = Restarts(1)
    first = [decide(restarts, ended(BROKER, was_ready=False)) for _ in range(MAX_STARTS - 1)]
    assert first == [0.5, 1, 2, 4]
    restarts.ready()
    again = [decide(restarts, ended(FAULT, was_ready=False)) for _ in range(MAX_STARTS)]
    assert again[-1] == FAULT
    assert FAULT not in again[:-1]


def test_an_outage_of_the_broker_is_waited_for_once_anything_was_ready():
    """Those that still run wait for it as well: one that had to be started again just then must not end them."""
    restarts = Restarts(2)
    restarts.ready()
    pauses = [decide(restarts, ended(BROKER, was_ready=False)) for _ in range(20)]
    assert pauses[:4] == [0.5, 1, 2, 4]
    assert pauses[-1] == 30


@pytest.mark.parametrize(("status", "exit_code"), [(-signal.SIGSEGV, 139), (70, 70), (1, 1)])
def test_giving_up_has_the_exit_code_of_the_last_death(status, exit_code):
    """That of a signal as shells count it."""
    restarts = Restarts(1)
    assert [decide(restarts, ended(status, was_ready=False)) for _ in range(MAX_STARTS)][-1] == exit_code


def test_a_wrong_app_is_given_up_at_once_before_anything_was_ready_and_like_other_deaths_later():
    """A deploy that is copied over running workers must not end those that still run, because of half a file."""
    assert decide(Restarts(1), ended(WRONG_INPUT, was_ready=False)) == WRONG_INPUT
    restarts = Restarts(1)
    restarts.ready()
    assert decide(restarts, ended(WRONG_INPUT, was_ready=False)) == 0.5


def test_a_refusal_of_the_broker_is_given_up_at_once_whenever_it_comes():
    """It holds for all of them."""
    restarts = Restarts(4)
    restarts.ready()
    assert decide(restarts, ended(REFUSED)) == REFUSED


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], DRAINED),
        ([0, 0], DRAINED),
        ([0, RESTART], DRAINED),
        ([0, HANDED_BACK, 0], HANDED_BACK),
        ([HANDED_BACK, -signal.SIGKILL], 137),
        ([0, FAULT, HANDED_BACK], FAULT),
    ],
)
def test_the_exit_code_of_all_is_the_worst_of_them(statuses, code):
    """A death counts more than tasks that were handed back, and these more than a clean end."""
    assert exit_code_of_all([ended(status) for status in statuses]) == code


@pytest.mark.parametrize(
    ("status", "how"),
    [
        (0, "drained"),
        (9, "exit code 9"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-signal.SIGKILL, "killed by SIGKILL, perhaps for want of memory"),
        (-63, "killed by signal 63"),
    ],
)
def test_an_end_is_told_in_words(status, how):
    """For the person who reads the log."""
    assert ended(status).how == how
