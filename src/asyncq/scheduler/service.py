"""The scheduler: stands for the leadership, and has one term after the other.

Any number of processes may run one, as a program of its own or inside workers. See `term.py` for what a term does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from asyncq.errors import InvalidOption, LeaseLost
from asyncq.leadership import Leadership, Term
from asyncq.loggers import get_logger
from asyncq.scheduler.requests import leadership_name
from asyncq.scheduler.term import SchedulerTerm
from asyncq.scheduler.work import Counts, Work

__all__ = ["Scheduler", "SchedulerStats"]

log = get_logger("asyncq.scheduler")


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """What a scheduler has done so far, and what comes next.

    Attributes:
        leads: Whether it leads at the moment.
        terms: How often it has come to lead.
        sent: How many ticks were confirmed, by schedule.
        skipped: How many fire times got no run, by schedule and reason: `missed`, `deadline`, `refused`.
        lag_s: How late the last tick was confirmed, in seconds.
        upcoming: The next fire time of each schedule, in milliseconds since the epoch; empty while another one leads.
    """

    leads: bool
    terms: int
    sent: Mapping[str, int]
    skipped: Mapping[tuple[str, str], int]
    lag_s: float
    upcoming: Mapping[str, int]


class Scheduler:
    """Sends an app's scheduled tasks, while it leads.

    Args:
        work: What there is to do.
        leadership: By which processes agree on who leads.

    Raises:
        InvalidOption: There are no schedules.
    """

    def __init__(self, work: Work, leadership: Leadership) -> None:
        if not work.scheduled:
            raise InvalidOption(
                f"App {work.app!r} has no schedules, so a scheduler would have nothing to send. Declare one, such as "
                "app.schedule('daily', report.s(), Cron('0 8 * * *'))."
            )
        self._work = work
        self._leadership = leadership
        self._counts = Counts()
        self._terms = 0
        self._term: SchedulerTerm | None = None
        self._stopping = asyncio.Event()

    @property
    def stats(self) -> SchedulerStats:
        """What it has done so far."""
        counts, term = self._counts, self._term
        return SchedulerStats(
            leads=term is not None,
            terms=self._terms,
            sent=dict(counts.sent),
            skipped=dict(counts.skipped),
            lag_s=counts.lag_s,
            upcoming={} if term is None else term.upcoming,
        )

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Let `run()` hand over and return. Idempotent."""
        self._stopping.set()
        if self._term is not None:
            self._term.stop()

    async def run(self) -> None:
        """Stand for the leadership, and send what is due, until `stop()`.

        Raises:
            BrokerRefused: The broker will not have us.
        """
        async with self._leadership.campaign(leadership_name(self._work.app)) as terms:
            log.info("scheduler stands by", app=self._work.app, schedules=len(self._work.scheduled))
            while (won := await self._unless_stopped(anext(terms))) is not None:
                self._terms += 1
                self._term = SchedulerTerm(self._work, self._counts, won)
                try:
                    if not self._stopping.is_set():
                        await self._term.lead()
                except LeaseLost as error:
                    log.warning("leads no longer", cause=str(error))
                finally:
                    self._term = None

    async def _unless_stopped(self, waiting: Awaitable[Term]) -> Term | None:
        term, stopped = asyncio.ensure_future(waiting), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({term, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return None if self._stopping.is_set() else term.result()
        finally:
            for task in (term, stopped):
                task.cancel()
            await asyncio.gather(term, stopped, return_exceptions=True)
