"""What the demo shows: bars that move on a terminal, plain lines elsewhere.

Both views have the same methods. A thing that goes on (a picture, a report, a mail) is known by its key.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from time import perf_counter
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


class View(Protocol):
    """What the demo tells its viewer."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; nothing moves any more."""

    def step(self, text: str) -> None:
        """Say that a new part begins."""

    def note(self, text: str) -> None:
        """Say something."""

    def progress(self, key: str, done: float, total: float | None, label: str) -> None:
        """Show how far something is."""

    def finish(self, key: str, text: str, *, good: bool = True) -> None:
        """Say how something ended."""

    def verdict(self, sentence: str, found: str, *, good: bool) -> None:
        """Say whether a sentence holds and, where it does not, what was found."""

    def clear(self) -> None:
        """Show no longer what will not end any more."""


class PlainView:
    """Lines, each with the seconds since the beginning."""

    def __init__(self) -> None:
        self.started = perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def _say(self, text: str) -> None:
        try:
            sys.stdout.write(f"{perf_counter() - self.started:6.1f} s  {text}\n")
            sys.stdout.flush()
        except BrokenPipeError:  # `make demo | head`: nobody reads on, and the run has to be cleaned up all the same
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def step(self, text: str) -> None:
        """Say that a new part begins."""
        self._say(f"== {text}")

    def note(self, text: str) -> None:
        """Say something."""
        self._say(f"   {text}")

    def progress(self, key: str, done: float, total: float | None, label: str) -> None:
        """Show how far something is."""
        percent = f"{100 * done / total:3.0f} %" if total else f"{done:g}"
        self._say(f"   {key}: {percent}  {label}")

    def finish(self, key: str, text: str, *, good: bool = True) -> None:
        """Say how something ended."""
        self._say(f"   {key}: {'' if good else 'FAILED: '}{text}")

    def verdict(self, sentence: str, found: str, *, good: bool) -> None:
        """Say whether a sentence holds and, where it does not, what was found."""
        self._say(f"   yes  {sentence}" if good else f"   NO   {sentence}: {found}")

    def clear(self) -> None:
        """Show no longer what will not end any more; lines stay."""


class LiveView:
    """Bars for what goes on, below the lines of what has ended."""

    def __init__(self) -> None:
        self.started = perf_counter()
        self.bars: dict[str, TaskID] = {}
        self.display = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("[dim]{task.fields[label]}"),
            TimeElapsedColumn(),
            console=Console(highlight=False),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self.display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.display.stop()

    def _say(self, text: str) -> None:
        seconds = perf_counter() - self.started
        with contextlib.suppress(OSError):  # the terminal was closed, and the run has to be cleaned up all the same
            self.display.console.print(f"[dim]{seconds:6.1f} s[/]  {text}", soft_wrap=True)

    def step(self, text: str) -> None:
        """Say that a new part begins."""
        self._say(f"[bold cyan]{escape(text)}[/]")

    def note(self, text: str) -> None:
        """Say something."""
        self._say(f"   {escape(text)}")

    def progress(self, key: str, done: float, total: float | None, label: str) -> None:
        """Show how far something is."""
        if key not in self.bars:
            self.bars[key] = self.display.add_task(escape(key), total=total, label=label)
        self.display.update(self.bars[key], completed=done, total=total, label=escape(label))

    def finish(self, key: str, text: str, *, good: bool = True) -> None:
        """Say how something ended."""
        bar = self.bars.pop(key, None)
        if bar is not None:
            self.display.remove_task(bar)
        mark = "[green]✔[/]" if good else "[red]✘[/]"
        self._say(f" {mark} {escape(key)}: {escape(text)}")

    def verdict(self, sentence: str, found: str, *, good: bool) -> None:
        """Say whether a sentence holds and, where it does not, what was found."""
        text = f"[green]yes[/]  {escape(sentence)}" if good else f"[red]NO[/]   {escape(sentence)}: {escape(found)}"
        self._say(f"   {text}")

    def clear(self) -> None:
        """Show no longer what will not end any more."""
        while self.bars:
            self.display.remove_task(self.bars.popitem()[1])


def choose_view() -> View:
    """Return the view that suits the standard output."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a picture's name may have letters that this terminal has not
    return LiveView() if sys.stdout.isatty() else PlainView()
