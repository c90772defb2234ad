"""What a person sees of a run: lines, and how far it is, as a bar on a terminal."""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = (10.0, 60.0)  # between lines, at first and later
LINE_SHARE = 0.05  # of the time since the start


class LastingConsole(Console):
    """A console that falls silent when its reader is gone (`| head`), while the work goes on.

    rich's own would end the thread that prints, and that may be the one that talks to Dask.

    Attributes:
        is_json: whether it gets a JSON object a line, and nothing else.
        is_quiet: whether it gets nothing.
        is_verbose: whether it gets details, too.
    """

    is_json = False
    is_quiet = False
    is_verbose = False

    def __init__(self, **options: Any) -> None:
        if self.is_json:
            options["force_terminal"] = False  # no bar, no colours
        super().__init__(quiet=self.is_quiet, **options)

    def on_broken_pipe(self) -> None:
        """Sends what is still printed nowhere."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(console: Console, *lines: str, **values: Any) -> None:
    """Prints lines as they are: names hold brackets, and a log is not to be wrapped.

    Args:
        console: where; one of a log in JSON gets an object a line.
        lines: what.
        values: what the line says, for programs.
    """
    for line in lines:
        if isinstance(console, LastingConsole) and console.is_json:
            now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
            line = json.dumps({"time": now, "message": line, **values}, ensure_ascii=False)
        console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say_more(console: Console, *lines: str, **values: Any) -> None:
    """Prints what only those want to read who ask for it."""
    if is_verbose(console):
        say(console, *lines, **values)


def say_some(console: Console, lines: Sequence[str], rest: str = "", most: int = 20) -> None:
    """Prints the first lines of a list, or with `--verbose` all of them.

    Args:
        console: where.
        lines: the list.
        rest: what the others are, and where.
        most: that are printed otherwise.
    """
    shown = len(lines) if is_verbose(console) else most
    say(console, *lines[:shown])
    if len(lines) > shown:
        say(console, f"… and {len(lines) - shown:,} more{rest}; --verbose prints them all")


def is_verbose(console: Console) -> bool:
    """Whether details are asked for, and long lists in full."""
    return isinstance(console, LastingConsole) and console.is_verbose


def say_table(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints names and values as a table, for a terminal."""
    table = Table(title=title, title_justify="left", show_header=False, box=box.ROUNDED)
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console.print(table)


def in_words(seconds: float) -> str:
    """A duration for people.

    >>> in_words(42), in_words(630), in_words(20_000)
    ('42 s', '10.5 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


class LineClock:
    """Says when the next line is due where there is no bar: often at first, then each minute."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def is_due(self) -> bool:
        """Whether it is; the next one is due later then."""
        least, most = LINE_SECONDS
        wait = min(most, max(least, LINE_SHARE * self.seconds))
        if time.monotonic() - self._last < wait:
            return False
        self._last = time.monotonic()
        return True


class Bar(Progress):
    """rich's bar, on a terminal only; where it is not shown, before 14.3 rich's would leave an
    empty line.
    """

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        super().__init__(*columns, console=console, transient=True, disable=not console.is_terminal)

    def stop(self) -> None:
        """Removes it."""
        if not self.disable:
            super().stop()


class CountProgress:
    """A context in which `count` may be called from any thread.

    Args:
        work: in a word.
        unit: of what is counted.
        total: how many are expected.
        console: where to show it.
    """

    def __init__(self, work: str, unit: str, total: int, console: Console) -> None:
        self._work = work
        self._unit = unit
        self._num_expected = total
        self._console = console
        self._lock = threading.Lock()
        self._done = 0
        self._clock = LineClock()
        self._bar = Bar(
            TextColumn(work),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn(unit),
            TextColumn("{task.fields[rate]:,.1f}/s"),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(compact=True),
            console=console,
        )
        self._note = ""
        self._task = self._bar.add_task(work, total=total, rate=0.0, note="")

    def __enter__(self) -> "CountProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """Says more beside the bar, from now on."""
        with self._lock:
            self._note = text
            self._bar.update(self._task, note=text)

    def count(self, num_done: int = 1, num_unexpected: int = 0) -> None:
        """Counts what is done, and what there is more to do than was expected; shows it."""
        with self._lock:
            self._done += num_done
            self._num_expected += num_unexpected
            total = max(self._done, self._num_expected)
            rate = self._done / max(1e-9, self._clock.seconds)
            self._bar.update(self._task, completed=self._done, total=total, rate=rate)
            if not self._console.is_terminal and self._clock.is_due():
                left = (total - self._done) / max(1e-9, rate)
                line = f"{self._work}: {self._done:,}/{total:,} {self._unit}, {rate:,.1f}/s"
                note = f"; {self._note}" if self._note else ""
                say(
                    self._console,
                    f"{line}, {in_words(left)} left{note}",
                    work=self._work,
                    done=self._done,
                    total=total,
                    per_second=round(rate, 3),
                    seconds_left=round(left, 1),
                )
