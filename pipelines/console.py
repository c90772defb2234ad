"""Console output: lines, long lists, durations, metrics, and progress as a bar on a terminal."""

import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ..manifests.failures import Failure

LINE_SECONDS = (10.0, 60.0)  # shortest and longest time between progress lines
# A rate says how long the rest takes once it has settled.
MIN_DONE, SETTLED_SECONDS, MAX_SECONDS = 0.01, 120.0, 1e4 * 3600
LINE_SHARE = 0.05  # time between progress lines, as a share of the time since the start


class CommandConsole(Console):
    """Console of the command line, which goes on silently if its reader is gone (`| head`).

    rich's own would end the thread that prints, perhaps the one that talks to Dask.

    Attributes:
        is_verbose: whether to print details, and long lists in full.
    """

    def __init__(self, *, is_verbose: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.is_verbose = is_verbose

    def on_broken_pipe(self) -> None:
        """Discard further output."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(console: Console, *lines: str) -> None:
    """Print lines unchanged: names may contain brackets, and logs are not wrapped."""
    for line in lines:
        console.print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def say_details(console: Console, *lines: str) -> None:
    """Print lines only with `--verbose`."""
    if is_verbose(console):
        say(console, *lines)


def say_some(console: Console, lines: Sequence[str], rest: str = "", most: int = 20) -> None:
    """Print the first lines of a list, or all of them with `--verbose`.

    Args:
        console: the console.
        lines: the list.
        rest: what the other lines are, and where to find them.
        most: number of lines printed without `--verbose`.
    """
    shown = len(lines) if is_verbose(console) else most
    say(console, *lines[:shown])
    if len(lines) > shown:
        say(console, f"… and {len(lines) - shown:,} more{rest}; --verbose prints them all")


def say_failures(console: Console, failures: Sequence[Failure], path: Path) -> None:
    """Print the first failed and partial videos of the file at `path`."""
    say_some(console, list(map(str, failures)), f" in {path}")


def say_table(console: Console, title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values as a table, for a terminal."""
    table = Table(title=title, title_justify="left", show_header=False, box=box.ROUNDED)
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console.print(table)


def is_verbose(console: Console) -> bool:
    """Return whether details are wanted."""
    return isinstance(console, CommandConsole) and console.is_verbose


def duration_text(seconds: float) -> str:
    """Return a duration in words.

    >>> duration_text(42), duration_text(630), duration_text(20_000)
    ('42 s', '10.5 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def counts_text(counts: Mapping[str, int], most: int) -> str:
    """Return values with their counts, in order.

    >>> counts_text({"h264": 1200, "vp9": 2, "av1": 1}, most=2)
    'h264 (1,200), vp9 (2), 1 others'
    """
    words = [f"{value} ({count:,})" for value, count in counts.items()]
    if len(words) > most:
        words[most:] = [f"{len(words) - most} others"]
    return ", ".join(words) or "none"


Interval = tuple[float, float]

_METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_class_accuracy": "mean class accuracy",
    "mean_average_precision": "mAP",
    "f1": "F1",
    "frame_accuracy": "frame accuracy",
    "frame_accuracy_without_background": "without background",
    "frame_mean_average_precision": "mAP of frames",
    "edit": "edit score",
    "f1@10": "F1@10",
    "f1@25": "F1@25",
    "f1@50": "F1@50",
    "map": "mAP of segments",
    **{f"map@{overlap}": f"mAP@{overlap}" for overlap in (30, 40, 50, 60, 70)},
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "loss": "loss",
}
_NO_SHARES = {"rmse", "mae", "r2", "loss"}


def metric_parts(
    name: str, value: float | None, interval: Interval | None = None
) -> tuple[str, str, str]:
    """Return a metric's name, value and confidence interval as text.

    >>> metric_parts("top1", 0.875, (0.7, 0.95))
    ('top-1', '87.5%', '70.0% to 95.0%')
    """
    digits = ".4f" if name in _NO_SHARES else ".1%"
    words = "" if interval is None else " to ".join(format(end, digits) for end in interval)
    return _METRIC_NAMES[name], "–" if value is None else format(value, digits), words


def metric_text(name: str, value: float | None, interval: Interval | None = None) -> str:
    """Return a metric's name and value, with its confidence interval if given.

    >>> metric_text("top1", 0.875), metric_text("rmse", 1.23456), metric_text("r2", None)
    ('top-1  87.5%', 'RMSE 1.2346', 'R² –')
    >>> metric_text("top1", 0.875, (0.7, 0.95))
    'top-1  87.5% (70.0% to 95.0%)'
    """
    label, text, words = metric_parts(name, value, interval)
    aligned = f"{text:>6}" if text.endswith("%") else text
    return f"{label} {aligned} ({words})" if words and value is not None else f"{label} {aligned}"


def metrics_text(
    metrics: Mapping[str, float | None],
    separator: str = ", ",
    intervals: Mapping[str, Interval] | None = None,
) -> str:
    """Return several metrics as text.

    >>> metrics_text({"mae": 2.0, "loss": 0.5})
    'MAE 2.0000, loss 0.5000'
    """
    known = intervals or {}
    return separator.join(metric_text(name, v, known.get(name)) for name, v in metrics.items())


class LineClock:
    """Tells when a progress line is due, without a terminal: often at first, then each minute."""

    def __init__(self) -> None:
        self.start = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def is_due(self) -> bool:
        """Return whether a line is due; if so, the next one is due later."""
        least, most = LINE_SECONDS
        wait = min(most, max(least, LINE_SHARE * self.seconds))
        if time.monotonic() - self._last < wait:
            return False
        self._last = time.monotonic()
        return True


class Bar(Progress):
    """rich's progress bar, on terminals and in notebooks only.

    Before 14.3, a disabled one left an empty line.
    """

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        is_shown = console.is_terminal or console.is_jupyter
        super().__init__(*columns, console=console, transient=True, disable=not is_shown)

    def stop(self) -> None:
        """Remove the bar."""
        if not self.disable:
            super().stop()


class CountProgress:
    """Context that shows progress as a count; `count` may be called from any thread.

    Args:
        work: name of the work.
        unit: unit of the count.
        total: expected number.
        console: the console.
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
        """Show a note beside the count from now on."""
        with self._lock:
            self._note = text
            self._bar.update(self._task, note=text)

    def count(self, num_done: int = 1, num_unexpected: int = 0) -> None:
        """Count finished work and work beyond the expected total, and show both."""
        with self._lock:
            self._done += num_done
            self._num_expected += num_unexpected
            total = max(self._done, self._num_expected)
            rate = self._done / max(1e-9, self._clock.seconds)
            self._bar.update(self._task, completed=self._done, total=total, rate=rate)
            if not self._console.is_terminal and self._clock.is_due():
                left = ""
                if self._done >= MIN_DONE * total or self._clock.seconds > SETTLED_SECONDS:
                    seconds = (total - self._done) / max(1e-9, rate)
                    left = f", {duration_text(seconds)} left" if seconds < MAX_SECONDS else ""
                note = f"; {self._note}" if self._note else ""
                say(
                    self._console,
                    f"{self._work}: {self._done:,}/{total:,} {self._unit}, {rate:,.1f}/s"
                    f"{left}{note}",
                )
