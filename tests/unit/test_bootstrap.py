"""The way from a bare machine to a virtual environment, and the rule that CI skips nothing."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

CI = Path(__file__).parents[2] / ".ci"


@pytest.fixture(scope="module")
def bootstrap() -> ModuleType:
    """`.ci/bootstrap.py`, which is a program outside of any package."""
    spec = importlib.util.spec_from_file_location("bootstrap", CI / "bootstrap.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["bootstrap"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["bootstrap"]


@pytest.fixture
def pythons(tmp_path):
    """Make commands that answer the probe of `.ci/find-python` as other Pythons would."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "dirname"):
        (folder / tool).symlink_to(shutil.which(tool))

    def add(name: str, script: str) -> Path:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    add.path = str(folder)
    return add


def find_python(path: str, **env: str) -> subprocess.CompletedProcess:
    """Run `.ci/find-python` with a PATH."""
    return subprocess.run(
        ["/bin/sh", CI / "find-python"], env={"PATH": path} | env, capture_output=True, text=True, check=False
    )


def test_the_newest_python_is_found(pythons):
    """Versions are compared as numbers, wherever they are on PATH."""
    pythons("python3", "echo 3011002 /usr/bin/python3")
    pythons("python3.13", "echo 3013001 /usr/bin/python3.13")
    pythons("python3.12", "echo 3012009 /usr/bin/python3.12")

    assert find_python(pythons.path).stdout == "/usr/bin/python3.13\n"


def test_a_shim_that_fails_is_passed_over(pythons):
    """Version managers put names on PATH that only print an error when they are run."""
    pythons("python3.14", "echo 'python3.14: command not found' >&2; exit 127")
    pythons("python3.13", "echo 'something else'")
    pythons("python3.11", "echo 3011002 /usr/bin/python3.11")

    assert find_python(pythons.path).stdout == "/usr/bin/python3.11\n"


def test_the_python_of_a_virtual_environment_is_followed_to_its_base():
    """An environment made from an environment would be gone with it."""
    found = find_python(str(Path(sys.executable).parent)).stdout.strip()

    assert Path(found).exists()
    assert sys.prefix == sys.base_prefix or not Path(found).is_relative_to(sys.prefix)


def test_without_a_new_enough_python_it_says_what_to_install(pythons):
    """What was looked at is named, with the commands that help."""
    pythons("python3", "echo 0 /usr/bin/python3")

    answer = find_python(pythons.path)

    assert answer.returncode == 1
    assert answer.stdout == ""
    assert f"{pythons.path}/python3" in answer.stderr
    assert "apt-get install python3" in answer.stderr


def test_a_named_python_is_taken_or_refused(pythons):
    """PYTHON= overrules the search, also where it is wrong."""
    pythons("python3", "echo 3012001 /usr/bin/python3")
    mine = pythons("mine", "echo 3011001 /opt/mine")

    assert find_python(pythons.path, PYTHON=str(mine)).stdout == "/opt/mine\n"
    refused = find_python(pythons.path, PYTHON="/nowhere/python")
    assert refused.returncode == 1
    assert "/nowhere/python" in refused.stderr


@pytest.fixture(scope="module")
def template(bootstrap, tmp_path_factory):
    """A project that needs nothing, with a real environment that has nothing installed in it."""
    folder = tmp_path_factory.mktemp("template") / "checkout"
    folder.mkdir()
    (folder / "pyproject.toml").write_text("[project]\nname='x'\nversion='1'\n")
    made = bootstrap.Environment(folder)
    bootstrap.make(made, bootstrap.Interpreter.this())
    return made


@pytest.fixture
def environment(bootstrap, template, tmp_path):
    """A copy of the template that a test may break, as if it had been made where it is."""
    folder = tmp_path / "checkout"
    shutil.copytree(template.checkout, folder, symlinks=True)
    pip = folder / ".venv" / "bin" / "pip"
    pip.write_text(pip.read_text().replace(str(template.checkout), str(folder)))
    return bootstrap.Environment(folder)


def test_what_is_installed_is_known_until_the_project_changes(environment):
    """The stamp holds for one content of `pyproject.toml`."""
    assert environment.installed() is None
    environment.record({"dev"})
    assert environment.installed() == {"dev"}

    (environment.checkout / "pyproject.toml").write_text("[project]\nname='x'\nversion='2'\n")
    assert environment.installed() is None


def test_an_environment_that_is_up_to_date_is_left_alone(bootstrap, environment):
    """No pip is run: this project could not even be built."""
    environment.record({"dev", "workers"})
    before = environment.stamp.stat().st_mtime_ns

    bootstrap.refresh(environment, {"dev"}, None)

    assert environment.stamp.stat().st_mtime_ns == before


def test_an_environment_works_only_where_it_was_made(bootstrap, environment, tmp_path_factory):
    """The scripts in it name its folder, so a moved checkout needs a new one."""
    assert environment.usable()

    elsewhere = tmp_path_factory.mktemp("moved") / "checkout"
    environment.checkout.rename(elsewhere)

    assert not bootstrap.Environment(elsewhere).usable()


def test_an_environment_with_another_python_than_the_named_one_is_not_usable(environment):
    """Whoever names a Python gets an environment with that one."""
    assert environment.usable(sys.version_info[:2])
    assert not environment.usable((3, 99))


def test_an_environment_that_lost_its_python_is_not_usable(environment):
    """A system upgrade takes the old Python away."""
    environment.python.unlink()
    environment.python.symlink_to("/nowhere/python3")

    assert not environment.usable()


def test_a_failing_pip_is_shown_and_leaves_no_stamp(bootstrap, environment):
    """The next run must try again."""
    environment.record(set())
    (environment.checkout / "pyproject.toml").write_text("not toml")

    with pytest.raises(bootstrap.BootstrapError, match="pip install"):
        bootstrap.install(environment, {"dev"})

    assert environment.installed() is None


def test_a_missing_venv_module_outside_of_the_distribution_names_a_way_out(bootstrap):
    """Debian's packages cannot repair a Python that was built by hand."""
    broken = bootstrap.Interpreter("/opt/python", (3, 12), distribution=False, can_make_environments=False)

    with pytest.raises(bootstrap.BootstrapError, match="make PYTHON="):
        bootstrap.ensure_modules(broken)


def test_where_apt_cannot_install_the_exact_command_is_printed(bootstrap, monkeypatch, tmp_path):
    """Without root (or without apt) the user is told what to type."""
    monkeypatch.setenv("PATH", str(tmp_path))
    lacking = bootstrap.Interpreter("/usr/bin/python3", (3, 11), distribution=True, can_make_environments=False)

    with pytest.raises(bootstrap.BootstrapError, match=r"(?m)^    sudo apt-get install python3\.11-venv$"):
        bootstrap.ensure_modules(lacking)


@pytest.mark.parametrize(("ci", "exit_code"), [("true", pytest.ExitCode.TESTS_FAILED), ("", pytest.ExitCode.OK)])
def test_a_skipped_test_fails_the_run_under_ci_only(tmp_path, ci, exit_code):
    """A person sees the list of skips; nobody reads a green CI run."""
    answer = run_pytest(tmp_path, "import pytest\ndef test_one(): pytest.skip('no broker')\ndef test_two(): pass\n", ci)

    assert answer.returncode == exit_code, answer.stdout
    assert "no broker" in answer.stdout
    assert answer.stdout.splitlines()[-1].startswith("1 passed, 1 skipped")


def test_an_expected_failure_is_no_skip(tmp_path):
    """It ran."""
    answer = run_pytest(tmp_path, "import pytest\n@pytest.mark.xfail\ndef test_one(): assert False\n", "true")

    assert answer.returncode == pytest.ExitCode.OK, answer.stdout


def run_pytest(folder: Path, tests: str, ci: str) -> subprocess.CompletedProcess:
    """Run tests in a project of their own, with the plugin."""
    (folder / "test_it.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\n")
    env = os.environ | {"PYTHONPATH": str(CI), "CI": ci}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no_skips", "-p", "no:cacheprovider", folder],
        env=env,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
