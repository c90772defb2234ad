"""What a person sees of a run: lines, and how far it is, as a bar on a terminal."""

import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..extract.batches import Progress as WorkerProgress

LINE_SECONDS = 10.0


class LastingConsole(Console):
    """A console that falls silent when its reader is gone (`| head`), while the work goes on.

    rich's own would end the thread that prints, and that may be the one that talks to Dask.
    """

    def on_broken_pipe(self) -> None:
        """Sends what is still printed nowhere."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(console: Console, *lines: str) -> None:
    """Prints lines as they are: names hold brackets, and a log is not to be wrapped."""
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def in_words(seconds: float) -> str:
    """A duration for people.

    >>> in_words(42), in_words(630), in_words(20_000)
    ('42 s', '10.5 min', '5.6 h')
    """
    if seconds < 100:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


class FrameProgress:
    """A context in which `add` may be called from any thread.

    Args:
        num_frames: how many are expected.
        console: where to show it.
    """

    def __init__(self, num_frames: int, console: Console) -> None:
        self._num_expected = num_frames
        self._console = console
        self._lock = threading.Lock()
        self._frames = 0
        self._start = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("extract"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} frames"),
            TextColumn("{task.fields[rate]:,.1f}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("extract", total=num_frames, rate=0.0)

    def __enter__(self) -> "FrameProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def add(self, progress: "WorkerProgress") -> None:
        """Counts what came to the tasks, and shows it."""
        with self._lock:
            self._frames += progress.num_frames
            self._num_expected += progress.num_unplanned_frames
            total = max(self._frames, self._num_expected)
            now = time.monotonic()
            rate = self._frames / max(1e-9, now - self._start)
            self._bar.update(self._task, completed=self._frames, total=total, rate=rate)
            if not self._console.is_terminal and now - self._last_line >= LINE_SECONDS:
                self._last_line = now
                say(self._console, f"extract: {self._frames:,}/{total:,} frames, {rate:,.1f}/s")
