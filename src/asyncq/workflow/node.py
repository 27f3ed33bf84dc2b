"""What every part of a workflow can do: be followed by another part.

    Node[R]
    ├── Signature[R]            a task with all of its arguments            (signature.py)
    ├── PartialSignature[R]     a task that takes what came before          (partial.py)
    └── Workflow[R]             what can be sent as a whole                 (workflow.py)
        ├── Chain[R]            one after the other                         (values.py)
        ├── Group[R]            side by side; its result is a list
        └── Chord[R]            a group, and what takes its list

`R` is what comes out at the end. It is all that type checkers know of a node: `a.s(1).then(b)` is checked, because `b`
must take what `a` returns as its first argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, overload

if TYPE_CHECKING:  # `then` makes a workflow, and a workflow is made of nodes
    from asyncq.workflow.workflow import Workflow

__all__ = ["Node", "Takes"]

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class Takes(Protocol[T_contra, R_co]):
    """A task that can be called with one value, in the eyes of a type checker: its other parameters have defaults."""

    def s(self, value: T_contra, /) -> Node[R_co]:
        """Bind the value."""
        ...


class Node(Generic[R_co]):
    """A part of a workflow, whose result is an `R`."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return it as a tree, for people."""
        from asyncq.workflow.printing import tree  # noqa: PLC0415 - it prints nodes

        return tree(self)

    def __repr__(self) -> str:
        """Return it on one line: the tasks and their arguments, without options."""
        from asyncq.workflow.printing import line  # noqa: PLC0415 - see `__str__`

        return line(self)

    @overload
    def then(self, following: Takes[R_co, R], /) -> Workflow[R]: ...
    @overload
    def then(self, following: Node[R], /) -> Workflow[R]: ...
    def then(self, following: Any, /) -> Workflow[Any]:
        """Return the workflow in which something follows, and takes this part's result as its first free argument.

        Args:
            following: A task, whose other parameters have defaults; `task.partial(...)`, where they need values;
                `task.si(...)`, which takes nothing; or a chain, a group or a chord that begins with such.

        Raises:
            InvalidWorkflow: It cannot follow; the message says why.
        """
        from asyncq.workflow.building import joined  # noqa: PLC0415 - it makes workflows, which are nodes

        return joined(self, following)

    @overload
    def __or__(self, following: Takes[R_co, R], /) -> Workflow[R]: ...
    @overload
    def __or__(self, following: Node[R], /) -> Workflow[R]: ...
    def __or__(self, following: Any, /) -> Workflow[Any]:
        """Return the same as `then`."""
        from asyncq.workflow.building import joined  # noqa: PLC0415 - see `then`

        return joined(self, following)
