"""One term of a scheduler: from the states of the leader before to the hand-over.

    read watermark and definitions ──▶ ┌─▶ send what is due, in the order of the fire times
                                       │   save the watermark, once a second at most
                                       └── sleep until the next fire time, a request, or the end

The watermark is saved after the ticks that it covers, so a leader that dies makes its successor send those of the
last second again, with the same ids. Ticks are published by the term: a leader that was frozen or cut off gets none
through after its successor has begun.

What cannot be sent: a tick without a queue, or refused, is logged and counted, and the others go on; where the broker
does not answer, or blocks, it is sent again with the same id until it is taken, its deadline has passed, or the term
is over.

Invariant: no tick is sent before its fire time, and none is passed by the saved watermark before it was confirmed,
refused, or skipped by its schedule's own rules.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping, Sequence

from asyncq.broker import Publication, ReplyTo
from asyncq.errors import AsyncQError, BrokerError, LeaseLost, NotSent, PartlySent, PublishError, PublishUncertain
from asyncq.leadership import Note, Term
from asyncq.life import SENT_AT
from asyncq.loggers import get_logger
from asyncq.message import HeaderValue
from asyncq.scheduler.definitions import Definitions
from asyncq.scheduler.requests import PAUSE, REPORT, RESUME, answer_to, name_of
from asyncq.scheduler.work import Counts, Work
from asyncq.ticks import FIRE_TIME, SCHEDULE, Due, Tick, Timetable

__all__ = ["SchedulerTerm"]

log = get_logger("asyncq.scheduler")

_WATERMARK, _DEFINITIONS, _RUNS = "watermark", "definitions", "runs"
_SAVE_EVERY_S = 1.0
_SAVE_IDLE_EVERY_S = 60.0
_SAVE_RUNS_EVERY_S = 30.0
_LONGEST_SLEEP_S = 10.0
"""No fire time is waited for longer in one piece: the machine's clock may be corrected meanwhile."""
_AT_ONCE = 100
_PAUSE_S = 1.0
_LATE_S = 5.0
_TICK_S = 0.001  # differences of a monotonic clock are a little less than what was slept
_BEHIND_MS = 60_000
_MANY_RUNS = 20_000
"""To reckon so many missed runs takes more than a second: the event loop, and its heartbeats, must not wait for it."""


class _HandOver(Exception):
    """`stop()` came while ticks were not out yet: they are the next leader's."""


class SchedulerTerm:
    """Sends what is due, as long as the term lasts.

    Args:
        work: What there is to do.
        counts: Where it is counted.
        term: The leadership.
    """

    def __init__(self, work: Work, counts: Counts, term: Term) -> None:
        self._work = work
        self._counts = counts
        self._term = term
        self._clock = work.clock
        self._wake = asyncio.Event()
        self._stopped = False
        now_ms = self._clock.now_ms()
        self._saved_ms = _integer(term.states.get(_WATERMARK), now_ms)
        self._saved_at_s = self._runs_saved_at_s = self._clock.monotonic()
        self._runs = _runs(term.states.get(_RUNS))
        self._definitions = self._define(now_ms)
        self._table = Timetable(self._definitions.entries(), self._saved_ms)
        self._reckoning = asyncio.Lock()  # a request must not change the table while a thread works with it
        self._began_ms = now_ms
        self._unsaved = False  # whether ticks were sent that the saved watermark does not cover

    def _define(self, now_ms: int) -> Definitions:
        return Definitions(
            {name: found.schedule for name, found in self._work.scheduled.items()},
            self._work.tz,
            self._term.states.get(_DEFINITIONS),
            now_ms=now_ms,
            watermark_ms=self._saved_ms,
        )

    @property
    def upcoming(self) -> Mapping[str, int]:
        """The next fire times, in milliseconds since the epoch."""
        return self._table.upcoming()

    def stop(self) -> None:
        """Hand over."""
        self._stopped = True
        self._wake.set()

    async def lead(self) -> None:
        """Send what is due until `stop()`.

        Raises:
            LeaseLost: The term is over.
        """
        behind_s = (self._began_ms - self._saved_ms) / 1000
        log.info("scheduler leads", schedules=len(self._work.scheduled), watermark_behind_s=round(behind_s, 3))
        if self._definitions.removed:
            log.info("schedules are gone from the code, and stop", names=self._definitions.removed)
        await self._save(_DEFINITIONS, self._definitions.to_json())
        helpers = [asyncio.create_task(self._answer()), asyncio.create_task(self._watch())]
        try:
            await self._send(await self._due())
            # At once: where one leader after the other dies young, each must go on from the one before.
            await self._save_watermark(self._table.watermark_ms)
            while not self._stopped:
                self._wake.clear()
                await self._send(await self._due())
                await self._sleep()
            await self._save_watermark(self._table.watermark_ms)
            await self._save(_RUNS, json.dumps(self._runs).encode())
            log.info("scheduler hands over")
        except _HandOver:
            log.warning("scheduler hands over in the middle: the next leader sends what is not out yet")
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    # --- ticks

    async def _due(self) -> Due:
        """Reckon what is due now; where that is much work, in a thread."""
        async with self._reckoning:
            now_ms = self._clock.now_ms()
            schedules = [found.schedule for found in self._work.scheduled.values()]
            most = sum(schedule.catch_up if schedule.missed == "all" else 100 for schedule in schedules)
            if most > _MANY_RUNS and now_ms - self._table.watermark_ms > _BEHIND_MS:
                return await asyncio.to_thread(self._table.due, now_ms)
            return self._table.due(now_ms)

    async def _send(self, due: Due) -> None:
        if due.restarted:
            log.error(
                "the clock is a day or more behind what was sent last: somebody's clock was wrong; going on from now"
            )
            await self._save_watermark(due.watermark_ms)
        for skipped in due.skipped:
            self._counts.skipped[skipped.schedule, skipped.reason] += skipped.count
            log.warning("fire times get no run", schedule=skipped.schedule, reason=skipped.reason, count=skipped.count)
        self._unsaved = self._unsaved or bool(due.ticks)
        for start in range(0, len(due.ticks), _AT_ONCE):
            batch = due.ticks[start : start + _AT_ONCE]
            await self._publish_all(batch)
            out = start + len(batch)
            if self._stopped and out < len(due.ticks):
                await self._save_watermark(due.watermark_after(out))
                raise _HandOver
            await self._save_if_due(due.watermark_after(out))
        if due.ticks or due.skipped:
            self._unsaved = True
            await self._save_if_due(due.watermark_ms)

    async def _publish_all(self, ticks: Sequence[Tick]) -> None:
        # Begun in their order, and so written in it; the confirms overlap.
        errors = await asyncio.gather(*map(self._publish, ticks), return_exceptions=True)
        for error in errors:
            if error is not None:
                raise error

    async def _publish(self, tick: Tick) -> None:
        # Sent at its fire time, whenever that is: two messages of one tick are the same life of its task.
        headers: dict[str, HeaderValue] = {SCHEDULE: tick.schedule, FIRE_TIME: tick.at_ms, SENT_AT: tick.at_ms}
        found = self._work.scheduled[tick.schedule]
        sends = found.at(tick.id(self._work.app), headers)
        while True:
            try:
                await self._work.send(sends, self._publish_in_term)
            except LeaseLost:
                raise
            except PublishError as error:
                if not _may_help(error):
                    self._refused(tick, error)
                    return
                log.warning("a tick was not confirmed, sending it again", id=tick.id(self._work.app), cause=str(error))
                await self._pause()
                if self._stopped:
                    raise _HandOver from error
                deadline_s = found.schedule.deadline_s
                if deadline_s is not None and self._clock.now_ms() - tick.at_ms > deadline_s * 1000:
                    self._counts.skipped[tick.schedule, "deadline"] += 1
                    log.warning("fire times get no run", schedule=tick.schedule, reason="deadline", count=1)
                    return
            except AsyncQError as error:
                self._refused(tick, error)
                return
            else:
                self._confirmed(tick)
                return

    async def _publish_in_term(self, publication: Publication) -> None:
        await self._term.publish(
            publication.message, publication.to, delay=publication.delay, timeout_s=self._work.timeout_s
        )

    def _refused(self, tick: Tick, error: AsyncQError) -> None:
        self._counts.skipped[tick.schedule, "refused"] += 1
        log.error("a tick cannot be sent", id=tick.id(self._work.app), cause=str(error))

    def _confirmed(self, tick: Tick) -> None:
        self._counts.sent[tick.schedule] += 1
        self._counts.lag_s = lag_s = (self._clock.now_ms() - tick.at_ms) / 1000
        self._runs[tick.schedule] = max(tick.at_ms, self._runs.get(tick.schedule, 0))
        tell = log.warning if lag_s > _LATE_S else log.debug
        tell("tick sent", id=tick.id(self._work.app), lag_s=round(lag_s, 3))

    async def _pause(self) -> None:
        """Wait a little; not longer than the term lasts."""
        if self._term.is_lost:
            raise LeaseLost("The term is over.")
        over = asyncio.Event()
        timer = self._clock.call_later(_PAUSE_S, over.set)
        try:
            await over.wait()
        finally:
            timer.cancel()

    # --- time

    async def _sleep(self) -> None:
        """Sleep until the next fire time, or until somebody wakes us. Never shorter: nothing is sent early."""
        next_ms, now_ms = self._table.next_ms, self._clock.now_ms()
        seconds = _LONGEST_SLEEP_S if next_ms is None else min(_LONGEST_SLEEP_S, max(0.0, (next_ms - now_ms) / 1000))
        if self._table.watermark_ms > now_ms:  # the clock was set back: what is next comes after the watermark
            seconds = max(seconds, min(_LONGEST_SLEEP_S, (self._table.watermark_ms - now_ms) / 1000))
        if self._unsaved:
            seconds = min(seconds, max(_TICK_S, _SAVE_EVERY_S - (self._clock.monotonic() - self._saved_at_s)))
        timer = self._clock.call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        if self._term.is_lost:
            raise LeaseLost("The term is over.")
        await self._save_if_due(self._table.watermark_ms)

    # --- states

    async def _save_if_due(self, watermark_ms: int) -> None:
        now_s = self._clock.monotonic()
        every_s = _SAVE_EVERY_S if self._unsaved else _SAVE_IDLE_EVERY_S
        if watermark_ms > self._saved_ms and now_s - self._saved_at_s > every_s - _TICK_S:
            await self._save_watermark(watermark_ms)
        if now_s - self._runs_saved_at_s >= _SAVE_RUNS_EVERY_S:
            self._runs_saved_at_s = now_s
            await self._save(_RUNS, json.dumps(self._runs).encode())

    async def _save_watermark(self, watermark_ms: int) -> None:
        if await self._save(_WATERMARK, b"%d" % watermark_ms):
            self._saved_ms = watermark_ms
            self._unsaved = watermark_ms < self._table.watermark_ms and self._unsaved
        self._saved_at_s = self._clock.monotonic()

    async def _save(self, name: str, state: bytes) -> bool:
        """Save a state; what is not saved costs at worst some ticks that are sent twice."""
        try:
            await self._term.save(name, state, timeout_s=self._work.timeout_s)
        except LeaseLost:
            raise
        except BrokerError as error:
            log.warning("the scheduler's state could not be saved", name=name, cause=str(error))
            return False
        return True

    # --- requests

    async def _watch(self) -> None:
        await self._term.lost()
        self._wake.set()

    async def _answer(self) -> None:
        while True:
            try:
                await self._take(await self._term.note())
            except LeaseLost:
                self._wake.set()
                return
            except Exception:
                log.exception("a request to the scheduler has failed")

    async def _take(self, note: Note) -> None:
        message = note.message
        async with self._reckoning:
            answer = self._do(message.type, name_of(message))
        if message.type in {PAUSE, RESUME} and "error" not in answer:
            while not await self._save(_DEFINITIONS, self._definitions.to_json()):
                await self._pause()  # it is not done, nor said to be, before the next leader would know it
        await note.done()
        if message.reply_to is not None:
            try:
                await self._term.publish(
                    answer_to(message, answer), ReplyTo(message.reply_to), timeout_s=self._work.timeout_s
                )
            except PublishError as error:
                log.info("nobody waits for the answer any more", request=message.type, cause=str(error))

    def _do(self, kind: str, name: str | None) -> dict[str, object]:
        if kind == REPORT:
            return self._report()
        if kind not in {PAUSE, RESUME}:
            return {"error": f"The scheduler does not know the request {kind!r}."}
        if name is None or name not in self._definitions:
            return {"error": f"The scheduler that leads has no schedule {name!r}."}
        if kind == PAUSE:
            self._definitions.pause(name)
        else:
            self._definitions.resume(name, self._clock.now_ms())
        log.info("schedule paused" if kind == PAUSE else "schedule resumed", schedule=name)
        self._table = Timetable(self._definitions.entries(), self._table.watermark_ms)
        self._wake.set()
        return {"name": name, "paused": kind == PAUSE}

    def _report(self) -> dict[str, object]:
        upcoming = self._table.upcoming()
        return {
            "leader": f"{socket.gethostname()} {os.getpid()}",
            "leads_since_ms": self._began_ms,
            "watermark_ms": self._table.watermark_ms,
            "lag_s": self._counts.lag_s,
            "schedules": {
                name: {
                    "when": self._definitions[name].when,
                    "paused": self._definitions[name].paused,
                    "next_ms": upcoming.get(name),
                    "last_ms": self._runs.get(name),
                    "sent": self._counts.sent[name],
                    "skipped": {reason: count for (of, reason), count in self._counts.skipped.items() if of == name},
                }
                for name in sorted(self._work.scheduled)
            },
        }


def _may_help(error: PublishError) -> bool:
    """Tell whether sending it again may help: the broker did not answer, or blocks."""
    errors = error.outcomes if isinstance(error, PartlySent) else [error]
    return any(isinstance(each, NotSent | PublishUncertain) for each in errors)


def _integer(state: bytes | None, default: int) -> int:
    try:
        return default if state is None else int(state)
    except ValueError:
        return default


def _runs(state: bytes | None) -> dict[str, int]:
    try:
        return {str(name): int(at_ms) for name, at_ms in json.loads(state or b"{}").items()}
    except (ValueError, TypeError, AttributeError):
        return {}
