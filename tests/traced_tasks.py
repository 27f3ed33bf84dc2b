"""Functions of tasks that tell which span is current where they run; a process of their own imports them from here."""

from opentelemetry import trace

from asyncq import TaskContext
from asyncq.signature import Signature


def current_span() -> str:
    """Return the ids of the current trace and span."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x} {context.span_id:016x}"


async def on_the_loop() -> str:
    return current_span()


def in_a_thread() -> str:
    return current_span()


def in_a_process() -> str:
    return current_span()


def pass_on_in_a_process(ctx: TaskContext, task: str) -> str:
    """Send a task from the process, and return the span that is current there."""
    ctx.sync.send(Signature(name=task, body=b"{}", queue=ctx.queue, reply=False, decode=bytes))
    return current_span()


def log_in_a_process(ctx: TaskContext) -> str:
    ctx.log.warning("in a process")
    return current_span()
