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


class FrameProgress:
    """A context in which `add` may be called from any thread.

    How many frames there are is known only of the videos that were opened; the rest is taken to be
    like them.

    Args:
        num_videos: how many will be opened.
        console: where to show it.
    """

    def __init__(self, num_videos: int, console: Console) -> None:
        self._num_videos = num_videos
        self._console = console
        self._lock = threading.Lock()
        self._frames = self._probed_videos = self._probed_frames = 0
        self._start = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("extract"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.fields[about]} frames"),
            TextColumn("{task.fields[rate]:,.1f}/s"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("extract", total=None, about="?", rate=0.0)

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
            self._probed_videos += progress.num_probed_videos
            self._probed_frames += progress.num_probed_frames
            total = max(
                self._frames,
                round(self._probed_frames * self._num_videos / max(1, self._probed_videos)),
            )
            about = f"{'' if self._probed_videos >= self._num_videos else 'about '}{total:,}"
            now = time.monotonic()
            rate = self._frames / max(1e-9, now - self._start)
            self._bar.update(
                self._task, completed=self._frames, total=total or None, about=about, rate=rate
            )
            if not self._console.is_terminal and now - self._last_line >= LINE_SECONDS:
                self._last_line = now
                say(self._console, f"extract: {self._frames:,}/{about} frames, {rate:,.1f}/s")
