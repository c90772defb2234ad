"""What a person sees of a training: a bar on a terminal, a line an epoch, TensorBoard's events."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ..console import Bar, LineClock, in_words, say, say_some
from ..html.confusion import Confusion
from ..inference.figures import figures_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from ...temporal.progress import EpochReport

MAX_LOST_LISTED = 5  # clips, of an epoch
SLOW_WAITING = 0.05  # share of the time from which on waiting for clips is worth a word


class TrainingLog:
    """A context whose `on_step` and `on_epoch` a fit calls.

    Args:
        console: where to show it.
        epochs: how many are wanted.
        folder: for TensorBoard's events; None for none.
        class_names: [C] of a classification.
    """

    def __init__(
        self, console: Console, epochs: int, folder: Path | None, class_names: Sequence[str] = ()
    ) -> None:
        self._console = console
        self._class_names = class_names
        self._epochs = epochs
        self._folder = folder
        self._writer: SummaryWriter | None = None
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
        self._begun: float | None = None  # epochs that were done when this process began

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
        """Moves the bar.

        Args:
            epoch: from 0.
            done: steps of it.
            total: steps of an epoch.
        """
        now = epoch + done / total
        if self._begun is None:
            self._begun = now
        if not self._console.is_terminal and self._clock.is_due():
            left = self._seconds_left(now)
            say(
                self._console,
                f"epoch {epoch + 1:3d}/{self._epochs}: step {done:,}/{total:,}, "
                f"{in_words(left)} left",
                **{"epoch": epoch + 1, "step": done, "steps": total},
                seconds_left=round(left, 1),
            )
        self._bar.update(
            self._task,
            description=f"epoch {epoch + 1}/{self._epochs}"
            + ("" if done < total else ": evaluate"),
            completed=done,
            total=total,
        )

    def _seconds_left(self, epochs_done: float) -> float:
        done = max(1e-9, epochs_done - (self._begun or 0.0))
        return self._clock.seconds * (self._epochs - epochs_done) / done

    def on_epoch(self, report: "EpochReport") -> None:
        """Prints a line, and writes events."""
        say(self._console, _line(report, self._epochs), **report.to_json())
        lost = [f"  lost {fault}" for fault in report.lost]
        say_some(self._console, lost, " in metrics.jsonl", MAX_LOST_LISTED)
        if self._folder is None:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a run that was stopped wrote of this epoch and later ones no longer counts.
            self._writer = SummaryWriter(str(self._folder), purge_step=report.epoch)
        scalars = {"train/loss": report.train_loss, "train/lr": report.lr}
        scalars["train/videos_per_second"] = report.videos_per_second
        scalars |= {"train/waiting": report.waiting, "train/lost": len(report.lost)}
        scalars |= {f"val/{name}": v for name, v in report.figures.items() if v is not None}
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, report.epoch)
        if report.confusion is not None:
            matrix = Confusion(classes=self._class_names, counts=np.array(report.confusion))
            self._writer.add_image("val/confusion", matrix.image(), report.epoch, dataformats="HWC")
        self._writer.flush()


def _line(report: "EpochReport", epochs: int) -> str:
    waiting = f" ({report.waiting:.0%} waiting)" if report.waiting > SLOW_WAITING else ""
    return (
        f"epoch {report.epoch:3d}/{epochs}  training loss {report.train_loss:.4f}  "
        f"{figures_text(report.figures, '  ')}  {report.videos_per_second:,.0f} videos/s"
        f"{waiting}"
        f"{'  best' if report.is_best else ''}"
    )
