"""The example of docs/testing.md that needs a real broker."""

from __future__ import annotations

import os

import pytest

from asyncq.testing.node import Node, NodeUnavailable
from testing_page import run, write_files

VERSION = os.environ.get("ASYNCQ_TEST_VERSIONS", "4.3").split(",")[-1].strip()


@pytest.fixture
def version(tmp_path):
    """A version that can be had."""
    try:
        Node.provide(VERSION, folder=tmp_path / "node")
    except NodeUnavailable as error:
        pytest.skip(f"RabbitMQ {VERSION} cannot be had: {error}")
    return VERSION


@pytest.mark.xdist_group(VERSION)
def test_a_test_of_the_page_starts_a_rabbitmq_of_its_own(version, tmp_path):
    """It passes; it is not skipped."""
    write_files(tmp_path)
    answer = run(
        ["pytest", "-W", "error", "-o", f"asyncq_rabbitmq_version={version}", "tests/rabbitmq"], tmp_path, timeout_s=240
    )
    assert answer.returncode == 0, answer.stdout
    assert "1 passed in" in answer.stdout, answer.stdout
