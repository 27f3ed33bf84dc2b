"""`asyncq worker` with an app that has a lifespan, middleware, dependencies and a redaction hook: its life, its log."""

import json

import pytest

from asyncq import AsyncQ, TaskFailed

pytestmark = pytest.mark.any_version

EXTENDED = """
import logging
import structlog

from asyncq import AsyncQ, AttemptInfo, CallNext, Depends, Outcome, Reject, TaskContext, current_context

plain = logging.getLogger("shop.plain")
modern = structlog.get_logger("shop.modern")


def redact(line):
    return {name: value.replace("s3cret", "***") if isinstance(value, str) else value for name, value in line.items()}


async def lifespan(app):
    plain.info("opened")
    yield {"greeting": "hello"}
    plain.info("closed")


async def told(info: AttemptInfo, call_next: CallNext) -> Outcome:
    plain.info("before")
    return await call_next()


app = AsyncQ("extended", lifespan=lifespan, middleware=[told], redact=redact)


def greeting() -> str:
    plain.info("in a dependency")
    return current_context().resources["greeting"]


@app.task
async def on_loop(word: str, greeting: str = Depends(greeting)) -> str:
    plain.info("plain %s", word, extra={"colour": "red"})
    modern.info("modern", word=word)
    return greeting


@app.task
def in_thread(word: str, greeting: str = Depends(greeting)) -> str:
    plain.info("plain %s", word)
    modern.info("modern", word=word)
    return greeting


@app.task(run_in="process", pass_context=True)
def in_process(ctx: TaskContext, word: str) -> str:
    plain.info("plain %s", word)
    modern.info("modern", word=word)
    ctx.log.info("own", word=word)
    return "hello"


@app.task
async def fail() -> None:
    raise ValueError("the password is s3cret")
"""


async def test_every_line_of_a_task_says_which_task_it_is(shell, broker_url):
    """The standard library's and structlog's, on the loop, in threads and in processes; secrets are taken out."""
    (shell.folder / "extended.py").write_text(EXTENDED)
    format_of_the_environment = {"ASYNCQ_LOG_FORMAT": "json", "ASYNCQ_LOG_LEVEL": "debug"}
    worker = shell.start("worker", "extended:app", "--slots", "1", environment=format_of_the_environment)
    await worker.says("worker consumes")
    async with AsyncQ("sender", broker=broker_url) as sender:
        for kind in ("on_loop", "in_thread", "in_process"):
            assert await sender.call(f"extended.{kind}", {"word": "s3cret"}) == "hello"
        with pytest.raises(TaskFailed, match="the password is s3cret"):
            await sender.call("extended.fail")
    worker.signal()
    assert await worker.ends() == 0
    lines = [json.loads(line) for line in worker.stderr.splitlines()]
    ours = [line for line in lines if str(line.get("logger")).startswith(("shop.", "asyncq.task"))]
    assert [line["event"] for line in ours if "task" not in line] == ["opened", "closed"]
    for kind in ("on_loop", "in_thread", "in_process"):
        said = [line for line in ours if line.get("task") == f"extended.{kind}"]
        (started,) = [line for line in lines if (line["event"], line.get("task")) == ("task started", said[0]["task"])]
        assert {(line["task_id"], line["attempt"], line["queue"]) for line in said} == {
            (started["task_id"], 1, "extended")
        }
        dependency = [] if kind == "in_process" else ["in a dependency"]
        own = ["own"] if kind == "in_process" else []
        assert [line["event"] for line in said] == ["before", *dependency, "plain ***", "modern", *own]
        assert [line["word"] for line in said if "word" in line] == ["***"] * (2 if own else 1)
    (error,) = [line for line in lines if line["event"].startswith("task failed")]
    assert (error["error"], error["message"]) == ("builtins.ValueError", "the password is ***")
    assert "s3cret" not in worker.stderr
    assert "left something running" not in worker.stderr
    assert lines.index(next(line for line in lines if line["event"] == "opened")) < lines.index(
        next(line for line in lines if line["event"] == "worker consumes")
    )


async def test_a_lifespan_that_fails_ends_the_worker_with_code_6_and_says_where(shell):
    """Not a fault of asyncq's: the user's own line is shown."""
    code = EXTENDED.replace('plain.info("opened")', 'raise ConnectionError("no database")')
    (shell.folder / "extended.py").write_text(code)
    worker = shell.start("worker", "extended:app")
    assert await worker.ends() == 6
    assert "lifespan failed before its `yield`" in worker.stderr
    assert "ConnectionError: no database" in worker.stderr
    assert "in lifespan" in worker.stderr
    assert "asyncq did not foresee this" not in worker.stderr
