"""Training log: a progress bar on a terminal, one line per epoch, and TensorBoard events."""

from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ...temporal.metrics import is_shown
from ...temporal.train import EpochReport
from ..console import Bar, LineClock, duration_text, metrics_text, say, say_some

MAX_LOST_LISTED = 5  # clips of an epoch
SLOW_WAITING = 0.05  # share of the time spent waiting for clips, from which on it is printed


class TrainingLog:
    """Context whose `on_step` and `on_epoch` are training callbacks.

    Args:
        console: the console.
        epochs: number of epochs.
        folder: folder of TensorBoard's events; None for no events.
    """

    def __init__(self, console: Console, epochs: int, folder: Path | None) -> None:
        self._console = console
        self._epochs = epochs
        self._folder = folder
        self._writer: Any = None
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("train", total=None)
        self._clock = LineClock()
        self._begun: float | None = None  # epochs finished before this process

    def __enter__(self) -> "TrainingLog":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def on_step(self, epoch: int, done: int, total: int) -> None:
        """Update the progress bar.

        Args:
            epoch: number of the epoch, from 0.
            done: number of its finished steps.
            total: number of steps of an epoch.
        """
        now = epoch + done / total
        if self._begun is None:
            self._begun = now
        if not self._console.is_terminal and self._clock.is_due():
            left = self._seconds_left(now)
            words = "" if left is None else f", {duration_text(left)} left"
            step = f"epoch {epoch + 1:3d}/{self._epochs}: step {done:,}/{total:,}"
            say(self._console, f"{step}{words}")
        self._bar.update(
            self._task,
            description=f"epoch {epoch + 1}/{self._epochs}"
            + ("" if done < total else ": evaluate"),
            completed=done,
            total=total,
        )

    def _seconds_left(self, epochs_done: float) -> float | None:
        """Return the time that is left; None after the first step, which has no duration yet."""
        done = epochs_done - (self._begun or 0.0)
        return self._clock.seconds * (self._epochs - epochs_done) / done if done > 0 else None

    def on_epoch(self, report: EpochReport) -> None:
        """Print a line, and write TensorBoard events."""
        say(self._console, _line(report, self._epochs))
        lost = [f"  lost {fault}" for fault in report.lost]
        say_some(self._console, lost, " in metrics.jsonl", MAX_LOST_LISTED)
        if self._folder is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            # Discards what a stopped run wrote about this epoch and later ones.
            self._writer = SummaryWriter(str(self._folder), purge_step=report.epoch)
        scalars = {"train/loss": report.train_loss, "train/lr": report.lr}
        scalars["train/videos_per_second"] = report.videos_per_second
        scalars |= {"train/waiting": report.waiting, "train/lost": len(report.lost)}
        scalars |= {f"val/{name}": v for name, v in report.metrics.items() if v is not None}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, report.epoch)
        if report.confusion is not None:
            image = confusion_image(np.array(report.confusion))
            self._writer.add_image("val/confusion", image, report.epoch, dataformats="HWC")
        self._writer.flush()


def _line(report: EpochReport, epochs: int) -> str:
    waiting = f" ({report.waiting:.0%} waiting)" if report.waiting > SLOW_WAITING else ""
    num_classes = len(report.confusion or ())
    metrics = {name: one for name, one in report.metrics.items() if is_shown(name, num_classes)}
    return (
        f"epoch {report.epoch:3d}/{epochs}  training loss {report.train_loss:.4f}  "
        f"{metrics_text(metrics, '  ')}  {report.videos_per_second:,.0f} videos/s"
        f"{waiting}"
        f"{'  best' if report.is_best else ''}"
    )


def confusion_image(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Return an image [H, W, 3] of a confusion matrix [C, C], about 400 pixels wide.

    A cell is the darker the larger its share of its row is; errors are red.
    """
    share = counts / np.maximum(1, counts.sum(1))[:, None]
    gray = np.uint8(255) - np.round(255 * np.sqrt(share)).astype(np.uint8)
    colored = np.repeat(gray[..., None], 3, axis=-1)
    colored[~np.eye(len(counts), dtype=bool), 0] = 255
    scale = max(1, 400 // len(counts))
    return np.kron(colored, np.ones((scale, scale, 1), dtype=np.uint8))
