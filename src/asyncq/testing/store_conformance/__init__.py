"""The conformance suite of result stores: what each must do, in memory, SQLite, PostgreSQL and Redis alike.

Each behaviour is a test with a sentence for a name. To run them on a store of your own, write a test module with one
fixture; pytest and pytest-asyncio must be installed:

    from asyncq.testing.store_conformance import *
    from asyncq.testing.store_conformance.bench import StoreBench

    @pytest.fixture
    def bench():
        return StoreBench(MyStoreUnderTest())   # see `asyncq.testing.store_conformance.bench.StoreUnderTest`
"""

from __future__ import annotations

from importlib import import_module
from typing import Final

import pytest

THEMES: Final = ("preparing", "writing", "reading", "listing", "watching", "cleaning", "outages")

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
