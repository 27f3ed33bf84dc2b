"""The conformance suite: what every broker of asyncq must do, in memory and on every RabbitMQ alike.

Each behaviour is a test with a sentence for a name. To run them on an adapter of your own, write a test module with
one fixture; pytest and pytest-asyncio must be installed:

    from asyncq.testing.conformance import *
    from asyncq.testing.conformance.bench import Bench

    @pytest.fixture
    def bench():
        return Bench(MyBrokerUnderTest())       # see `asyncq.testing.conformance.bench.BrokerUnderTest`

`pytest -p asyncq.testing.conformance.report` prints a table of behaviours and brokers in the end.
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import pytest

THEMES: Final = (
    "publishing",
    "declaring",
    "consuming",
    "resizing",
    "leases",
    "delays",
    "dead_letters",
    "replays",
    "mailboxes",
    "journals",
    "sending",
    "results",
    "states",
    "handles",
    "retries",
    "callbacks",
    "programs",
    "program_failures",
    "workflow_handles",
    "intake",
    "breaker",
    "cancelling",
    "cancelling_many",
    "controlling",
    "pausing",
    "rates",
    "limits",
    "processes",
    "working",
    "workflow_table",
    "workflow_errors",
    "workflow_options",
    "extending",
    "leading",
)

_MODULES: Final = [f"{__name__}.{theme}" for theme in THEMES]

# Before they are imported: else a failing assert in them shows no values.
pytest.register_assert_rewrite(f"{__name__}.bench", *_MODULES)

_TESTS: Final = {
    name: test
    for module in map(import_module, _MODULES)
    for name, test in vars(module).items()
    if name.startswith("test_")
}
globals().update(_TESTS)

__all__ = list(_TESTS)
