"""With which code a worker process ends, for whoever supervises it."""

from __future__ import annotations

from typing import Final

__all__ = ["OK", "RESTART"]

OK: Final = 0
"""It was asked to stop."""

RESTART: Final = 75
"""It has drained, and another one shall take its place: too many abandoned threads go on in it (EX_TEMPFAIL)."""
