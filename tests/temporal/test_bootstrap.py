"""Intervals: they hold the figure, narrow with more videos, and speak of the same figure."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from vtnpipe.temporal.bootstrap import intervals
from vtnpipe.temporal.choices import Task
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.metrics import task_metrics


def _made_up(task: Task, num_videos: int) -> tuple[Tensor, Tensor, TemporalConfig]:
    generator = torch.Generator().manual_seed(0)
    num_classes = 1 if task == "regression" else 7
    config = TemporalConfig(feature_dim=12, num_classes=num_classes, task=task)
    logits = torch.randn(num_videos, num_classes, generator=generator)
    noise = torch.randn(num_videos, num_classes, generator=generator)
    targets = {
        "classification": (logits + noise).argmax(1),
        "multi-label": (logits + noise > 0).float(),
        "regression": (logits + noise)[:, 0].double(),
    }[task]
    return logits, targets, config


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_intervals_hold_the_figures(task: Task) -> None:
    logits, targets, config = _made_up(task, 150)
    names = [str(k) for k in range(config.num_classes)]
    metrics: Any = task_metrics(logits, targets, names, config)
    found = intervals(logits, targets, config, num_resamples=100)
    assert set(found) == set(metrics.figures)
    for name, (low, high) in found.items():
        assert low <= getattr(metrics, name) <= high
        assert low < high
    assert intervals(logits, targets, config, num_resamples=0) == {}


def test_one_resample_that_is_all_videos_gives_the_figures_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class InOrder:
        def integers(self, num_videos: int, size: int) -> Any:
            return torch.arange(num_videos).numpy()

    monkeypatch.setattr("numpy.random.default_rng", lambda seed: InOrder())
    for task in ("classification", "multi-label", "regression"):
        logits, targets, config = _made_up(task, 60)  # type: ignore[arg-type]
        names = [str(k) for k in range(config.num_classes)]
        metrics = task_metrics(logits, targets, names, config)
        for name, (low, high) in intervals(logits, targets, config, num_resamples=1).items():
            assert low == high == pytest.approx(getattr(metrics, name), abs=1e-6)


def test_the_width_of_an_accuracy_is_the_binomial_one() -> None:
    logits, labels, config = _made_up("classification", 2000)
    low, high = intervals(logits, labels, config, num_resamples=1000)["top1"]
    share = float((logits.argmax(1) == labels).double().mean())
    width = 2 * 1.96 * math.sqrt(share * (1 - share) / 2000)
    assert high - low == pytest.approx(width, rel=0.15)
