"""Confidence intervals: coverage, groups, both ends; and the comparison of two models."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from vtnpipe.temporal.config import TaskType, TemporalConfig
from vtnpipe.temporal.intervals import compare, confidence_intervals, mcnemar, wilson_interval
from vtnpipe.temporal.metrics import task_metrics

CONFIG = TemporalConfig(feature_dim=12, num_classes=2)


def _random_videos(task: TaskType, num_videos: int) -> tuple[Tensor, Tensor, TemporalConfig]:
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


def _hits(is_right: list[bool]) -> tuple[Tensor, Tensor]:
    """Logits and targets of videos that are classified rightly or not."""
    targets = torch.arange(len(is_right)) % 2
    predicted = torch.where(torch.tensor(is_right), targets, 1 - targets)
    return torch.nn.functional.one_hot(predicted, 2).float(), targets


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression"])
def test_intervals_contain_the_metrics(task: TaskType) -> None:
    logits, targets, config = _random_videos(task, 150)
    names = [str(k) for k in range(config.num_classes)]
    metrics = task_metrics(logits, targets, names, config)
    found = confidence_intervals(logits, targets, config, num_resamples=100)
    assert set(found) == set(metrics.names)
    for name, (low, high) in found.items():
        assert low <= getattr(metrics, name) <= high
        assert low < high
    assert confidence_intervals(logits, targets, config, num_resamples=0) == {}


def test_the_interval_of_an_accuracy_has_the_width_of_a_binomial() -> None:
    logits, labels, config = _random_videos("classification", 2000)
    low, high = confidence_intervals(logits, labels, config, num_resamples=2)["top1"]
    share = float((logits.argmax(1) == labels).double().mean())
    width = 2 * 1.96 * math.sqrt(share * (1 - share) / 2000)
    assert high - low == pytest.approx(width, rel=0.02)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.95, 0.99])
def test_wilson_covers_a_share_of_forty_videos(share: float) -> None:
    """The coverage is exact: the binomial probabilities of the counts whose interval covers."""
    coverage = 0.0
    for count in range(41):
        low, high = wilson_interval(count / 40, 40)
        if low <= share <= high:
            coverage += math.comb(40, count) * share**count * (1 - share) ** (40 - count)
    assert coverage >= 0.93


def test_sixty_of_sixty_is_not_certain() -> None:
    logits, targets = _hits([True] * 60)
    found = confidence_intervals(logits, targets, CONFIG, num_resamples=10)
    for name in ("top1", "mean_class_accuracy"):
        assert found[name] == pytest.approx((0.94, 1.0), abs=0.001)
    config = TemporalConfig(feature_dim=12, num_classes=2, task="multi-label")
    labels = torch.nn.functional.one_hot(targets, 2).float()
    found = confidence_intervals(10 * labels - 5, labels, config, num_resamples=10)
    assert found["f1"] == found["mean_average_precision"] == pytest.approx((0.94, 1.0), abs=0.001)


def test_intervals_over_recordings_cover_them() -> None:
    """Ten videos of each of thirty recordings, all right or all wrong: thirty facts, not 300."""
    generator = np.random.default_rng(0)
    covered, widths = [], []
    groups = [str(number // 10) for number in range(300)]
    for _ in range(200):
        is_right = np.repeat(generator.random(30) < 0.8, 10).tolist()
        logits, targets = _hits(is_right)
        found = confidence_intervals(logits, targets, CONFIG, num_resamples=1, groups=groups)
        low, high = found["top1"]
        covered.append(low <= 0.8 <= high)
        widths.append(high - low)
    assert np.mean(covered) >= 0.92
    alone = confidence_intervals(logits, targets, CONFIG, num_resamples=1)["top1"]
    assert np.mean(widths) > 2.5 * (alone[1] - alone[0])


def test_a_comparison_counts_what_only_one_model_gets_right() -> None:
    first, targets = _hits([True] * 30 + [False] * 10)
    second, _ = _hits([True] * 28 + [False] * 2 + [True] * 10)
    found = compare(first, second, targets, CONFIG, num_resamples=200)
    assert (found.metric, found.first, found.second) == ("top1", 0.75, 0.95)
    assert (found.only_first, found.only_second) == (2, 10)
    assert found.p_value == pytest.approx(mcnemar(2, 10)) == pytest.approx(158 / 4096)
    assert 0 < found.interval[0] < 0.2 < found.interval[1]
    same = compare(first, first, targets, CONFIG, num_resamples=10)
    assert (same.interval, same.p_value) == ((0.0, 0.0), 1.0)


def test_a_comparison_of_regressions_has_an_interval_only() -> None:
    logits, targets, config = _random_videos("regression", 80)
    found = compare(logits, logits + 5, targets, config, num_resamples=50)
    assert found.metric == "rmse"
    assert found.interval[0] > 1
    assert found.p_value is None
