"""Where the sockets are by which `asyncq health` finds the processes of this machine.

    /tmp/asyncq-UID/PID.sock       or below $TMPDIR; below /dev/shm where that cannot be written

A container with a read-only file system still has /dev/shm.

Invariant: the folder belongs to this user and nobody else can enter it, or it is not used.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["private_folder", "socket_of", "sockets"]

_CONNECT_TIMEOUT_S = 5.0


def private_folder() -> Path:
    """Return the folder of this user, made where there is none.

    Raises:
        OSError: There is no place for one.
    """
    failure: OSError = FileNotFoundError("there is no folder for temporary files")
    for place in _places():
        folder = place / f"asyncq-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            _check(folder, os.getuid())
        except OSError as error:
            failure = error
        else:
            return folder
    raise failure


def socket_of(pid: int) -> Path:
    """Return the path for this process's socket; nobody listens there.

    Raises:
        OSError: There is no place for it, or somebody listens there.
    """
    path = private_folder() / f"{pid}.sock"
    if path.exists() and _answers(path):
        raise FileExistsError(f"somebody listens on {path}")
    path.unlink(missing_ok=True)
    return path


def sockets() -> Iterator[tuple[int, Path]]:
    """Iterate the processes that listen, by their ids: those of this user; for root, of all.

    What a process that was killed has left is removed.
    """
    for folder in _folders():
        try:
            paths = sorted(folder.glob("*.sock"), key=lambda path: int(path.stem) if path.stem.isdigit() else 0)
        except OSError:
            continue
        for path in paths:
            if not path.stem.isdigit():
                continue
            if _answers(path):
                yield int(path.stem), path
            elif not _lives(int(path.stem)):  # else it is about to listen
                with contextlib.suppress(OSError):
                    path.unlink()


def _places() -> tuple[Path, ...]:
    """Return where folders can be that outlive no boot."""
    shared = Path("/dev/shm")  # noqa: S108 - `_check` looks whose the folder in it is
    try:
        return Path(tempfile.gettempdir()), shared
    except OSError:
        return (shared,)


def _folders() -> Iterator[Path]:
    """Iterate the folders of this user; for root, of all."""
    for place in _places():
        for folder in place.glob("asyncq-*") if os.getuid() == 0 else (place / f"asyncq-{os.getuid()}",):
            owner = folder.name.removeprefix("asyncq-")
            try:
                _check(folder, int(owner))
            except (OSError, ValueError):
                continue
            yield folder


def _check(folder: Path, owner: int) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} is not a folder of that user alone")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written")


def _answers(path: Path) -> bool:
    """Tell whether somebody listens; a process that is frozen does, as far as its system can tell."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_CONNECT_TIMEOUT_S)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
