"""The checks of the demo's workflows hold for what is right, and notice what is wrong."""

import json
import shutil

import pytest
from PIL import Image

import files
from demo import flows
from demo.flows import CSV_NAME, EDGE, PICTURES, ROWS, Flown
from demo.settings import Run

pytestmark = pytest.mark.any_version


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """What the server has, and what the workflows answered, where all went well."""
    run = Run("r", tmp_path_factory.mktemp("flows"))
    for folder in (run.served, run.logs):
        folder.mkdir()
    names, wanted = flows.prepare(run)
    answers = []
    for number, name in enumerate(names):
        with Image.open(run.served / name) as picture:
            picture.thumbnail((EDGE, EDGE))
            picture.save(run.served / f"{name}.{EDGE}.webp", "WEBP")
        answers.append(an_answer(f"{name}.{EDGE}.webp", attempt=2 if number == 3 else 1))
    totals = {"rows": ROWS, "bad_rows": 0, "totals": {city: str(total) for city, total in wanted.items()}}
    (run.served / f"{CSV_NAME}.totals.json").write_text(json.dumps(totals))
    run.file_log.write_text('{"event": "listening", "port": 1}\n{"event": "refused", "code": 503}\n')
    return run, names, wanted, Flown(answers, an_answer(f"{CSV_NAME}.totals.json"))


def an_answer(name, attempt=1):
    """Return what an upload answers."""
    return files.Uploaded(url=f"http://127.0.0.1:1/{name}", size_bytes=1, sha256="", attempt=attempt)


@pytest.fixture
def harmed(right, tmp_path):
    """A copy of the run, to be harmed."""
    run, *rest = right
    shutil.copytree(run.folder, tmp_path / "r")
    return Run("r", tmp_path / "r"), *rest


def failed(*given):
    """Return the checks that do not hold."""
    return [check for check in flows.checks_of(*given) if not check.holds]


def test_the_checks_hold_for_workflows_that_went_well(right):
    """Otherwise the next test would prove nothing."""
    assert failed(*right) == []
    assert len(right[1]) == PICTURES


def lose_a_picture(run, given):
    """One was never taken back."""
    next(run.served.glob("*.webp")).unlink()


def halve_a_picture(run, given):
    """One is cut short."""
    path = next(run.served.glob("*.webp"))
    path.write_bytes(path.read_bytes()[:100])


def swap_two(run, given):
    """The results are in another order than the members."""
    given[2] = Flown(given[2].pictures[::-1], given[2].totals)


def lose_a_cent(run, given):
    """A row was added up twice, or not at all."""
    path = run.served / f"{CSV_NAME}.totals.json"
    found = json.loads(path.read_text())
    found["totals"]["Omsk"] += "1"
    path.write_text(json.dumps(found))


def lose_a_row(run, given):
    """A part was left out."""
    path = run.served / f"{CSV_NAME}.totals.json"
    path.write_text(path.read_text().replace(str(ROWS), str(ROWS - 1)))


def lose_the_totals(run, given):
    """There are none."""
    (run.served / f"{CSV_NAME}.totals.json").unlink()


def refuse_nothing(run, given):
    """The server was never busy, so nothing was tried again."""
    run.file_log.write_text("")


HARMS = [lose_a_picture, halve_a_picture, swap_two, lose_a_cent, lose_a_row, lose_the_totals, refuse_nothing]


@pytest.mark.parametrize("harm", HARMS)
def test_the_checks_notice_what_is_wrong_with_the_workflows(harmed, harm):
    """Each kind of it."""
    run, *given = harmed
    harm(run, given)
    assert failed(run, *given)
