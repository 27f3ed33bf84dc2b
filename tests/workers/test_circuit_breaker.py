"""The circuit breaker, by a table of what happens to it: pure, with a clock that the test moves."""

import pytest

from circuit_breaker import CircuitBreaker, CircuitOpen, State


class Driver:
    """Plays a line of steps on a breaker of three failures and ten seconds.

    `ok`, `no` and `gone` are whole calls that succeed, fail and are dropped; `+5` lets five seconds pass; `a(` begins
    the call a, and `a)ok` ends it; `refused:5` is a call that is told to come again in five seconds.
    """

    def __init__(self):
        self.now = 0.0
        self.breaker = CircuitBreaker(failures=3, open_s=10, clock=lambda: self.now)
        self.permits = {}

    def play(self, steps):
        for step in steps.split():
            name, mark, end = step.partition(")") if ")" in step else step.partition("(")
            if step.startswith("+"):
                self.now += float(step)
            elif step.startswith("refused:"):
                with pytest.raises(CircuitOpen) as caught:
                    self.breaker.admit()
                assert caught.value.wait_s == float(step.removeprefix("refused:")), step
            elif mark == "(":
                self.permits[name] = self.breaker.admit()
            elif mark == ")":
                self.end(end, self.permits.pop(name))
            else:
                self.end(step, self.breaker.admit())

    def end(self, how, permit):
        breaker = self.breaker
        {"ok": breaker.succeeded, "no": breaker.failed, "gone": breaker.dropped}[how](permit)


@pytest.mark.parametrize(
    ("steps", "state"),
    [
        ("", State.CLOSED),
        ("no no", State.CLOSED),
        ("no no no", State.OPEN),
        ("no no ok no no", State.CLOSED),  # in a row
        ("no no gone no", State.OPEN),  # what was cancelled is neither
        ("no no no refused:10 +4 refused:6", State.OPEN),
        ("no no no +10 a(", State.HALF_OPEN),
        ("no no no +10 a( refused:1 +99 refused:1", State.HALF_OPEN),  # one probe, however long it takes
        ("no no no +10 a( a)ok no no", State.CLOSED),  # counts from nothing again
        ("no no no +10 a( +3 a)no refused:10", State.OPEN),  # one failure of the probe is enough
        ("no no no +10 no +10 no +10 ok", State.CLOSED),
        ("no no no +10 gone b(", State.HALF_OPEN),  # the next probe, at once
        ("a( no no no a)ok refused:10", State.OPEN),  # began before it opened
        ("a( no no no +5 a)no refused:5", State.OPEN),  # does not make it longer
        ("a( no no no +10 b( a)ok refused:1", State.HALF_OPEN),  # is not the probe
        ("a( no no no +10 b( a)no refused:1", State.HALF_OPEN),
        ("a( no no no +10 b( a)gone refused:1", State.HALF_OPEN),
        ("no no no +10 a( a)gone +1 b( a2(", None),
        ("a( no no no +10 ok no no a)no", State.CLOSED),  # two eras ago
        ("a( b( c( d( a)no b)no c)no d)no refused:10", State.OPEN),  # together
    ],
)
def test_the_state_follows_from_what_happened(steps, state):
    """Each row is a story and how it ends."""
    driver = Driver()
    if state is None:
        with pytest.raises(CircuitOpen):
            driver.play(steps)
        return
    driver.play(steps)
    assert driver.breaker.state is state


def test_opening_and_closing_are_told_once():
    """To whoever logs it."""
    now = [0.0]
    breaker = CircuitBreaker(failures=2, open_s=10, clock=lambda: now[0])
    early = breaker.admit()
    assert [breaker.failed(breaker.admit()) for _ in range(2)] == [False, True]
    assert not breaker.failed(early)
    now[0] = 10.0
    assert breaker.succeeded(breaker.admit())
    assert not breaker.succeeded(breaker.admit())


def test_a_short_break_is_not_made_longer_by_a_probe():
    """Who comes during a probe waits a second, or as long as the breaker stays open where that is shorter."""
    now = [0.0]
    breaker = CircuitBreaker(failures=1, open_s=0.2, clock=lambda: now[0])
    breaker.failed(breaker.admit())
    now[0] = 0.2
    breaker.admit()
    with pytest.raises(CircuitOpen, match=r"0\.2 s") as caught:
        breaker.admit()
    assert caught.value.wait_s == 0.2
