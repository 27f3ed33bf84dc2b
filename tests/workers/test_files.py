"""The files worker's own work: on a real HTTP server, with real pictures and CSV files, and as workflows."""

import asyncio
import csv
import json
import random
import socket
from decimal import Decimal

import pytest
from PIL import Image

import csv_part
import files
from asyncq import ChordFailed, TaskFailed
from asyncq.rabbitmq.adapter import RabbitMQ
from csv_table import CsvError, Table
from demo import file_server
from file_transfer import Limits, ServerAwayError, TransferError, fetch, put, written_whole
from support import working

pytestmark = pytest.mark.any_version

LIMITS = Limits(connect_s=5, read_s=5, file_bytes=1_000_000)
COLUMNS = files.Columns(label="city", number="amount")


def no_step(done, total):
    """Tell nobody."""


# --- transfers


async def test_a_file_comes_whole_and_goes_back(tmp_path, file_server_url, monkeypatch):
    """Byte for byte, whatever its size."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = random.Random(1).randbytes(700_001)
    (tmp_path / "served" / "a.bin").write_bytes(content)
    steps = []
    target = tmp_path / "here" / "a.bin"
    await asyncio.to_thread(fetch, f"{file_server_url}/a.bin", target, LIMITS, lambda *step: steps.append(step))
    assert target.read_bytes() == content
    assert steps[-1] == (len(content), len(content))
    await asyncio.to_thread(put, target, f"{file_server_url}/b.bin", LIMITS, no_step)
    assert (tmp_path / "served" / "b.bin").read_bytes() == content
    empty = tmp_path / "empty"
    empty.touch()
    await asyncio.to_thread(put, empty, f"{file_server_url}/empty", LIMITS, no_step)
    assert (tmp_path / "served" / "empty").read_bytes() == b""


async def test_what_would_be_the_same_again_is_told_from_what_may_pass(tmp_path, file_server_url, monkeypatch):
    """No such file, too large, a name that is none: final. Busy, or nobody there: again later. No password is shown."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    (tmp_path / "served" / "large").write_bytes(b"x" * 1_000_001)
    for name, said in (("none", "404"), ("large", "1000001 bytes, and 1000000 are allowed")):
        with pytest.raises(TransferError, match=said) as caught:
            await asyncio.to_thread(fetch, f"{file_server_url}/{name}", tmp_path / name, LIMITS, no_step)
        assert not isinstance(caught.value, ServerAwayError)
    assert not list(tmp_path.glob("*large*"))
    busy = file_server.Files(tmp_path / "served", tmp_path / "busy.log", refusals=1)
    async with file_server.listening(busy) as port:
        source = tmp_path / "served" / "large"
        with pytest.raises(ServerAwayError, match=r"PUT http://127\.0\.0\.1:\d+/x: 503 busy"):
            await asyncio.to_thread(put, source, f"http://me:secret@127.0.0.1:{port}/x", LIMITS, no_step)
        await asyncio.to_thread(put, source, f"http://127.0.0.1:{port}/x", LIMITS, no_step)
        with pytest.raises(TransferError, match="400"):
            await asyncio.to_thread(put, source, f"http://127.0.0.1:{port}/.hidden", LIMITS, no_step)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        url = f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}/x"
        with pytest.raises(ServerAwayError, match="ConnectError") as caught:
            await asyncio.to_thread(fetch, url, tmp_path / "x", LIMITS, no_step)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_finished_is_not_there(tmp_path):
    """Nor is a part of it."""
    with pytest.raises(ZeroDivisionError), written_whole(tmp_path / "a") as file:
        file.write(b"half" * (1 // 0))
    assert list(tmp_path.iterdir()) == []


# --- parts of a CSV file


def all_parts(path, parts):
    """Return the tables of all parts."""
    tables = []
    for part in range(parts):
        table = Table("city", ["amount"], max_bad_rows=10)
        csv_part.read_part(path, table, part, parts)
        tables.append(table)
    return tables


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("last_line_ends", [True, False])
def test_all_parts_together_have_every_row_once(tmp_path, line_end, last_line_ends):
    """However many parts there are: also more than rows."""
    chance = random.Random(3)
    rows = [(chance.choice(["Omsk", "Тверь", "a,b"]), Decimal(chance.randrange(10_000)) / 100) for _ in range(57)]
    path = tmp_path / "a.csv"
    text = line_end.join(["n,city,amount", *(f'{n},"{city}",{amount}' for n, (city, amount) in enumerate(rows))])
    path.write_bytes((text + line_end * last_line_ends).encode())
    for parts in (1, 2, 3, 10, 57, 200):
        tables = all_parts(path, parts)
        assert sum(table.rows for table in tables) == len(rows)
        assert sum((sum(table.column(0).values()) for table in tables), Decimal(0)) == sum(a for _, a in rows)
        assert not any(table.bad_rows_total for table in tables)


def test_a_wrong_row_is_left_out_of_its_part_and_named_by_its_place(tmp_path):
    """The others count."""
    path = tmp_path / "a.csv"
    path.write_text("city,amount\nOmsk,1\nTver,many\nOmsk,2\n\n")
    (table,) = all_parts(path, 1)
    assert (table.rows, table.bad_rows_total) == (2, 1)
    assert path.read_bytes()[table.bad_rows[0].line :].startswith(b"Tver,many")
    (tmp_path / "b.csv").write_text("town,amount\nOmsk,1\n")
    with pytest.raises(CsvError, match="city"):
        all_parts(tmp_path / "b.csv", 1)
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(CsvError):
        all_parts(tmp_path / "c.csv", 3)


# --- workflows


@pytest.fixture
async def worker(file_settings, broker_url):
    """A running files worker on a real broker."""
    with files.app.using(RabbitMQ, broker_url=broker_url):
        async with working(files.app):
            yield file_settings


def a_picture(path):
    """Write a picture."""
    Image.frombytes("RGB", (400, 300), random.Random(path.name).randbytes(360_000)).save(path)


async def test_a_picture_is_brought_shrunk_and_taken_back(tmp_path, worker):
    """By a chain."""
    a_picture(tmp_path / "served" / "a.jpg")
    done = await files.picture("a.jpg", 100).options(timeout=30).call()
    with Image.open(tmp_path / "served" / "a.jpg.100.webp", formats=["WEBP"]) as small:
        small.load()
        assert small.size == (100, 75)
    assert done.url == f"{files.settings.base_url}/a.jpg.100.webp"
    assert done.size_bytes == (tmp_path / "served" / "a.jpg.100.webp").stat().st_size


async def test_pictures_come_back_in_their_order_and_one_that_is_none_fails_alone(tmp_path, worker):
    """By a group of chains: the others go on."""
    for number in range(3):
        a_picture(tmp_path / "served" / f"{number}.png")
    names = ["2.png", "0.png", "1.png"]
    done = await files.pictures(names, 50).options(timeout=30).call()
    assert [answer.url.rpartition("/")[2] for answer in done] == [f"{name}.50.webp" for name in names]
    (tmp_path / "served" / "text.png").write_text("no picture")
    handle = await files.pictures(["0.png", "text.png"], 60).send()
    with pytest.raises(TaskFailed, match=r"text\.png is no picture") as caught:
        await handle.result(30)
    status = await handle.status()
    assert caught.value.task_id == status.node("0.1.1").id
    assert status.node("0.1.2").stopped


async def test_a_csv_file_is_added_up_in_parts(tmp_path, worker):
    """By a chord in a chain; the totals are exact."""
    chance, wanted = random.Random(5), {}
    with (tmp_path / "served" / "a.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["city", "amount"])
        for _ in range(5000):
            city, amount = chance.choice(["Omsk", "Tver"]), Decimal(chance.randrange(10**9)) / 1000
            rows.writerow([city, amount])
            wanted[city] = wanted.get(city, 0) + amount
    done = await files.totals("a.csv", COLUMNS, 7).options(timeout=30).call()
    assert done.url.endswith("/a.csv.totals.json")
    found = json.loads((tmp_path / "served" / "a.csv.totals.json").read_text())
    assert {city: Decimal(total) for city, total in found["totals"].items()} == wanted
    assert (found["rows"], found["bad_rows"]) == (5000, 0)


async def test_a_csv_file_without_the_column_fails_its_chord(tmp_path, worker):
    """The error names the members that failed, and nothing is taken back."""
    (tmp_path / "served" / "b.csv").write_text("town,amount\nOmsk,1\n")
    handle = await files.totals("b.csv", COLUMNS, 3).send()
    with pytest.raises(ChordFailed, match="3 of 3 members") as caught:
        await handle.result(30)
    assert [member.index for member in caught.value.members] == [0, 1, 2]
    assert all("not ['city']" in member.error_message for member in caught.value.members)
    assert not (tmp_path / "served" / "b.csv.totals.json").exists()
