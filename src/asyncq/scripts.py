"""Let a file that runs as a program be imported under its own name, without running a second time.

`python shop.py` runs the file as the module `__main__`. A module of tasks that says `from shop import app` would run
it once more, as the module `shop`: there would be two apps of one name, each with a part of the tasks.

Invariant: within one process, one line `app = AsyncQ(...)` makes one app. Where the file's name cannot be found out
beforehand, the second app is refused with a message that says how to start the program.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import FrameType, ModuleType

from asyncq.errors import ConfigurationError

__all__ = ["importable_name", "make_script_importable"]

# `__mp_main__` is what multiprocessing calls the program's file in a process that it has spawned.
_PROGRAM_NAMES = ("__main__", "__mp_main__")

_made_in_program: dict[tuple[str, int, str], ModuleType] = {}
"""Where the running program has made an app: file, line, and the app's name."""


def make_script_importable(app: str) -> None:
    """Note that an app is being made; where the program's own file makes it, give that file its importable name.

    Args:
        app: The app's name.

    Raises:
        ConfigurationError: The same line of the running program's file makes the app a second time, under another
            module name.
    """
    frame = _caller()
    if frame is None:
        return
    place = (str(Path(frame.f_code.co_filename).resolve()), frame.f_lineno, app)
    caller = frame.f_globals.get("__name__")
    if caller not in _PROGRAM_NAMES:
        program = _made_in_program.get(place)
        if program is not None and any(sys.modules.get(name) is program for name in _PROGRAM_NAMES):
            raise ConfigurationError(_imported_twice(place[0], caller, app))
        return
    module = sys.modules.get(caller)
    if module is None or module.__dict__ is not frame.f_globals:
        return
    _made_in_program[place] = module
    name = importable_name(module)
    if name is not None and name not in sys.modules:
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent in sys.modules:  # `import shop.app` looks for the attribute
            setattr(sys.modules[parent], child, module)


def importable_name(module: ModuleType) -> str | None:
    """Return the name under which other modules import the program's file; None where there is no such name."""
    spec = module.__spec__
    if spec is not None:  # python -m shop.app; of a package, `python -m shop`, it is shop.__main__
        return spec.name
    file = getattr(module, "__file__", None)
    if file is None:
        return None  # a prompt, or python -c
    name = Path(file).stem
    found = PathFinder.find_spec(name) if name.isidentifier() else None
    if found is None or found.origin is None or Path(found.origin).resolve() != Path(file).resolve():
        return None  # the name leads elsewhere
    return name


def _caller() -> FrameType | None:
    """Return the frame that makes the app: the first one outside asyncq."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - documented, only not promised outside CPython
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == "asyncq":
        frame = frame.f_back
    return frame


def _imported_twice(file: str, module: str | None, app: str) -> str:
    return (
        f"{file} runs as the program and is now imported as {module!r} as well: there would be two apps {app!r}, each "
        f"with a part of the tasks. Start it by the name that it is imported by: python -m {module}"
    )
