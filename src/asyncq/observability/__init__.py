"""What people and machines see of a running program: logs.

structlog imports rich where it is installed (typer brings it), for tracebacks that asyncq does not use; that takes
longer than the import of all of asyncq. So rich is out of sight while structlog is imported for the first time here,
unless the program has it already.
"""

import importlib
import sys
from types import ModuleType

__all__: list[str] = []


def _import_structlog_alone() -> None:
    modules: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]  # None: "cannot be imported"
    if "rich" in modules or "structlog" in modules:
        return
    modules["rich"] = None
    try:
        importlib.import_module("structlog")
    finally:
        del modules["rich"]


_import_structlog_alone()
