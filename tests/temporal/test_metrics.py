"""Figures against counts made by hand."""

import pytest
import torch
from vtnpipe.temporal.metrics import classification_metrics

NAMES = [f"c{k}" for k in range(7)]


def test_against_counts_made_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 0, 1, 1, 3, 2])
    logits = torch.nn.functional.one_hot(predicted, 7).float() * 5
    logits[4, 6] = 4.0
    logits[2, 0] = 4.0
    metrics = classification_metrics(logits, labels, NAMES)
    assert metrics.top1 == pytest.approx(4 / 6)
    assert metrics.mean_class_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert metrics.per_class["c0"] == pytest.approx(2 / 3)
    assert metrics.per_class["c6"] is None
    assert metrics.confusion[0] == [2, 1, 0, 0, 0, 0, 0]
    assert metrics.confusion[1] == [0, 1, 0, 1, 0, 0, 0]
    assert sum(map(sum, metrics.confusion)) == 6
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert metrics.loss == pytest.approx(float(expected))


def test_top5_counts_the_five_best() -> None:
    logits = torch.arange(7.0).repeat(7, 1)  # the five best are always 2..6
    metrics = classification_metrics(logits, torch.arange(7), NAMES)
    assert metrics.top5 == pytest.approx(5 / 7)
    assert metrics.top1 == pytest.approx(1 / 7)


@pytest.mark.parametrize("num_classes", [1, 2, 5])
def test_few_classes(num_classes: int) -> None:
    logits = torch.eye(num_classes)
    metrics = classification_metrics(logits, torch.arange(num_classes), NAMES[:num_classes])
    assert metrics.top1 == metrics.top5 == 1.0
