"""The maintenance worker's own work, on a real folder; and its schedules."""

import json
import os
import time
from datetime import UTC, datetime

import pytest

import maintenance
from asyncq import Cron, Every

pytestmark = pytest.mark.any_version


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of this test's own, with two files of today and one of two months ago."""
    settings = maintenance.MaintenanceSettings(folder=tmp_path, min_free_bytes=1)
    monkeypatch.setattr(maintenance, "settings", settings)
    (tmp_path / "sub").mkdir()
    for name, age_days in (("a.png", 0), ("sub/b.html", 0.5), ("sub/old.png", 60)):
        path = tmp_path / name
        path.write_bytes(b"x" * 10)
        then = time.time() - age_days * maintenance.DAY_S
        os.utime(path, (then, then))
    return tmp_path


def journal(folder):
    return [json.loads(line)["what"] for line in (folder / maintenance.JOURNAL).read_text().splitlines()]


def test_a_report_counts_what_a_day_has_brought(folder):
    """By kind; with the health checks of the journal."""
    maintenance.check_health()
    maintenance.check_health()
    report = maintenance.report_day()
    assert (report.files, report.total_bytes, report.checks) == ({"png": 1, "html": 1}, 20, 2)
    assert journal(folder) == ["health", "health", "report"]


def test_a_clean_up_removes_what_is_old_and_nothing_else(folder, tmp_path_factory):
    """A second run has nothing to do; the journal and what a link leads to stay."""
    outside = tmp_path_factory.mktemp("outside") / "kept.txt"
    outside.write_text("kept")
    os.utime(outside, (0, 0))
    (folder / "link.txt").symlink_to(outside)
    (folder / maintenance.JOURNAL).write_text("")
    os.utime(folder / maintenance.JOURNAL, (0, 0))
    assert maintenance.clean_up() == maintenance.Cleaned(files=1, total_bytes=10)
    assert maintenance.clean_up() == maintenance.Cleaned(files=0, total_bytes=0)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == [
        "a.png",
        "b.html",
        "link.txt",
        "maintenance.jsonl",
    ]
    assert outside.read_text() == "kept"


def test_a_health_check_fails_where_there_is_no_room(folder, monkeypatch):
    """And says how much there is; the journal has it as well."""
    assert maintenance.check_health().files == 3
    monkeypatch.setattr(maintenance, "settings", maintenance.settings.model_copy(update={"min_free_bytes": 1 << 62}))
    with pytest.raises(maintenance.NoRoomError, match="bytes left"):
        maintenance.check_health()
    assert journal(folder) == ["health", "health"]


def test_its_schedules_are_every_minute_daily_and_on_mondays():
    """In the zone of the settings."""
    found = maintenance.app.schedules.resolve(maintenance.app.signature, maintenance.app.tasks)
    assert {name: item.schedule.when for name, item in found.items()} == {
        "health": Every(60),
        "daily-report": Cron("0 8 * * *"),
        "clean-up": Cron("0 9 * * MON"),
    }
    monday = found["clean-up"].schedule.when.next_after(datetime(2026, 11, 26, tzinfo=UTC))
    assert monday == datetime(2026, 11, 30, 9, tzinfo=UTC)
