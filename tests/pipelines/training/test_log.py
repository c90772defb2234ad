"""The training log: one line per epoch, TensorBoard events, and an image of the confusion."""

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vtnpipe.pipelines.console import LineClock
from vtnpipe.pipelines.training.log import MAX_LOST_LISTED, TrainingLog, confusion_image
from vtnpipe.temporal.train import EpochReport


def _report(epoch: int, **changes: Any) -> EpochReport:
    values: dict[str, Any] = {
        "epoch": epoch,
        "lr": 0.1,
        "train_loss": 0.5 / epoch,
        "num_scored": 4,
        "metrics": {"top1": 0.25 * epoch, "loss": 1.5},
        "videos_per_second": 1234.5,
        "waiting": 0.0,
        "lost": [],
        "is_best": epoch == 2,
        "confusion": [[2, 0], [1, 1]],
    }
    return EpochReport(**{**values, **changes})


def _printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_an_epoch_is_one_line(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    with TrainingLog(console, 10, None) as log:
        log.on_epoch(_report(2))
        log.on_epoch(_report(3, waiting=0.25, lost=[f"v{n}: damaged" for n in range(7)]))
    lines = _printed(console).splitlines()
    first, second = lines[0], lines[1]
    assert first.startswith("epoch   2/10  training loss 0.2500  top-1  50.0%  loss 1.5000")
    assert first.endswith("1,234 videos/s  best")
    assert second.endswith("1,234 videos/s (25% waiting)")
    assert lines[2] == "  lost v0: damaged"
    assert len(lines) == 2 + MAX_LOST_LISTED + 1
    assert "2 more in metrics.jsonl" in lines[-1]


def test_steps_print_the_time_left_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineClock, "is_due", lambda self: True)
    monkeypatch.setattr(LineClock, "seconds", property(lambda self: 10.0))
    console = Console(file=io.StringIO(), width=300)
    with TrainingLog(console, 4, None) as log:
        log.on_step(1, 0, 10)  # resumed after one epoch
        log.on_step(1, 5, 10)
    assert _printed(console).splitlines() == [
        "epoch   2/4: step 0/10",  # how long a step takes is not known yet
        "epoch   2/4: step 5/10, 50 s left",
    ]


def test_events_of_a_resumed_run_replace_those_of_the_stopped_one(tmp_path: Path) -> None:
    console = Console(quiet=True)
    for epochs, loss in (((1, 2), 0.5), ((2, 3), 0.25)):  # stopped in epoch 2, after its events
        with TrainingLog(console, 3, tmp_path) as log:
            for epoch in epochs:
                log.on_epoch(_report(epoch, train_loss=loss))
        time.sleep(1.1)  # files are ordered by the second in their names
    events = EventAccumulator(str(tmp_path), purge_orphaned_data=True).Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert found == [(1, 0.5), (2, 0.25), (3, 0.25)]
    assert {"train/lr", "train/videos_per_second", "train/waiting", "train/lost"} <= set(
        events.Tags()["scalars"]
    )
    assert [event.value for event in events.Scalars("val/top1")] == [0.25, 0.5, 0.75]
    assert len(events.Images("val/confusion")) == 3


def test_a_metric_without_a_value_has_no_event(tmp_path: Path) -> None:
    with TrainingLog(Console(quiet=True), 1, tmp_path) as log:
        log.on_epoch(_report(1, metrics={"r2": None, "loss": 1.0}, confusion=None))
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "val/r2" not in tags["scalars"]
    assert "val/loss" in tags["scalars"]
    assert tags["images"] == []


def test_the_confusion_image_shows_errors_in_red() -> None:
    counts = np.array([[5, 0, 5, 0], [0, 9, 0, 1], [3, 0, 7, 0], [0, 0, 0, 0]])
    image = confusion_image(counts)
    assert image.shape == (400, 400, 3)
    assert (image[350, 50] == 255).all()  # no videos
    assert image[50, 250, 0] == 255  # errors are red
    assert image[50, 250, 1] < 255
    assert len(set(image[50, 50].tolist())) == 1  # correct predictions are gray
