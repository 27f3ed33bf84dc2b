"""Logs go one way, for people or for machines. Each test is a program of its own: logging belongs to a process."""

import json
import logging
import os
import subprocess
import sys
from datetime import datetime, timedelta
from typing import cast

import pytest

from asyncq.app import AsyncQ
from asyncq.context import ContextServices, TaskContext, running
from asyncq.errors import InvalidOption
from asyncq.message import Message
from asyncq.observability.logs import configure_logging
from asyncq.observability.task_lines import TaskFilter

pytestmark = pytest.mark.any_version

PREPARED = """
import logging, sys, threading, warnings
import structlog
from asyncq.observability.logs import configure_logging
log = structlog.get_logger("asyncq.test")
configure_logging({level!r}, {format!r})
"""


def run(code, *, level="info", form="console", environment=None):
    """Run a program that has configured its logs, and return what became of it."""
    return subprocess.run(
        [sys.executable, "-c", PREPARED.format(level=level, format=form) + code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )


def lines(ended):
    """Return the JSON objects that the program logged."""
    return [json.loads(line) for line in ended.stderr.splitlines()]


def test_in_the_json_format_every_line_is_an_object():
    """structlog, the standard library, warnings, threads and the last exception: all the same form."""
    ended = run(
        """
log.info("task started", task="shop.mail", text="two\\nlines", data=b"\\xff", thing={1}, ü="ä")
logging.getLogger("other").warning("hello %s", "you", extra={"a": 1})
warnings.warn("old", DeprecationWarning)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("task failed")
thread = threading.Thread(target=lambda: [][0], name="helper")
thread.start(); thread.join()
raise RuntimeError("the end")
""",
        form="json",
        environment={"PYTHONWARNINGS": "default"},
    )
    started, hello, warning, failed, thread, end = lines(ended)
    assert ended.stdout == ""
    assert ended.returncode == 1
    assert list(started)[:4] == ["timestamp", "level", "event", "logger"]
    assert started["logger"] == "asyncq.test"
    assert (started["event"], started["text"], started["ü"]) == ("task started", "two\nlines", "ä")
    assert (hello["level"], hello["event"], hello["logger"], hello["a"]) == ("warning", "hello you", "other", 1)
    assert "DeprecationWarning: old" in warning["event"]
    assert failed["level"] == "error"
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")
    assert (thread["event"], thread["thread"]) == ("unhandled exception in a thread", "helper")
    assert (end["level"], end["event"]) == ("critical", "unhandled exception")
    assert end["exception"].endswith("RuntimeError: the end")


def test_machine_timestamps_are_iso_in_utc():
    """Whatever the process's own time zone is."""
    (line,) = lines(run("log.info('now')", form="json", environment={"TZ": "Asia/Tokyo"}))
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)
    assert line["timestamp"].endswith("Z")


def test_calls_below_the_level_are_not_even_made():
    """The filter is the logger's class: no processor runs, no argument is formatted."""
    ended = run(
        """
class Loud:
    def __repr__(self): raise SystemExit("was formatted")
log.info("quiet", thing=Loud())
logging.getLogger("other").info("quiet %r", Loud())
log.warning("heard")
assert structlog.get_logger().bind().info.__name__ == "_nop", structlog.get_logger().bind().info
""",
        level="warning",
        form="json",
    )
    assert ended.returncode == 0, ended.stderr
    assert [line["event"] for line in lines(ended)] == ["heard"]


def test_people_get_one_readable_line_without_colours_unless_it_is_a_terminal():
    """A file or a pipe is not filled with escape sequences."""
    ended = run("log.warning('slow task', task='shop.mail')", environment={"FORCE_COLOR": "1"})
    assert "warning" in ended.stderr
    assert "slow task" in ended.stderr
    assert "task=shop.mail" in ended.stderr
    assert "\x1b" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_people_get_colours_on_a_terminal():
    """And only there. The stream says what it is: a bare root has no pseudo-terminals to try it on."""
    terminal = "import sys\nsys.stderr.isatty = lambda: True\n"
    code = terminal + PREPARED.format(level="info", format="console") + "log.warning('slow task')"
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "\x1b[" in ended.stderr
    assert "slow task" in ended.stderr


def test_a_program_goes_on_when_nobody_reads_its_log_any_more():
    """The reader of the pipe is gone: a worker must not end for that in the middle of its work."""
    code = PREPARED.format(level="info", format="console") + (
        "import os\nreader, writer = os.pipe()\nos.dup2(writer, 2)\nos.close(reader)\nos.close(writer)\n"
        "for _ in range(3):\n    log.warning('x' * 100)\n    logging.getLogger('other').warning('y')\nprint('done')"
    )
    ended = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False, timeout=60)
    assert ended.stdout == "done\n"


def test_tracebacks_do_not_show_local_variables():
    """They would hold passwords."""
    ended = run(
        """
def connect():
    password = "hunter" + "2"
    raise ValueError("no connection")
try:
    connect()
except ValueError:
    log.exception("failed")
"""
    )
    assert "ValueError: no connection" in ended.stderr
    assert "in connect" in ended.stderr
    assert "hunter2" not in ended.stderr


def test_the_amqp_client_is_heard_at_warning_and_above_without_what_is_told_twice():
    """A lost connection is one line of ours, not four of the client's."""
    ended = run(
        """
client = logging.getLogger("aiormq.connection")
client.info("chatter")
client.warning("Cancelling cause reader exited abnormally", exc_info=ValueError())
client.error("Unexpected connection close from remote %s", "x")
client.warning("channel cancelled")
logging.getLogger("mine").warning("Cancelling cause reader exited abnormally, says mine")
""",
        form="json",
    )
    assert [line["event"] for line in lines(ended)] == [
        "channel cancelled",
        "Cancelling cause reader exited abnormally, says mine",
    ]


def test_at_debug_the_amqp_client_holds_nothing_back():
    """Whoever looks for a fault sees all of it."""
    code = "logging.getLogger('aiormq').warning('Cancelling cause reader exited abnormally')"
    assert [line["event"] for line in lines(run(code, level="debug", form="json"))] == [
        "Cancelling cause reader exited abnormally"
    ]


def test_what_cannot_be_written_in_the_streams_encoding_is_escaped():
    """A log line never raises."""
    ended = run("log.info('snow ☃ and \\udcff')", form="json", environment={"PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0, ended.stderr
    assert "snow" in ended.stderr


REDACTING = """
from asyncq.observability.redaction import redact_by

def hide(line):
    return {name: str(value).replace("hunter2", "***") for name, value in line.items()}

redact_by(hide)
try:
    raise ValueError("password hunter2")
except ValueError:
    log.exception("refused hunter2", user={"password": "hunter2"})
    logging.getLogger("other").exception("refused %s", "hunter2")
raise RuntimeError("the end of hunter2")
"""


@pytest.mark.parametrize("form", ["console", "json"])
def test_the_redaction_hook_sees_all_that_is_written(form):
    """Events, values, tracebacks, the standard library's lines and the last exception."""
    ended = run(REDACTING, form=form)
    assert ended.stderr.count("refused ***") == 2
    assert "ValueError: password ***" in ended.stderr
    assert "RuntimeError: the end of ***" in ended.stderr
    assert "hunter2" not in ended.stderr


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ("lambda line: line['no such value']", "the redaction hook failed"),
        ("lambda line: None", "the redaction hook has returned no dict"),
    ],
)
def test_a_redaction_hook_that_fails_lets_nothing_through_and_breaks_nothing(hook, said):
    """The line says that one is withheld, and where it came from."""
    code = f"from asyncq.observability.redaction import redact_by\nredact_by({hook})\n"
    ended = run(code + "log.warning('hunter2')\nlogging.getLogger('other').error('hunter2')", form="json")
    assert ended.returncode == 0
    first, second = lines(ended)
    assert said in first["event"]
    assert (first["level"], first["logger"]) == ("warning", "asyncq.test")
    assert (second["level"], second["logger"]) == ("error", "other")
    assert "hunter2" not in ended.stderr


def test_a_format_string_can_name_the_task():
    """For programs that configure the standard library in their own way."""
    record = logging.LogRecord("shop", logging.INFO, __file__, 1, "sent", (), None)
    message = Message(type="shop.mail", body=b"{}", task_id="id-1", message_id="m-1")
    services = cast("ContextServices", None)
    formatter = logging.Formatter("%(task)s %(task_id)s %(attempt)s %(queue)s: %(message)s")
    with running(TaskContext(message, "mail", 2, services)):
        assert TaskFilter().filter(record)
    assert formatter.format(record) == "shop.mail id-1 2 mail: sent"
    outside = logging.LogRecord("shop", logging.INFO, __file__, 1, "sent", (), None)
    TaskFilter().filter(outside)
    assert formatter.format(outside) == "- - - -: sent"


def test_a_hook_that_cannot_be_one_is_refused():
    """A coroutine would never be awaited."""

    async def hide(line):
        return line

    for wrong in (hide, "text"):
        with pytest.raises(InvalidOption, match=r"AsyncQ\(redact=...\) takes a `def` function"):
            AsyncQ("shop", redact=wrong)


@pytest.mark.parametrize(("level", "form", "said"), [("loud", "console", "critical"), ("info", "xml", "console, json")])
def test_an_unknown_level_or_format_is_refused(level, form, said):
    """The message names the known ones."""
    with pytest.raises(InvalidOption, match=said):
        configure_logging(level, form)
