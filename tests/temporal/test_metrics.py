"""Metrics against counts by hand and torchmetrics."""

import numpy as np
import pytest
import torch
from torch import Tensor
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.metrics import (
    ClassificationMetrics,
    MultiLabelMetrics,
    RegressionMetrics,
    average_precisions,
    metrics_over,
    task_metrics,
)

NAMES = [f"c{k}" for k in range(7)]
ONE = TemporalConfig(feature_dim=12, num_classes=1, task="multi-label")


def _classified(logits: Tensor, labels: Tensor, names: list[str]) -> ClassificationMetrics:
    config = TemporalConfig(feature_dim=12, num_classes=len(names))
    metrics = task_metrics(logits, labels, names, config)
    assert isinstance(metrics, ClassificationMetrics)
    return metrics


def test_classification_metrics_against_counts_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 3, 2])
    logits = torch.nn.functional.one_hot(predicted, 7).float() * 5
    logits[4, 6] = 4.0
    logits[2, 0] = 4.0
    metrics = _classified(logits, labels, NAMES)
    assert metrics.top1 == pytest.approx(4 / 6)
    assert metrics.mean_class_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics.per_class["c0"] == pytest.approx(2 / 3)
    assert metrics.per_class["c6"] is None
    assert metrics.confusion[0] == [2, 1, 0, 0, 0, 0, 0]
    assert metrics.confusion[1] == [0, 1, 0, 1, 0, 0, 0]
    assert sum(map(sum, metrics.confusion)) == 6
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert metrics.loss == pytest.approx(float(expected))


def test_top5_counts_the_five_largest_logits() -> None:
    logits = torch.arange(7.0).repeat(7, 1)  # the five largest are always 2..6
    metrics = _classified(logits, torch.arange(7), NAMES)
    assert metrics.top5 == pytest.approx(5 / 7)
    assert metrics.top1 == pytest.approx(1 / 7)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_top5_with_few_classes(num_classes: int) -> None:
    logits = torch.eye(num_classes)
    metrics = _classified(logits, torch.arange(num_classes), NAMES[:num_classes])
    assert metrics.top1 == metrics.top5 == 1.0


def test_multi_label_metrics_against_counts_by_hand() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=3, task="multi-label")
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
    # Class a ranks 1, 0, 2, 3: precisions 1/2 at its row 0 and 2/3 at row 2.
    logits = torch.tensor([[2.0, -1, -5], [3, 4, -5], [1, 3, 5], [-1, -2, -5]])
    metrics = task_metrics(logits, targets, ["a", "b", "c"], config)
    assert isinstance(metrics, MultiLabelMetrics)
    assert metrics.per_class["a"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.per_class["b"] == pytest.approx(1)
    assert metrics.per_class["c"] is None
    assert metrics.mean_average_precision == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1) / 2)
    assert metrics.f1 == pytest.approx(2 * 4 / (2 * 4 + 2 + 0))  # 4 right, 2 wrong, none missed
    one = task_metrics(logits[:, :1], targets[:, :1], ["a"], ONE)
    assert isinstance(one, MultiLabelMetrics)
    assert one.mean_average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)
    sure = task_metrics(
        torch.tensor([[30.0], [25], [20]]), torch.tensor([[1.0], [0], [0]]), ["a"], ONE
    )
    assert isinstance(sure, MultiLabelMetrics)
    assert sure.mean_average_precision == 1.0
    edge = task_metrics(torch.tensor([[0.0], [-0.1]]), torch.ones(2, 1), ["a"], ONE)
    assert isinstance(edge, MultiLabelMetrics)
    assert edge.f1 == pytest.approx(2 / 3)  # a probability of 0.5 is a positive decision
    none = task_metrics(logits, targets * 0, ["a", "b", "c"], config)
    assert none.mean_average_precision == none.f1 == 0.0  # type: ignore[union-attr]


def test_regression_metrics_against_counts_by_hand() -> None:
    config = TemporalConfig(feature_dim=12, num_classes=1, task="regression", target_std=2.0)
    targets = torch.tensor([1.0, 2.0, 6.0])
    metrics = task_metrics(torch.tensor([[2.0], [2.0], [4.0]]), targets, [], config)
    assert isinstance(metrics, RegressionMetrics)
    assert metrics.mae == pytest.approx(1.0)
    assert metrics.rmse == pytest.approx((5 / 3) ** 0.5)
    assert metrics.r2 == pytest.approx(1 - 5 / 14)
    assert metrics.loss == pytest.approx(5 / 3 / 4)
    far = task_metrics(
        torch.tensor([[2.0], [2], [4]]).double() + 1e6, targets.double() + 1e6, [], config
    )
    assert isinstance(far, RegressionMetrics)
    assert far.r2 == pytest.approx(1 - 5 / 14)
    same = task_metrics(torch.tensor([[2.0], [4.0]]), torch.tensor([3.0, 3.0]), [], config)
    assert isinstance(same, RegressionMetrics)
    assert same.r2 is None


def test_multi_label_metrics_equal_torchmetrics() -> None:
    """With many equal logits, and with videos that occur several times or never."""
    from torchmetrics.functional import classification as reference

    generator = torch.Generator().manual_seed(4)
    config = TemporalConfig(feature_dim=12, num_classes=5, task="multi-label")
    logits = torch.randn(80, 5, generator=generator).mul(2).round()
    targets = (torch.rand(80, 5, generator=generator) < 0.3).float()
    targets[:, 4] = 0
    over = metrics_over(logits, targets, config)
    for index in (np.arange(80), np.random.default_rng(0).integers(80, size=80)):
        drawn, labels = logits[index].double().sigmoid(), targets[index].long()
        each = [
            float(reference.binary_average_precision(drawn[:, k], labels[:, k])) for k in range(4)
        ]
        found = over(index)
        assert found["mean_average_precision"] == pytest.approx(sum(each) / 4, abs=1e-6)
        decided = (drawn >= 0.5).long()
        f1 = reference.binary_f1_score(decided.flatten(), labels.flatten())
        assert found["f1"] == pytest.approx(float(f1), abs=1e-6)
    assert average_precisions(logits, targets)[4] is None


def test_classification_and_regression_metrics_equal_torchmetrics() -> None:
    from torchmetrics import functional as reference

    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(200, 7, generator=generator)
    labels = (logits + 2 * torch.randn(200, 7, generator=generator)).argmax(1)
    found = _classified(logits, labels, NAMES)
    options = {"task": "multiclass", "num_classes": 7}
    for k, value in ((1, found.top1), (5, found.top5)):
        accuracy = reference.accuracy(logits, labels, average="micro", top_k=k, **options)
        assert value == pytest.approx(float(accuracy))
    macro = reference.accuracy(logits, labels, average="macro", **options)
    assert found.mean_class_accuracy == pytest.approx(float(macro))
    confusion = reference.confusion_matrix(logits, labels, **options)
    assert found.confusion == confusion.tolist()

    config = TemporalConfig(
        feature_dim=12, num_classes=1, task="regression", target_mean=1e4, target_std=2.0
    )
    values = 1e4 + logits[:, :1].double()
    targets = values[:, 0] + logits[:, 1].double()
    metrics = task_metrics(values, targets, [], config)
    assert isinstance(metrics, RegressionMetrics)
    error = reference.mean_squared_error(values[:, 0], targets, squared=False)
    assert metrics.rmse == pytest.approx(float(error))
    assert metrics.mae == pytest.approx(float((values[:, 0] - targets).abs().mean()))
    centered = (values[:, 0] - targets.mean(), targets - targets.mean())
    assert metrics.r2 == pytest.approx(float(reference.r2_score(*centered)))
