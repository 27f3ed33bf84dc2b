"""How this process is: its memory, and how late its event loop is.

Measured when somebody asks, so that it costs nothing meanwhile.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

__all__ = ["loop_lag_s", "resident_bytes"]

_SAMPLES: Final = 5
_SAMPLE_S: Final = 0.01
_STATM: Final = Path("/proc/self/statm")


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system does not tell."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


async def loop_lag_s() -> float:
    """Return how much too late the running event loop woke up, at worst of some short sleeps, in seconds."""
    now = asyncio.get_running_loop().time
    worst_s = 0.0
    for _ in range(_SAMPLES):
        due_s = now() + _SAMPLE_S
        await asyncio.sleep(_SAMPLE_S)
        worst_s = max(worst_s, now() - due_s)
    return worst_s
