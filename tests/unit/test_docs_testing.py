"""Every example of docs/testing.md runs, and prints what the page shows."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from testing_page import Block, blocks, run, write_files

ROOT = Path(__file__).parents[2]

# Run alone: by a command that the page shows, or on a real broker, by tests/integration/test_docs_testing.py.
APART = ("tests/wrong/", "tests/adapter/", "tests/rabbitmq/")

COMMANDS = [block for block in blocks() if block.command is not None]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The page's files."""
    write_files(tmp_path)
    return tmp_path


def test_each_block_is_a_file_a_command_or_the_installation():
    """So that none is left out by the tests below."""
    found = blocks()
    files = [block.file for block in found if block.file is not None]
    assert len(files) == len(set(files)), "one file twice: the second would replace the first"
    assert len(files) >= 15
    assert len(COMMANDS) >= 5
    (installation,) = [block for block in found if block.file is None and block.command is None]
    wanted = tomllib.loads((ROOT / "tests/sample_project/pyproject.toml").read_text())["project"]
    names = [re.split(r"[<>=]", name)[0] for name in wanted["optional-dependencies"]["dev"]]
    assert installation == Block("sh", f"pip install {' '.join(names)}\n")  # tests/integration/test_sample_project.py


def test_each_file_is_run():
    """As a test, by a command that is shown, or because others import it."""
    for block in blocks():
        name = block.file
        if name is None or name in {"pyproject.toml", "shop/tasks.py", "tests/conftest.py"}:
            continue
        is_test = Path(name).name.startswith("test_") and not name.startswith(APART)
        shown = any(name in (command.command or ()) for command in COMMANDS)
        assert is_test or shown or "asyncq_rabbitmq" in block.text, name


def test_the_tests_of_the_page_pass(project):
    """All of them, none skipped, with warnings as errors."""
    answer = run(["pytest", "-W", "error", *(f"--ignore={folder}" for folder in APART)], project)
    assert answer.returncode == 0, answer.stdout
    texts = [block.text for block in blocks() if block.file is not None and not block.file.startswith(APART)]
    number = sum(len(re.findall(r"^ *(?:async )?def test_", text, re.MULTILINE)) for text in texts)
    assert number >= 12
    assert re.search(rf"^=+ {number} passed in [\d.]+s =+$", answer.stdout, re.MULTILINE), answer.stdout


def test_the_example_of_the_readme_passes(tmp_path):
    """With the README's own app."""
    readme = (ROOT / "README.md").read_text()
    for name in ("shop.py", "test_shop.py"):
        (tmp_path / name).write_text(
            re.search(rf"^```python\n(# {name}\n.*?)^```$", readme, re.MULTILINE | re.DOTALL)[1]
        )
    (ini,) = re.findall(r"^```toml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "pyproject.toml").write_text(ini)
    answer = run(["pytest"], tmp_path)
    assert "1 passed in" in answer.stdout, answer.stdout


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: " ".join(block.command or ()))
def test_a_command_prints_what_is_shown(project, block):
    """Of pytest's output these lines, in this order and however wide their columns are; of a program all."""
    answer = run(block.command, project)
    assert answer.returncode == (1 if "1 failed" in block.shown else 0), answer
    if block.command[0] == "python":
        assert answer.stdout.splitlines() == block.shown
        assert "drain timeout" not in answer.stderr  # nothing runs any more when its app is closed
        return
    output, position = narrow(answer.stdout), 0
    for line in map(narrow, block.shown):
        found = output.find(line, position)
        assert found >= 0, f"{line!r} is missing, or not in its place:\n{answer.stdout}"
        position = found + len(line)


def narrow(text: str) -> str:
    """Leave one space where there are several."""
    return re.sub(" +", " ", text)
