"""Chains, groups and chords: frozen values, compared by what they are made of.

Invariant: what `building.py` has made fits together. These classes themselves check nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar, Unpack

from asyncq.options import Sending, SendOptions
from asyncq.workflow.node import Node
from asyncq.workflow.workflow import Workflow

__all__ = ["Chain", "Chord", "Errors", "Group"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

Errors = Literal["stop", "collect"]
"""What becomes of a chord of which members have failed: its body does not run, or it gets their errors as well."""


@dataclass(frozen=True, slots=True, repr=False)
class Chain(Workflow[R_co]):
    """Parts that run one after the other. `chain(...)`, `then` and `|` make it.

    Attributes:
        steps: The parts. Each takes the result of the one before it.
        sending: The options of the whole.
    """

    kind: ClassVar[str] = "chain"
    steps: tuple[Node[Any], ...]
    sending: Sending = field(default_factory=Sending)

    @property
    def parts(self) -> tuple[Node[Any], ...]:
        """The steps."""
        return self.steps

    def options(self, **options: Unpack[SendOptions]) -> Chain[R_co]:
        """Return the same chain with options for the whole; see `Workflow.options`."""
        return self.sent_with(Sending.of(options))

    def sent_with(self, sending: Sending) -> Chain[R_co]:
        """Return the same chain with these options for the whole."""
        return replace(self, sending=sending)


@dataclass(frozen=True, slots=True, repr=False)
class Group(Workflow[R_co]):
    """Parts that run side by side. `group(...)` makes it. Its result is the list of theirs, in order.

    Attributes:
        members: The parts. Each takes what came before the group.
        sending: The options of the whole.
    """

    kind: ClassVar[str] = "group"
    members: tuple[Node[Any], ...]
    sending: Sending = field(default_factory=Sending)

    @property
    def parts(self) -> tuple[Node[Any], ...]:
        """The members."""
        return self.members

    def __len__(self) -> int:
        return len(self.members)

    def options(self, **options: Unpack[SendOptions]) -> Group[R_co]:
        """Return the same group with options for the whole; see `Workflow.options`."""
        return self.sent_with(Sending.of(options))

    def sent_with(self, sending: Sending) -> Group[R_co]:
        """Return the same group with these options for the whole."""
        return replace(self, sending=sending)


@dataclass(frozen=True, slots=True, repr=False)
class Chord(Workflow[R_co]):
    """A group, and a body that takes the list of its results. `chord(...)` and `group(...) | body` make it.

    Attributes:
        header: The group.
        body: What takes its list.
        errors: What becomes of it where members have failed.
        sending: The options of the whole.
    """

    kind: ClassVar[str] = "chord"
    header: Group[Any]
    body: Node[R_co]
    errors: Errors = "stop"
    sending: Sending = field(default_factory=Sending)

    @property
    def parts(self) -> tuple[Node[Any], ...]:
        """The header and the body."""
        return (self.header, self.body)

    def options(self, **options: Unpack[SendOptions]) -> Chord[R_co]:
        """Return the same chord with options for the whole; see `Workflow.options`."""
        return self.sent_with(Sending.of(options))

    def sent_with(self, sending: Sending) -> Chord[R_co]:
        """Return the same chord with these options for the whole."""
        return replace(self, sending=sending)
