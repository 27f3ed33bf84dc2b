"""Delete from the result store what has expired, now and then, wherever a worker runs.

Several workers may do it at once: it goes in small steps, and what one has deleted is nothing for the next.
"""

from __future__ import annotations

import asyncio
import random

from asyncq.errors import AsyncQError
from asyncq.loggers import get_logger
from asyncq.recording import Recorder

__all__ = ["keep_clean"]

log = get_logger("asyncq.worker")

_FIRST_AFTER_S = 60.0
_EACH_S = 3600.0


async def keep_clean(recorder: Recorder, *, first_after_s: float = _FIRST_AFTER_S, each_s: float = _EACH_S) -> None:
    """Clean for ever: until it is cancelled.

    Args:
        recorder: The way to the store.
        first_after_s: How long until the first time, in seconds, give or take a half.
        each_s: How long from one time to the next, in seconds, likewise: so that workers do not come together.
    """
    pause_s = first_after_s
    while True:
        await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - no secret
        pause_s = each_s
        try:
            gone = await recorder.clean()
        except AsyncQError as error:
            log.warning("the result store could not be cleaned", store=recorder.shown, cause=str(error))
        except Exception:
            log.exception("cleaning the result store failed", store=recorder.shown)
        else:
            log.debug("the result store was cleaned", store=recorder.shown, expired=gone)
