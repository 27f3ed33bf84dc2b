"""Declaring tasks at an app, finding them, and importing the modules that declare them."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from asyncq.context import TaskContext
from asyncq.errors import (
    ConfigurationError,
    DuplicateTask,
    InvalidOption,
    InvalidQueueName,
    TaskDefinitionError,
    UnknownTask,
)
from asyncq.queue_names import check_app_name, check_queue_name
from asyncq.registry import TaskRegistry


def make_app(name: str = "shop", include: Any = ()) -> TaskRegistry:
    sender: Any = None  # nothing is sent here
    return TaskRegistry(name, include, sender)


# --- declaring


def test_names_and_queues_have_defaults():
    """`<app>.<function>` on the app's own queue."""
    app = make_app()

    @app.task
    async def a() -> None: ...

    @app.task()
    def b() -> None: ...

    @app.task(name="other.c", queue="mail")
    def c() -> None: ...

    assert {name: task.queue for name, task in app.tasks.items()} == {
        "shop.a": "shop",
        "shop.b": "shop",
        "other.c": "mail",
    }


def test_the_tasks_are_read_only_and_up_to_date():
    """A worker can hold the mapping."""
    app = make_app()
    tasks = app.tasks

    @app.task
    def a() -> None: ...

    assert tasks["shop.a"] is a
    with pytest.raises(TypeError):
        tasks["shop.b"] = a  # type: ignore[index]


def test_time_limits_are_seconds_or_timedeltas():
    """Both are kept as seconds."""
    app = make_app()

    @app.task(time_limit=timedelta(minutes=1))
    def a() -> None: ...

    @app.task(time_limit=0.5)
    def b() -> None: ...

    assert (a.run.time_limit_s, b.run.time_limit_s) == (60.0, 0.5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"time_limit": 0}, InvalidOption, "more than zero"),
        ({"time_limit": -1}, InvalidOption, "time_limit"),
        ({"time_limit": "1"}, InvalidOption, "time_limit"),
        ({"retry": 3}, InvalidOption, "RetryPolicy"),
        ({"reply": "no"}, InvalidOption, "True or False"),
        ({"max_retries": 3}, InvalidOption, "no option 'max_retries'.*retry"),
        ({"name": " a"}, InvalidOption, "name"),
        ({"name": "a\n"}, InvalidOption, "name"),
        ({"name": 5}, InvalidOption, "name"),
        ({"name": ""}, InvalidOption, "name"),
        ({"name": "ä" * 128}, InvalidOption, "255 bytes"),
        ({"queue": "asyncq.x"}, InvalidQueueName, "asyncq's own"),
        ({"queue": ""}, InvalidQueueName, "at least one character"),
    ],
)
def test_wrong_options_are_refused(options: Any, error: type[Exception], message: str):
    """Before the function is looked at."""
    with pytest.raises(error, match=message):
        make_app().task(**options)


def test_a_function_without_a_name_needs_one():
    """A lambda has none that could stand on the wire."""
    app = make_app()
    with pytest.raises(TaskDefinitionError, match="no name that a task could have"):
        app.task(lambda: 1)
    assert app.task(name="shop.one")(lambda: 1).name == "shop.one"


def test_annotations_are_resolved_again_when_the_app_opens(monkeypatch: pytest.MonkeyPatch):
    """`resolve` is what opening calls."""
    app = make_app()

    @app.task(pass_context=True)
    async def a(ctx: TaskContext, later: Later) -> Later: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(TaskDefinitionError, match=r"task 'shop\.a': parameter 'later'.*'Later'"):
        app.resolve()
    monkeypatch.setitem(globals(), "Later", int)
    app.resolve()
    assert a.s(3).body == b'{"later":3}'


# --- finding


def test_an_unknown_name_is_told_with_names_that_are_close():
    """A misspelling shows."""
    app = make_app()

    @app.task
    def send_email() -> None: ...

    assert app.get("shop.send_email") is send_email
    with pytest.raises(UnknownTask, match=r"no task 'shop\.send_mail'\. Did you mean 'shop\.send_email'\?"):
        app.get("shop.send_mail")
    with pytest.raises(UnknownTask, match=r"Its tasks are: shop\.send_email\."):
        app.get("x")
    with pytest.raises(UnknownTask, match="has no tasks: import the module"):
        make_app().get("x")


# --- two of one name


def test_two_functions_of_one_name_are_an_error_at_once():
    """The message names both places."""
    app = make_app()

    @app.task(name="shop.work")
    def first() -> None: ...

    with pytest.raises(DuplicateTask, match=r"(?s)'shop\.work' is taken.*first.*test_registry\.py:\d+.*second"):

        @app.task(name="shop.work")
        def second() -> None: ...

    assert app.get("shop.work") is first


def test_a_function_that_is_pasted_twice_is_an_error():
    """It has the same name and module, and is another function all the same."""
    app = make_app()

    @app.task
    def work() -> None: ...

    with pytest.raises(DuplicateTask, match=r"shop\.work"):

        @app.task
        def work() -> None: ...


@pytest.mark.parametrize("edit", ["", "# a new line, so that the function moves\n"])
def test_a_module_that_is_reloaded_declares_its_tasks_anew(
    write_module: Callable[[str, str], Path], edit: str, monkeypatch: pytest.MonkeyPatch
):
    """As it was, and after an edit; the app lives on in another module."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write_module("reload_app", "from asyncq.registry import TaskRegistry\napp = TaskRegistry('shop', [], None)\n")
    text = "from reload_app import app\n\n@app.task\ndef work() -> None: ...\n"
    file = write_module("reload_tasks", text)
    os.utime(file, ns=(0, 1_000_000_000))
    tasks = importlib.import_module("reload_tasks")
    first = tasks.work
    if edit:
        file.write_text(edit + text)
        importlib.invalidate_caches()
    importlib.reload(tasks)
    assert tasks.work is not first
    assert tasks.app.get("shop.work") is tasks.work


# --- names of queues and apps


@pytest.mark.parametrize("name", ["mail", "a", "A.b-c_9", "mail.deadly", "asyncq", "asyncqx", "x" * 200, ".", "dead"])
def test_good_queue_names_pass(name: str):
    """Letters, digits, dots, underscores and hyphens."""
    check_queue_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "at least one character"),
        ("a b", "only letters"),
        ("a/b", "only letters"),
        ("ä", "only letters"),
        ("mail\n", "only letters"),
        ("a#", "only letters"),
        ("*", "only letters"),
        ("x" * 201, "201 bytes, more than 200"),
        ("asyncq.reply", "asyncq's own"),
        ("amq.gen", "RabbitMQ keeps"),
        ("mail.dead", "dead letters"),
        (None, "a string"),
        (b"mail", "a string"),
    ],
)
def test_bad_queue_names_say_why(name: Any, message: str):
    """The same rule holds for a task's queue and for a send's."""
    with pytest.raises(InvalidQueueName, match=message):
        check_queue_name(name)


@pytest.mark.parametrize("name", ["", "a b", "asyncq.x", "x.dead", "x" * 101, None])
def test_bad_app_names_are_a_configuration_error(name: Any):
    """An app's name is its default queue."""
    with pytest.raises(ConfigurationError, match="app name"):
        check_app_name(name)
    with pytest.raises(ConfigurationError, match="app name"):
        make_app(name)


# --- included modules


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Write a module that can be imported; it is forgotten after the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, text: str) -> Path:
        monkeypatch.delitem(sys.modules, name, raising=False)
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write


def test_included_modules_are_imported_once(write_module: Callable[[str, str], Path]):
    """Their tasks are there afterwards; a second time nothing happens."""
    write_module("included_ok", "runs = globals().get('runs', 0) + 1")
    app = make_app(include=["included_ok"])
    app.load_included()
    app.load_included()
    assert sys.modules["included_ok"].runs == 1


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.tasks", "json.no_such_part"])
def test_a_missing_module_is_named(name: str):
    """With the app that wants it, and where it is looked for."""
    with pytest.raises(ConfigurationError, match=rf"no module.*AsyncQ\('shop', include=.*{name}|no module '{name}'"):
        make_app(include=[name]).load_included()


@pytest.mark.parametrize(
    ("text", "cause", "message"),
    [
        ("1 / 0", ZeroDivisionError, "division by zero"),
        ("import no_such_dependency", ModuleNotFoundError, "no_such_dependency"),
        ("x = (", SyntaxError, "SyntaxError"),
        ("raise SystemExit(3)", SystemExit, "SystemExit: 3"),
        ("from json import no_such_name", ImportError, "no_such_name"),
    ],
)
def test_a_module_that_fails_is_named_with_its_error(
    write_module: Callable[[str, str], Path], text: str, cause: type[BaseException], message: str
):
    """The module's own error is the cause."""
    write_module("included_bad", text)
    with pytest.raises(ConfigurationError, match=rf"'included_bad'.*failed to import: .*{message}") as caught:
        make_app(include=["included_bad"]).load_included()
    assert isinstance(caught.value.__cause__, cause)


def test_include_is_a_list():
    """A text would be taken letter by letter."""
    with pytest.raises(ConfigurationError, match=r"include=\['tasks'\]"):
        make_app(include="tasks")
    with pytest.raises(ConfigurationError, match=r"names of modules, such as 'shop\.tasks', not <module 'sys'"):
        make_app(include=[sys])


# --- files that are run as programs

APP = """
    import json, sys
    from asyncq import AsyncQ

    app = AsyncQ("shop", include=["shop_tasks"])

    @app.task
    async def here(n: int) -> int: ...

    def show():
        app.load_included()
        import shop_tasks
        print(json.dumps({
            "names": sorted(app.tasks),
            "one app": shop_tasks.app is app,
            "module": shop_tasks.app.get("shop.here").__module__,
        }))

    if __name__ == "__main__":
        show()
"""
TASKS = """
    from {module} import app, here

    @app.task
    async def there(n: int) -> int: ...
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python in a folder with the files of the test."""

    def run(*arguments: str, **files: str) -> subprocess.CompletedProcess[str]:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__in__', '/')}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(text))
        path = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONWARNINGS": "error"}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def test_a_script_and_a_worker_that_imports_it_see_the_same_tasks(run: Callable[..., Any]):
    """`python shop.py` is the producer, `asyncq worker shop:app` imports the file; modules of tasks import it too."""
    files = {"shop": APP, "shop_tasks": TASKS.format(module="shop")}
    script = run("shop.py", **files)
    worker = run("-c", "import shop; shop.show()")
    as_module = run("-m", "shop")
    assert [script.stderr, worker.stderr, as_module.stderr] == ["", "", ""]
    seen = json.loads(script.stdout)
    assert seen == {"names": ["shop.here", "shop.there"], "one app": True, "module": "__main__"}
    assert json.loads(as_module.stdout) == seen
    assert json.loads(worker.stdout) == {**seen, "module": "shop"}


def test_a_script_may_include_itself(run: Callable[..., Any]):
    """A worker imports it by that name; run as a script it is there already."""
    result = run("shop.py", shop=APP.replace('["shop_tasks"]', '["shop"]'), shop_tasks=TASKS.format(module="shop"))
    assert result.stderr == ""
    assert json.loads(result.stdout)["names"] == ["shop.here", "shop.there"]


def test_a_script_in_another_folder_is_one_app_too(run: Callable[..., Any]):
    """Python looks for modules in the script's own folder."""
    result = run("jobs/shop.py", jobs__in__shop=APP, jobs__in__shop_tasks=TASKS.format(module="shop"))
    assert result.stderr == ""
    assert json.loads(result.stdout)["one app"] is True


def test_a_module_of_a_package_that_is_run_is_one_app(run: Callable[..., Any]):
    """`python -m package.module`."""
    tasks = TASKS.format(module="package.shop")
    result = run("-m", "package.shop", package__in__shop=APP, shop_tasks=tasks)
    assert result.stderr == ""
    assert json.loads(result.stdout)["one app"] is True


def test_a_package_module_that_is_run_by_its_path_says_how_to_run_it(run: Callable[..., Any]):
    """Its importable name cannot be known beforehand, and two apps would share the tasks between them."""
    tasks = TASKS.format(module="package.shop")
    result = run("package/shop.py", package__in__shop=APP, shop_tasks=tasks)
    assert result.returncode == 1
    assert "there would be two apps 'shop'" in result.stderr
    assert "Start it by the name that it is imported by: python -m package.shop" in result.stderr


def test_a_spawned_process_sees_one_app(run: Callable[..., Any]):
    """multiprocessing runs the program's file once more, under yet another name."""  # noqa: D403
    script = """
        import multiprocessing
        from shop_base import *

        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=show)
            process.start()
            process.join()
            sys.exit(process.exitcode)
    """
    body = textwrap.dedent(APP).rpartition("if __name__")[0]
    program = "import multiprocessing\n" + body + textwrap.dedent(script).rpartition("import *\n")[2]
    result = run("shop.py", shop=program, shop_tasks=TASKS.format(module="shop"))
    assert result.stderr == ""
    assert json.loads(result.stdout)["one app"] is True


def test_a_module_that_has_the_scripts_name_already_is_left_alone(run: Callable[..., Any]):
    """Only a name that nobody has taken is given to the script."""
    code = (
        "import runpy, sys, taken; runpy.run_path('taken.py', run_name='__main__'); "
        "print(sys.modules['taken'] is taken)"
    )
    text = "from asyncq import AsyncQ\napp = AsyncQ('shop')\n"
    result = run("-c", code, taken=text)
    assert result.stderr == ""
    assert result.stdout.strip() == "True"


def test_a_script_whose_name_leads_to_another_module_is_not_taken_for_it(run: Callable[..., Any]):
    """A script may be called like an installed module that nobody has imported yet."""
    text = """
        import sys
        from asyncq import AsyncQ
        sys.path.remove(sys.path[0])
        app = AsyncQ("shop")
        import colorsys
        print(hasattr(colorsys, "rgb_to_hsv"))
    """
    result = run("jobs/colorsys.py", jobs__in__colorsys=text)
    assert result.stderr == ""
    assert result.stdout.strip() == "True"


def test_the_running_module_is_an_attribute_of_its_package(run: Callable[..., Any]):
    """`import package.shop` and then `package.shop.app` works as well as `from package.shop import app`."""
    tasks = "import package.shop\napp = package.shop.app\n"
    result = run("-m", "package.shop", package__in__shop=APP, shop_tasks=tasks)
    assert result.stderr == ""
    assert json.loads(result.stdout)["one app"] is True


def test_notebook_cells_can_be_run_again(run: Callable[..., Any]):
    """At a prompt, a function is declared anew with each change."""
    code = """
        from asyncq import AsyncQ
        app = AsyncQ("shop")
        exec(compile("@app.task\\ndef work(a: int): ...", "cell-1", "exec"))
        exec(compile("\\n@app.task\\ndef work(a: str): ...", "cell-2", "exec"))
        print(app.get("shop.work").s("x").body)
    """
    result = run("-c", textwrap.dedent(code))
    assert result.stderr == ""
    assert result.stdout.strip() == """b'{"a":"x"}'"""
