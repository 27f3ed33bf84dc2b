"""The record of a node survives crashes and is read by its owner only."""

import stat
from pathlib import Path

import pytest

from asyncq.testing.node.configuration import Ports, Setup
from asyncq.testing.node.process import ProcessId
from asyncq.testing.node.state import Record, StateFile

ENGINE = {"kind": "local", "programs": "/usr/lib/rabbitmq/bin", "version": "3.10.8", "root": ""}


def a_record() -> Record:
    """Return a record without processes."""
    setup = Setup(user="ann", password="secret", vhost="shop")
    return Record.of("test", ENGINE, setup, Ports(20001, 20002, 20003, 20004, 20005))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Ports, processes and credentials come back."""
    state = StateFile(tmp_path)
    state.write(a_record())
    state.update(server=ProcessId(17, "then"), epmd=ProcessId(18, "later"))
    record = state.read()
    assert record is not None
    assert record.ports == a_record().ports
    assert (record.server, record.epmd) == (ProcessId(17, "then"), ProcessId(18, "later"))
    assert record.setup().amqp_url(record.ports.amqp) == "amqp://ann:secret@127.0.0.1:20001/shop"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"ports": {"amqp": 1}}'])
def test_a_record_that_cannot_be_read_is_no_record(tmp_path: Path, text: str) -> None:
    """A node starts anew instead of failing for ever."""
    (tmp_path / "state.json").write_text(text)
    assert StateFile(tmp_path).read() is None


def test_a_folder_without_record_stays_without(tmp_path: Path) -> None:
    """Changing what is not there makes nothing."""
    state = StateFile(tmp_path)
    state.update(server=None)
    assert state.read() is None


def test_only_the_owner_may_read_a_record(tmp_path: Path) -> None:
    """It holds a password."""
    StateFile(tmp_path).write(a_record())
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600
