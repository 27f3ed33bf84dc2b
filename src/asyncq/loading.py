"""From `MODULE:APP`, as the command line and the pytest plugin take it, to the app.

Invariant: whatever goes wrong on the way is told apart: a module that is not there, a module that fails, an
attribute that is not there, an attribute that is something else.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path
from types import ModuleType, TracebackType

from asyncq.app import AsyncQ
from asyncq.errors import AppNotFound, AsyncQError, ConfigurationError

__all__ = ["load_app"]

_ASYNCQ = str(Path(__file__).parent)
_IMPORTLIB = str(Path(importlib.__file__).parent)


def load_app(target: str) -> AsyncQ:
    """Import a module and return the app in it, with the modules of its `include`.

    The current directory is looked at first.

    Args:
        target: `MODULE:APP`, for example `shop.tasks:app`.

    Raises:
        AppNotFound: It does not lead to an app; the message says at which step.
        ConfigurationError: The module declares something that asyncq refuses, or an included one cannot be imported.
    """
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise AppNotFound(_form(target, module_name))
    if module_name.endswith(".py") or "/" in module_name or "\\" in module_name:
        raise AppNotFound(
            f"{module_name!r} is a file; a module's name is wanted, as in an import statement: "
            f"{_as_module(module_name)}:{attribute}. The current directory is where it is looked for first."
        )
    module = _import(module_name)
    app = _app_of(module, module_name, attribute)
    try:
        app.load_included()
    except ConfigurationError as error:
        if error.__cause__ is not None:
            error.add_note(_own_frames(error.__cause__.__traceback__))
        raise
    return app


def _form(target: str, module_name: str) -> str:
    example = f"{_as_module(module_name) or 'shop'}:app"
    return f"{target!r} names no app. Write MODULE:APP, with a colon between them, for example {example}."


def _as_module(path: str) -> str:
    return path.removeprefix("./").removesuffix(".py").strip("/\\").replace("/", ".").replace("\\", ".")


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    if sys.path[:1] != [here]:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except AsyncQError as error:
        error.add_note(f"This was raised while {name!r} was being imported:\n{_own_frames(error.__traceback__)}")
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise AppNotFound(_no_module(name, error.name)) from None
        raise _import_failed(name, error) from error
    except (Exception, SystemExit) as error:
        raise _import_failed(name, error) from error


def _no_module(name: str, missing: str) -> str:
    here = Path.cwd()
    folder = here.joinpath(*missing.split(".")[:-1])
    last = missing.rpartition(".")[2]
    there = sorted(
        path.stem for path in folder.glob("*") if path.suffix == ".py" or path.joinpath("__init__.py").is_file()
    )
    import difflib  # noqa: PLC0415 - only wanted where something is wrong

    close = difflib.get_close_matches(last, there, n=1)
    hint = f" Is it {close[0]!r}?" if close else ""
    part = f"module {missing!r}, which {name!r} needs" if missing != name else f"module {name!r}"
    return (
        f"There is no {part}: not in {here} and not among the installed packages.{hint} "
        "Run the command in the folder that holds it, or install it."
    )


def _import_failed(name: str, error: BaseException) -> AppNotFound:
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    where = _own_frames(error.__traceback__)
    if isinstance(error, SyntaxError):
        where = "".join(traceback.format_exception_only(error)).rstrip()
        said = f"{type(error).__name__}: {error.msg}"
    hint = "\nPut what starts the program under `if __name__ == '__main__':`." if isinstance(error, SystemExit) else ""
    return AppNotFound(f"Module {name!r} is there, but importing it failed: {said}\n{where}{hint}".rstrip())


def _own_frames(trace: TracebackType | None) -> str:
    """Return the user's own places in a traceback, innermost last: not the import machinery's, not asyncq's."""
    frames = [
        frame
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith(("<frozen importlib", _IMPORTLIB, _ASYNCQ))
    ]
    return "".join(traceback.format_list(frames)).rstrip()


def _app_of(module: ModuleType, module_name: str, attribute: str) -> AsyncQ:
    found: object = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise AppNotFound(f"Module {module_name!r} has no {attribute!r}.{_apps_in_words(module, module_name)}")
        found = getattr(found, part)
    if not isinstance(found, AsyncQ):
        kind = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise AppNotFound(
            f"{module_name}:{attribute} is {kind}, not an AsyncQ app.{_apps_in_words(module, module_name)}"
        )
    return found


def _apps_in_words(module: ModuleType, module_name: str) -> str:
    names = sorted(name for name, value in vars(module).items() if isinstance(value, AsyncQ))
    if not names:
        return " It has no AsyncQ app at all; make one with: app = AsyncQ('shop')."
    return f" Its apps: {', '.join(f'{module_name}:{name}' for name in names)}."
