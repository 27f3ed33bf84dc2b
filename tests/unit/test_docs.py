"""The documentation says what the code does."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from asyncq import errors
from asyncq.settings import Settings
from support import working
from web_server import events_in, serving

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_compiles(page):
    """Top-level awaits stand for "inside a coroutine"."""
    for block in blocks(page):
        compile(block, page.name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize(
    "name",
    [
        "tasks.md",
        "failures.md",
        "schedules.md",
        "lifespan.md",
        "dependencies.md",
        "middleware.md",
        "logs.md",
        "workflows.md",
    ],
)
def test_the_declarations_of_the_guides_can_be_executed(name):
    """All blocks of a page, one after the other, against the real package."""
    namespace: dict[str, object] = {"__name__": "guide"}
    for block in blocks(ROOT / "docs" / name):
        if not block.startswith(("async with", "await ")):
            exec(compile(block, name, "exec"), namespace)
    assert len(namespace["app"].tasks) >= 1


async def test_the_workflows_of_their_page_have_the_results_that_it_shows(capsys):
    """Each line `await ...  # result`, with a worker in memory; and the tree that is printed."""
    page = ROOT / "docs" / "workflows.md"
    declarations, *others = blocks(page)
    namespace: dict[str, object] = {"__name__": "guide"}
    exec(
        compile(declarations.replace('AsyncQ("shop")', 'AsyncQ("shop", broker="memory://docs")'), page.name, "exec"),
        namespace,
    )
    lines = [line for block in others for line in block.splitlines() if line.startswith("await ")]
    async with working(namespace["app"]):
        for line in lines:
            call, _, shown = line.removeprefix("await ").partition("  # ")
            assert await eval(call, namespace) == ast.literal_eval(shown), line
    assert len(lines) > 10
    capsys.readouterr()
    exec(next(block for block in others if block.startswith("print(")), namespace)
    shown = re.search(r"^```console\n(chain\n.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert capsys.readouterr().out == shown[1]


def test_the_first_task_of_the_readme_can_be_executed():
    """What a newcomer copies first."""
    block = next(block for block in blocks(ROOT / "README.md") if block.startswith("# shop.py"))
    namespace: dict[str, object] = {"__name__": "shop"}
    exec(compile(block, "shop.py", "exec"), namespace)
    assert set(namespace["app"].tasks) == {"shop.add", "shop.send_email"}


def test_the_program_of_the_page_on_results_prints_what_it_shows(tmp_path):
    """On a real file of SQLite."""
    page = ROOT / "docs" / "results.md"
    (tmp_path / "count.py").write_text(blocks(page)[0])
    done = subprocess.run([sys.executable, "count.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    shown = re.search(r"^```console\n\$ python count.py\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert done.stdout == shown[1], done.stderr


async def test_the_service_of_the_page_on_fastapi_does_what_it_shows(monkeypatch):
    """Its first program as it stands, but for the places of broker and results."""
    monkeypatch.setenv("ASYNCQ_BROKER_URL", "memory://fastapi-page")
    program, *others = blocks(ROOT / "docs" / "fastapi.md")
    namespace: dict[str, object] = {"__name__": "shop"}
    for block in (program.replace("sqlite:///results.db", "memory://fastapi-page"), *others):
        exec(compile(block, "fastapi.md", "exec", dont_inherit=True), namespace)
    async with working(namespace["app"]), serving(namespace["api"]) as client:
        sent = (await client.post("/invoices", params={"customer": "ada"})).json()
        assert sent["status"] == "queued"
        async with client.stream("GET", f"/tasks/{sent['task_id']}/events") as response:
            last = [event.data async for event in events_in(response)][-1]
        assert (last["state"], last["progress"]["label"], last["result"]) == ("succeeded", "writing it", {"number": 3})
        assert (await client.get(f"/invoices/{sent['task_id']}")).json() == last


def test_the_page_of_settings_names_every_field_with_its_default():
    """No more and no less."""
    rows = re.findall(
        r"^\| `(\w+)` \| `(\w+)` \| `(.*?)` \|", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE
    )
    fields = {name: str(field.default) for name, field in Settings.model_fields.items()}
    assert {name: default for name, _, default in rows} == fields
    assert all(variable == f"ASYNCQ_{name.upper()}" for name, variable, _ in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    """And errors that are named exist."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
    for name in re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", page.read_text()):
        if name in {"NotSent", "PublishUncertain", "PartlySent", "MessageTooLarge", "TopologyMismatch"}:
            assert hasattr(errors, name)
