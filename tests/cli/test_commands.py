"""The command line as a whole: help, versions, wrong usage, and errors that are never a bare traceback."""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from typer.testing import CliRunner

from asyncq import errors
from asyncq.cli.application import application
from asyncq.cli.report import exit_code_of, report
from asyncq.cli.text import moment, printable, safe_urls

pytestmark = pytest.mark.any_version


def invoke(*arguments):
    """Run a command in this process."""
    return CliRunner().invoke(application, list(arguments))


def test_help_names_every_command():
    """And each has its own help."""
    shown = invoke("--help")
    assert shown.exit_code == 0
    for command in ("worker", "send", "call", "dead", "topology", "doctor", "version"):
        assert command in shown.output
        assert invoke(command, "--help").exit_code == 0


def test_no_command_at_all_shows_the_help():
    """With the exit code of wrong usage, as is the custom."""
    shown = invoke()
    assert shown.exit_code == 2
    assert "Usage" in shown.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("worker",),
        ("send", "shop.greet"),
        ("send", "shop.greet", "{}", "--nonsense"),
        ("send", "shop.greet", "{}", "--delay", "soon"),
        ("send", "shop.greet", "{}", "--delay", "-1"),
        ("call", "shop.greet", "{}", "--timeout", "-1"),
        ("worker", "shop:app", "--slots", "0"),
        ("worker", "shop:app", "--log-level", "loud"),
        ("worker", "shop:app", "--log-format", "xml"),
        ("dead",),
        ("dead", "show"),
        ("dead", "show", "mail"),
        ("dead", "replay", "mail", "--limit", "0"),
        ("dead", "list", "mail", "--limit", "0"),
        ("topology",),
        ("topology", "show"),
        ("topology", "show", "shop:app", "--nonsense"),
        ("doctor", "shop:app", "--log-level", "loud"),
    ],
)
def test_wrong_usage_exits_with_2_and_says_what(arguments):
    """Before anything is loaded or connected."""
    shown = invoke(*arguments)
    assert shown.exit_code == 2
    assert "Usage" in shown.output
    assert "Traceback" not in shown.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("send", "shop.greet", "{"), "not JSON"),
        (("send", "shop.greet", "[]"), "not an array"),
        (("send", "shop.greet", "{}", "--eta", "2030-01-01"), "no time zone"),
        (("send", "shop.greet", "{}", "--delay", "1", "--eta", "2030-01-01T00:00:00Z"), "either --delay or --eta"),
        (("send", "shop.greet", "{}", "--header", "a"), "NAME=VALUE"),
        (("send", "shop.greet", "{}", "--expires", "soon"), "--expires takes seconds, or a moment in ISO 8601"),
    ],
)
def test_wrong_values_exit_with_2_and_one_message(arguments, said):
    """The message is ours, on standard error."""
    shown = invoke(*arguments)
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert shown.stderr.startswith("error: ")
    assert said in shown.stderr
    assert "Traceback" not in shown.output


def test_version_names_what_matters_in_a_bug_report():
    """As a table for people, as JSON for programs."""
    versions = json.loads(invoke("version", "--json").output)
    assert versions["asyncq"] == metadata.version("asyncq")
    assert versions["python"] == platform.python_version()
    assert {"aio-pika", "pydantic"} <= set(versions)
    assert metadata.version("aio-pika") in invoke("version").output


def test_the_console_script_and_the_module_are_the_same():
    """`asyncq` and `python -m asyncq`."""
    script = Path(sys.executable).with_name("asyncq")
    by_script = subprocess.run([script, "version"], capture_output=True, text=True, timeout=60, check=True)
    by_module = subprocess.run(
        [sys.executable, "-m", "asyncq", "version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert by_script.stdout == by_module.stdout


def test_importing_asyncq_does_not_import_the_command_line():
    """A web application has no use for typer."""
    code = "import asyncq, sys; print([name for name in ('typer', 'asyncq.cli') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout.strip() == "[]"


def _error_classes(base=errors.AsyncQError):
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _error_classes(child)


@pytest.mark.parametrize("kind", sorted(set(_error_classes()), key=lambda kind: kind.__name__))
def test_every_error_of_asyncq_has_a_documented_exit_code(kind, capsys):
    """1 for the task's failure, 2 for what the user can correct here, 3 for the broker; no traceback."""
    error = kind.__new__(kind)
    Exception.__init__(error, "what is wrong")
    for name in ("task_id", "type", "message", "traceback"):
        if issubclass(kind, errors.TaskFailed):
            setattr(error, name, "")
    if issubclass(kind, errors.TaskExpired):
        error = kind("id", datetime.now(UTC), datetime.now(UTC))
    expected = 1
    wrong_input = (errors.ConfigurationError, errors.UsageError, errors.MalformedMessage, errors.NoResultStore)
    if issubclass(kind, wrong_input):
        expected = 2
    elif issubclass(kind, (errors.BrokerError, errors.ResultStoreError)):
        expected = 3
    assert exit_code_of(error) == expected
    report(error)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err


def test_an_unforeseen_error_says_so_before_its_traceback(capsys):
    """It cannot be hidden, and must not look like the user's fault."""
    with pytest.raises(LookupError) as caught:
        {}["strange"]
    assert exit_code_of(caught.value) == 70
    report(caught.value)
    said = capsys.readouterr().err
    assert said.startswith("error: Unexpected KeyError: 'strange'\nasyncq did not foresee this.")
    assert "Traceback" in said


def test_values_that_do_not_fit_are_shown_one_a_line(capsys):
    """What pydantic found, without its addresses and codes."""
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(dict[str, int]).validate_python({"a": "x", "b": "y" * 200})
    report(caught.value)
    said = capsys.readouterr().err
    assert exit_code_of(caught.value) == 2
    assert "  a: Input should be a valid integer" in said
    assert "(given: 'x')" in said
    assert "errors.pydantic.dev" not in said
    assert "y" * 100 not in said


def test_notes_of_an_error_are_shown(capsys):
    """They tell where it happened."""
    error = errors.ConfigurationError("wrong")
    error.add_note("in line 3")
    report(error)
    assert capsys.readouterr().err == "error: wrong\nin line 3\n"


def test_ctrl_c_is_quiet(capsys):
    """Exit code 130, and no word."""
    report(KeyboardInterrupt())
    assert capsys.readouterr().err == ""
    assert exit_code_of(KeyboardInterrupt()) == 130


def test_remote_text_cannot_move_the_cursor():
    """Control characters and changes of direction are shown, not obeyed."""
    assert printable("a\x1b[31mb\r\nc\td\x07\u202ee\x9b") == "a\\x1b[31mb\nc\td\\x07\\u202ee\\x9b"


def test_moments_are_shown_in_utc_or_as_they_are():
    """A foreign header may hold any number."""
    assert moment(1_700_000_000_999) == "2023-11-14T22:13:20Z"
    assert moment(10**30) == str(10**30)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://guest:guest@localhost:5672/", "amqp://guest:***@localhost:5672/"),
        ("amqp://guest@localhost", "amqp://guest@localhost"),
        ("amqp://u:p%40ss%2Fword@h/v%2Fhost?x=secret", "amqp://u:***@h/v%2Fhost"),
        ("amqp://a:one@h1, amqps://b:two@h2:5671/v", "amqp://a:***@h1, amqps://b:***@h2:5671/v"),
        ("amqp://u:p@ss:word@h:99999999/", "a broker URL that cannot be read"),
        ("amqp://u:one,two@h/", "a broker URL that cannot be read"),
        ("secret", "a broker URL that cannot be read"),
    ],
)
def test_a_broker_url_is_shown_without_its_password(url, shown):
    """Percent-encoded ones, lists, and what cannot be read at all."""
    assert safe_urls(url) == shown
