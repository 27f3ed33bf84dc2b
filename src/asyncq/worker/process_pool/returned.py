"""What came back from a process, as a task's return value: its result is JSON already, or was refused there.

Invariant: the outcome is the one that the same code would have in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncq.outcome import Failed, Failure, Outcome, Rejected, Succeeded
from asyncq.worker.process_pool.frames import Refused, Result, Unfit

__all__ = ["FromProcess"]


@dataclass(frozen=True, slots=True)
class FromProcess:
    """The end of a run that raised nothing.

    Attributes:
        ending: What the process said.
    """

    ending: Result | Unfit | Refused

    def outcome(self) -> Outcome:
        """Return the outcome of the attempt."""
        match self.ending:
            case Result(json):
                return Succeeded(json)
            case Unfit(error):
                return Failed(Failure.of(error.exception()), "result not serialisable")
            case Refused(reason, error):
                return Rejected(Failure.of(error.exception()), reason)
