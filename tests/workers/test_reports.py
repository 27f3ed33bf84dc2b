"""The reports worker's own work, on real CSV files."""

import html
from decimal import Decimal

import pytest

import reports
from csv_table import CsvError

pytestmark = pytest.mark.any_version


@pytest.fixture
def build(tmp_path, report_settings):
    """Write a CSV file and build its report; returns the report, its HTML and the steps."""

    def run(content, numbers=("kb",), **order):
        (tmp_path / "csv" / "data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
        steps = []
        made = reports.build(
            reports.Order(**{"source": "data.csv", "title": "A title", "label": "name", "numbers": numbers, **order}),
            lambda *step: steps.append(step),
        )
        return made, (tmp_path / "reports" / made.path).read_text(), steps

    return run


def test_rows_of_one_label_are_added_up_exactly(build):
    """A tenth three times is three tenths: decimals, not binary fractions."""
    report, text, steps = build("name,kb,s\na,0.1,1\nb,5,2\na,0.1,1\na,0.1,1\n", numbers=("kb", "s"))
    assert (report.rows, report.labels, report.bad_rows_total) == (4, 2, 0)
    kb, s = report.figures
    assert (kb.total, kb.mean, kb.median, kb.largest) == (Decimal("5.3"), Decimal("2.65"), Decimal("2.65"), "b")
    assert (s.total, s.largest) == (Decimal(5), "a")
    assert text.count("<svg ") == 2
    assert report.size_bytes == len(text.encode())
    assert steps[0] == (0, 100, "reading")
    assert steps[-1] == (100, 100, "done")


def test_wrong_rows_are_left_out_and_named_by_line(build):
    """Each has its own reason, and line breaks inside quotes do not shift the numbers."""
    report, text, _ = build(
        b'\xef\xbb\xbfname,kb\na,1\n"two\nlines",2\n\nc,x\n\xff\xfe,1\nd,1,2\n,4\ne,1e999\nf,NaN\n"g"h,1\nlast,3\n'
    )
    assert [(row.line, row.problem) for row in report.bad_rows] == [
        (6, "kb is not a number: 'x'"),
        (7, "name is not UTF-8"),
        (8, "3 columns in place of 2"),
        (9, "name is empty"),
        (10, "kb has more than 30 digits"),
        (11, "kb is not a number: 'NaN'"),
        (12, "',' expected after '\"'"),
    ]
    assert report.figures[0].total == 6
    assert all(f"line {line}" in text for line in range(6, 13))


def test_only_the_first_wrong_rows_are_kept_and_all_are_counted(build, report_settings):
    """A file of nonsense does not make a result of nonsense."""
    report_settings(max_bad_rows=3)
    report, text, _ = build("name,kb\na,1\n" + "b,x\n" * 10)
    assert [row.line for row in report.bad_rows] == [3, 4, 5]
    assert report.bad_rows_total == 10
    assert "and 7 more" in text


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "columns"),
        ("name\na\n", r"not \['kb'\]"),
        ("name,kb\n", "no row"),
        ("name,kb\na,x\n", "line 2: kb is not a number"),
        (b"\x00\x01\x02", "columns"),
        ('"name,kb\na,1\n', "line 1"),
    ],
)
def test_a_file_that_gives_no_report_is_an_error_that_says_why(build, content, says):
    """Empty, without the column, without rows, or no CSV at all."""
    with pytest.raises(CsvError, match=says):
        build(content)


@pytest.mark.parametrize("source", ["missing.csv", "../outside.csv", "link.csv"])
def test_only_files_inside_the_folder_are_read(build, tmp_path, source):
    """Neither `..` nor a symbolic link leads out of it."""
    (tmp_path / "outside.csv").write_text("name,kb\na,1\n")
    (tmp_path / "csv" / "link.csv").symlink_to(tmp_path / "outside.csv")
    with pytest.raises(CsvError, match="REPORTS_INPUT_DIR"):
        build("name,kb\na,1\n", source=source)


def test_what_the_csv_says_cannot_become_markup(build):
    """Labels, column names and the title are text in the HTML and in the SVG."""
    report, text, _ = build(
        "name,<b>kb</b>\n<script>alert(1)</script>,1\n<i>,x\n", numbers=("<b>kb</b>",), title="<u>&"
    )
    assert report.rows == 1
    assert not any(tag in text for tag in ("<script", "<b>", "<i>", "<u>"))
    assert "<script>alert(1)</script>" in html.unescape(text)


def test_a_chart_shows_the_largest_labels_and_adds_up_the_others(build, report_settings):
    """So that a chart of ten thousand labels can be read."""
    report_settings(max_bars=3)
    report, text, _ = build("name,kb\n" + "".join(f"n{number},{number}\n" for number in range(1, 11)))
    assert text.count("<rect ") == 3
    assert "8 others" in text
    assert report.figures[0].total == 55


def test_negative_numbers_grow_to_the_left(build):
    """Below zero a bar ends where the others begin."""
    _, text, _ = build("name,kb\nup,10\ndown,-10\n")
    assert text.count('x="440.0"') == 1
    assert 'x="230.0" y="29" width="210.0"' in text


def test_another_delimiter_is_understood(build):
    """Spreadsheets in much of Europe write semicolons."""
    assert build("name;kb\na;1\n", delimiter=";")[0].rows == 1


def test_a_large_file_reports_its_progress_by_line(build):
    """Percentages rise; the file is read row by row."""
    _, _, steps = build("name,kb\n" + "a,1\n" * 20_000)
    lines = [step for step in steps if step[2].startswith("line ")]
    assert len(lines) == 4
    assert [step[0] for step in lines] == sorted(step[0] for step in lines)
    assert 10 < lines[0][0] < lines[-1][0] <= 80


def test_a_repeated_task_writes_the_same_file_again(build, tmp_path):
    """Nothing is left beside it."""
    first = build("name,kb\na,1\n")[1]
    assert build("name,kb\na,1\n")[1] == first
    assert [path.name for path in (tmp_path / "reports").iterdir()] == ["data.html"]
