"""What a model's predictions are worth: accuracies, per class too, and the confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many videos the figures speak of: a split's, those with features, those without, partial
    ones.
    """

    expected: int
    scored: int
    missing: int
    partial: int


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics:
    """Figures over videos, in [0, 1]; `confusion[i][j]` counts class i predicted as class j."""

    top1: float
    top5: float
    mean_class_accuracy: float  # over classes that occur
    loss: float
    per_class: dict[str, float | None]  # None for a class that does not occur
    confusion: list[list[int]]


def classification_metrics(
    logits: Tensor, labels: Tensor, class_names: Sequence[str]
) -> ClassificationMetrics:
    """Computes the figures of a split.

    Args:
        logits: [N, C], one row a video.
        labels: [N] class indices.
        class_names: [C].
    """
    num_videos, num_classes = logits.shape
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.long)
    if num_classes > 1:
        confusion = multiclass_confusion_matrix(logits.argmax(1), labels, num_classes)
    else:
        confusion[0, 0] = num_videos
    occurring = confusion.sum(1)
    recall = confusion.diagonal() / occurring.clamp(min=1)
    return ClassificationMetrics(
        top1=float((logits.argmax(1) == labels).double().mean()),
        top5=_top_k(logits, labels, 5),
        mean_class_accuracy=float(recall[occurring > 0].mean()),
        loss=float(torch.nn.functional.cross_entropy(logits, labels)),
        per_class={
            name: float(value) if count else None
            for name, value, count in zip(class_names, recall, occurring, strict=True)
        },
        confusion=confusion.tolist(),
    )


def _top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Share of videos whose label is among the k best; 1 where there are no more than k classes."""
    num_classes = logits.shape[1]
    if num_classes <= k:
        return 1.0
    return float(multiclass_accuracy(logits, labels, num_classes, average="micro", top_k=k))
