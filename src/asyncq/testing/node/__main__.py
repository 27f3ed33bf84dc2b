"""Run the command line, as `python -m asyncq.testing.node` or by this folder's path.

By path nothing of asyncq is imported, so that a broker can be had before
asyncq's dependencies are installed.
"""

import importlib
import importlib.util
import sys
from pathlib import Path


def _package() -> str:
    """Return the name of this folder as a package; run by path it gets a name of its own."""
    if __package__:
        return __package__
    folder = Path(__file__).resolve().parent
    name = "asyncq_testing_node"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {folder}")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return name


if __name__ == "__main__":
    sys.exit(importlib.import_module(f"{_package()}.command").main())
