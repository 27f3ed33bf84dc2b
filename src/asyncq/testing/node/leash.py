"""End a temporary node together with the program that started it, however that program ends.

A watching shell holds the read end of a pipe whose write end only the program
has. A line means that the program took care of its node itself; the end of the
pipe means that it is gone, and then the node is ended.
"""

import contextlib
import subprocess
import sys
from pathlib import Path

# Signals that a terminal or a runner sends to the whole group must not end the watcher.
_WATCH = 'trap "" INT TERM HUP; read -r done_by_owner || exec "$@"'


class Leash:
    """The watcher of one node's folder.

    Args:
        folder: The node's folder.
    """

    def __init__(self, folder: Path) -> None:
        program = Path(__file__).with_name("__main__.py").resolve()
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "sh", sys.executable, "-B", str(program.parent), "end", "--folder", folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )

    def release(self) -> None:
        """End the watcher; the node is no longer its business."""
        if self._watcher.stdin is not None:
            with contextlib.suppress(BrokenPipeError), self._watcher.stdin as pipe:
                pipe.write(b"done\n")
        self._watcher.wait()
