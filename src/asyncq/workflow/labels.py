"""What a task of a workflow is called where people read it: its name, its arguments, its options."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json, to_json

from asyncq.body import ITEMS
from asyncq.options import Sending
from asyncq.program import WHOLE
from asyncq.signature import Signature
from asyncq.workflow.workflow import Leaf

__all__ = ["call_of", "options_of"]

_LONGEST_VALUE = 40
_LONGEST_CALL = 100


def call_of(leaf: Leaf) -> str:
    """Return `shop.add(x=1, y=…)`; the dots stand for what came before."""
    arguments = from_json(leaf.body)
    if isinstance(leaf, Signature):
        if ITEMS in arguments:
            return f"{leaf.name}({len(arguments[ITEMS])} calls)"
        shown = [_shown(*item) for item in arguments.items()]
    else:
        taken = "…" if leaf.into == WHOLE else f"{leaf.into}=…"
        shown = [taken, *(_shown(*item) for item in arguments.items())]
    return f"{leaf.name}({_cut(', '.join(shown), _LONGEST_CALL)})"


def options_of(sending: Sending) -> str:
    """Return ` [queue=mail, delay=10 s]`, or nothing where there are no options."""
    seconds = {
        "delay": sending.delay_s,
        "expires": sending.expires_s,
        "deadline": sending.deadline_s,
        "time_limit": sending.time_limit_s,
        "soft_time_limit": sending.soft_time_limit_s,
        "timeout": sending.timeout_s,
        "result_ttl": sending.keeping.ttl_s,
    }
    words = {
        "task_id": sending.task_id,
        "queue": sending.queue,
        **{name: f"{value:g} s" for name, value in seconds.items() if value is not None},
        "eta": sending.eta_ms,
        "expires at": sending.expires_ms,
        "deadline at": sending.deadline_ms,
        "headers": dict(sending.headers) or None,
        "reply": sending.reply,
        "keep": sending.keeping.keep,
        "on_failure": None if sending.on_failure is None else sending.on_failure.task,
    }
    shown = ", ".join(f"{name}={value}" for name, value in words.items() if value is not None)
    return f" [{shown}]" if shown else ""


def _shown(name: str, value: Any) -> str:
    return f"{name}={_cut(to_json(value).decode(), _LONGEST_VALUE)}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"
