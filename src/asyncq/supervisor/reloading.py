"""Changed source files, for development: `asyncq worker --reload`.

watchfiles waits for them in a thread; the supervisor takes what has changed when it is woken.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from asyncq.errors import ConfigurationError

__all__ = ["SourceFiles"]


class SourceFiles:
    """The Python files below some folders. Those of environments, caches and version control do not count.

    Args:
        folders: Where they are.

    Raises:
        ConfigurationError: watchfiles is not installed, or there is no such folder.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if importlib.util.find_spec("watchfiles") is None:
            raise ConfigurationError(
                "--reload needs the package watchfiles, which is not installed. "
                "Install it: pip install 'asyncq[reload]'."
            )
        for folder in folders:
            if not folder.is_dir():
                raise ConfigurationError(f"--reload-dir {folder}: there is no such folder.")
        self._folders = [folder.resolve() for folder in folders]
        self._changed: set[str] = set()
        self._changing = threading.Lock()

    def start(self, tell: Callable[[], object]) -> None:
        """Begin to watch.

        Args:
            tell: Called in a thread whenever there is something to `take`.
        """
        threading.Thread(target=self._watch, args=(tell,), name="asyncq-reload", daemon=True).start()

    def take(self) -> list[str]:
        """Return the files that have changed since the last time, sorted."""
        with self._changing:
            changed, self._changed = self._changed, set()
        return sorted(changed)

    def _watch(self, tell: Callable[[], object]) -> None:
        from watchfiles import PythonFilter, watch  # noqa: PLC0415 - an optional extra

        for changes in watch(*self._folders, watch_filter=PythonFilter(), raise_interrupt=False):
            with self._changing:
                self._changed |= {self._shown(Path(path)) for _, path in changes}
            tell()

    def _shown(self, path: Path) -> str:
        for folder in self._folders:
            if path.is_relative_to(folder):
                return str(path.relative_to(folder))
        return str(path)
