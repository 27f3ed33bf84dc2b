"""How a worker or a scheduler is: values, and what they mean to whoever starts and stops processes.

Two questions. *Is it alive?* If not, only a restart helps: its event loop is stuck, or the broker refuses it. *Is it
ready?* Does it take tasks at the moment. A lost connection makes a worker not ready, and no restart would help.

Invariant: pure; whoever looks at a process says what was seen, and nothing here looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, get_args

from asyncq.broker import BrokerStatus

__all__ = ["Health", "HealthReport", "HealthState", "health_by_broker"]

HealthState = Literal["refused", "silent", "stuck", "ended", "connecting", "blocked", "starting", "stopping", "ready"]
"""From the worst to the best:

- refused: the broker will not have it: wrong credentials, no such virtual host, a missing permission
- silent: nothing was heard from the process for too long: it is frozen, or its interpreter is
- stuck: its event loop does not answer
- ended: the process has ended, and waits to be started again
- connecting: it has no connection to the broker
- blocked: the broker's memory or disk alarm is on, and it takes no messages
- starting: it does not consume yet
- stopping: it finishes what it has begun
- ready: it works
"""

_ORDER: Final = {state: place for place, state in enumerate(get_args(HealthState))}
_DEAD: Final = frozenset({"refused", "silent", "stuck"})


@dataclass(frozen=True, slots=True)
class Health:
    """How one process is.

    Attributes:
        state: In a word.
        detail: What there is to say about it; a cause, or nothing.
        process: Its number under its supervisor, from 1; None where it has none.
        pid: Its process id; None where it has ended.
    """

    state: HealthState
    detail: str = ""
    process: int | None = None
    pid: int | None = None

    @property
    def alive(self) -> bool:
        """Whether it can go on; if not, only a restart helps."""
        return self.state not in _DEAD

    @property
    def ready(self) -> bool:
        """Whether it works at the moment."""
        return self.state == "ready"

    @property
    def words(self) -> str:
        """The same for people."""
        who = "" if self.process is None else f"process {self.process}: "
        return f"{who}{self.state}" + (f": {self.detail}" if self.detail else "")


@dataclass(frozen=True, slots=True)
class HealthReport:
    """How all processes of one command are.

    Attributes:
        role: What they are: `worker` or `scheduler`.
        target: MODULE:APP.
        pid: The process that answers: the worker itself, or its supervisor.
        processes: One, or those of a supervisor.
    """

    role: str
    target: str
    pid: int
    processes: tuple[Health, ...]

    @property
    def alive(self) -> bool:
        """Whether all of them are."""
        return all(health.alive for health in self.processes)

    @property
    def ready(self) -> bool:
        """Whether all of them are."""
        return all(health.ready for health in self.processes)

    @property
    def state(self) -> HealthState:
        """The worst of their states."""
        return min((health.state for health in self.processes), key=_ORDER.__getitem__, default="starting")

    @property
    def words(self) -> str:
        """All of it in one line, for people."""
        told = [health for health in self.processes if not health.ready]
        states = "; ".join(" ".join(health.words.split()) for health in told) or "ready"
        count = f" ({len(self.processes)} processes)" if len(self.processes) > 1 and not told else ""
        return f"{self.role} {self.target}, process {self.pid}: {states}{count}"

    def as_json(self) -> dict[str, Any]:
        """Return it as the endpoint and `asyncq health --json` tell it."""
        return {
            "alive": self.alive,
            "ready": self.ready,
            "state": self.state,
            "role": self.role,
            "target": self.target,
            "pid": self.pid,
            "processes": [asdict(health) for health in self.processes],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> HealthReport:
        """Read what `as_json` has made.

        Raises:
            ValueError: It is something else.
        """
        try:
            processes = tuple(_health_of(item) for item in _list(value["processes"]))
            return cls(str(value["role"]), str(value["target"]), int(value["pid"]), processes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"no health report: {error}") from None


def health_by_broker(status: BrokerStatus) -> Health:
    """Return how a process is that has nothing to tell but its connection."""
    detail = "" if status.cause is None else str(status.cause)
    match status.state:
        case "ready":
            return Health("ready")
        case "blocked":
            return Health("blocked", detail)
        case "fatal":
            return Health("refused", detail)
        case "connecting":
            return Health("connecting", detail)
        case "closed":
            return Health("stopping")


def _health_of(value: Mapping[str, Any]) -> Health:
    if value["state"] not in _ORDER:
        raise ValueError(f"no state of health: {value['state']!r}")
    return Health(value["state"], str(value["detail"]), value["process"], value["pid"])


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise ValueError(  # noqa: TRY004 - of what a peer has sent, the value is wrong
            "no health report: its processes are no list"
        )
    return value
