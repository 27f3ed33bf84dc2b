"""The whole delay ladder as one plan: for apps that may not declare the part that a delay needs.

Pure. Invariant: who declares the plan in its order lets nothing in before all that it may meet stands.
"""

from __future__ import annotations

from asyncq.rabbitmq.declarations import BindingDeclaration, Declaration, Plan
from asyncq.rabbitmq.delay_routing import path_plan
from asyncq.rabbitmq.topology import DELAY_LEVELS, Names

__all__ = ["ladder_plan"]

_DIGITS = range(1, 16)


def ladder_plan(names: Names) -> Plan:
    """Return all that any delay needs: 120 queues, the exchanges between them, and both ends."""
    parts: dict[Declaration, None] = {}
    for digit in _DIGITS:
        # As a delay with this digit everywhere needs it, and then one that enters at each level.
        parts.update(dict.fromkeys(path_plan(names, sum(digit * 16**level for level in range(DELAY_LEVELS)))))
        for level in range(DELAY_LEVELS):
            parts.update(dict.fromkeys(path_plan(names, digit * 16**level)))
    entries = [part for part in parts if isinstance(part, BindingDeclaration) and part.exchange == names.delay_enter]
    return (*(part for part in parts if part not in set(entries)), *entries)
