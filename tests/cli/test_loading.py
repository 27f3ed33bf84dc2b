"""`MODULE:APP` leads to an app, or to a message that says at which step it did not."""

import sys
import textwrap

import pytest

from asyncq import AsyncQ
from asyncq.errors import AppNotFound, ConfigurationError, TaskDefinitionError
from asyncq.loading import load_app


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory of its own; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(folder, name, code):
    """Write a module into the folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(code))


def refusal(target):
    """Return what `load_app` says against this target."""
    with pytest.raises(AppNotFound) as caught:
        load_app(target)
    return str(caught.value)


def test_the_app_of_a_module_in_the_current_directory_is_found(folder):
    """No PYTHONPATH is needed."""
    write(folder, "cli_shop.py", "from asyncq import AsyncQ\napp = AsyncQ('shop')\n")
    assert load_app("cli_shop:app").name == "shop"


def test_modules_in_packages_and_attributes_of_attributes_are_found(folder):
    """The dots mean what they mean in Python."""
    write(folder, "cli_pack/__init__.py", "")
    write(folder, "cli_pack/tasks.py", "from asyncq import AsyncQ\nclass Apps:\n    mail = AsyncQ('mail')\n")
    assert isinstance(load_app("cli_pack.tasks:Apps.mail"), AsyncQ)


def test_the_current_directory_comes_before_installed_packages(folder):
    """As with `python -m`."""
    sys.path.append(str(folder / "elsewhere"))
    write(folder, "elsewhere/cli_twice.py", "from asyncq import AsyncQ\napp = AsyncQ('wrong')\n")
    write(folder, "cli_twice.py", "from asyncq import AsyncQ\napp = AsyncQ('right')\n")
    assert load_app("cli_twice:app").name == "right"


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("shop", "Write MODULE:APP, with a colon between them, for example shop:app"),
        ("shop.py", "for example shop:app"),
        ("", "for example shop:app"),
        (":app", "for example shop:app"),
        ("shop:", "for example shop:app"),
        ("shop.py:app", "import statement: shop:app"),
        ("./workers/mail.py:app", "import statement: workers.mail:app"),
        ("workers/mail:app", "import statement: workers.mail:app"),
    ],
)
def test_a_target_of_another_form_is_told_the_right_one(target, said):
    """The example is made from what was typed."""
    assert said in refusal(target)


def test_a_module_that_is_not_there_is_named_with_the_folder_and_a_likely_other(folder):
    """A typing mistake is seen at once."""
    write(folder, "cli_images.py", "")
    said = refusal("cli_image:app")
    assert "There is no module 'cli_image'" in said
    assert str(folder) in said
    assert "Is it 'cli_images'?" in said


def test_a_missing_package_before_the_dot_is_named(folder):
    """It is the package that is missing, not the module in it."""
    assert "no module 'cli_nowhere', which 'cli_nowhere.tasks' needs" in refusal("cli_nowhere.tasks:app")


def test_a_module_inside_a_module_that_is_no_package_is_missing(folder):
    """Python's `X is not a package` is such a case, too."""
    write(folder, "cli_flat.py", "")
    assert "There is no module 'cli_flat.tasks'" in refusal("cli_flat.tasks:app")


def test_an_import_error_inside_the_module_shows_where(folder):
    """It is another fault than a missing module, and is not told as one."""
    write(folder, "cli_broken.py", "import os\n\nimport cli_not_installed\n")
    said = refusal("cli_broken:app")
    assert "Module 'cli_broken' is there, but importing it failed" in said
    assert "No module named 'cli_not_installed'" in said
    assert 'cli_broken.py", line 3' in said
    assert "importlib" not in said


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0\n", ["ZeroDivisionError: division by zero", "line 1"]),
        ("def x(:\n", ["SyntaxError", "line 1", "^"]),
        ("import sys\nsys.exit(3)\n", ["SystemExit: 3", "line 2", "__main__"]),
        ("raise KeyError\n", ["failed: KeyError", "line 1"]),
        ("from os import nothing_such\n", ["ImportError: cannot import name", "line 1"]),
    ],
)
def test_a_module_that_fails_shows_the_error_and_the_line(folder, code, said):
    """Whatever it raises while it is imported."""
    write(folder, "cli_fails.py", code)
    text = refusal("cli_fails:app")
    for part in said:
        assert part in text


def test_what_asyncq_itself_refuses_in_the_module_keeps_its_error_and_gets_the_place(folder):
    """The error's own class and message matter more than ours."""
    write(
        folder,
        "cli_wrong_task.py",
        """
        from asyncq import AsyncQ
        app = AsyncQ("shop")
        @app.task
        async def many(*args: int) -> None: ...
        """,
    )
    with pytest.raises(TaskDefinitionError, match="args") as caught:
        load_app("cli_wrong_task:app")
    assert 'cli_wrong_task.py", line 4' in "".join(caught.value.__notes__)


def test_the_modules_that_an_app_includes_are_imported_with_it(folder):
    """Their tasks are there, and the app module need not import them."""
    write(folder, "cli_app.py", "from asyncq import AsyncQ\napp = AsyncQ('shop', include=['cli_tasks'])\n")
    write(folder, "cli_tasks.py", "from cli_app import app\n@app.task\nasync def greet(name: str) -> str: ...\n")
    assert list(load_app("cli_app:app").tasks) == ["shop.greet"]


def test_an_included_module_that_fails_shows_where(folder):
    """As the app's own module does."""
    write(folder, "cli_app2.py", "from asyncq import AsyncQ\napp = AsyncQ('shop', include=['cli_tasks2'])\n")
    write(folder, "cli_tasks2.py", "x = 1\nx / 0\n")
    with pytest.raises(ConfigurationError, match=r"cli_tasks2.*ZeroDivisionError") as caught:
        load_app("cli_app2:app")
    assert 'cli_tasks2.py", line 2' in "".join(caught.value.__notes__)
    assert "registry.py" not in "".join(caught.value.__notes__)


def test_an_attribute_that_is_not_there_is_told_the_apps_that_are(folder):
    """Nobody has to open the file."""
    write(folder, "cli_two.py", "from asyncq import AsyncQ\nshop = AsyncQ('shop')\nmail = AsyncQ('mail')\nother = 3\n")
    assert "has no 'app'. Its apps: cli_two:mail, cli_two:shop." in refusal("cli_two:app")


def test_a_module_without_any_app_is_told_how_to_make_one(folder):
    """The first step of a newcomer."""
    write(folder, "cli_none.py", "")
    assert "It has no AsyncQ app at all; make one with" in refusal("cli_none:app")


@pytest.mark.parametrize(
    ("name", "said"),
    [("number", "is of type int"), ("AsyncQ", "is a class"), ("send", "is of type function")],
)
def test_an_attribute_that_is_no_app_is_told_what_it_is(folder, name, said):
    """And which apps there are."""
    write(
        folder,
        "cli_other.py",
        "from asyncq import AsyncQ\nshop = AsyncQ('shop')\nnumber = 3\ndef send(): ...\n",
    )
    text = refusal(f"cli_other:{name}")
    assert said in text
    assert "Its apps: cli_other:shop." in text
