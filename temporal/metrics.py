"""What a model's predictions are worth, for each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics.functional import mean_absolute_error, mean_squared_error, r2_score
from torchmetrics.functional.classification import (
    binary_average_precision,
    binary_f1_score,
    multiclass_accuracy,
    multiclass_confusion_matrix,
)

from .choices import Task
from .config import TemporalConfig
from .tasks import is_decided, task_loss


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

    figures: ClassVar = ("top1", "top5", "mean_class_accuracy", "loss")  # the first decides
    is_better_lower: ClassVar = False

    top1: float
    top5: float
    mean_class_accuracy: float  # over classes that occur
    loss: float
    per_class: dict[str, float | None]  # None for a class that does not occur
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics:
    """Figures over videos and classes, in [0, 1]."""

    figures: ClassVar = ("mean_average_precision", "f1", "loss")
    is_better_lower: ClassVar = False

    mean_average_precision: float  # over classes that occur; 0 where none does
    f1: float  # over all classes' decisions together, a class being predicted from 0.5 on
    loss: float
    per_class: dict[str, float | None]  # average precision; None for a class that does not occur


@dataclass(frozen=True, kw_only=True)
class RegressionMetrics:
    """Figures over videos, in the labels' unit."""

    figures: ClassVar = ("rmse", "mae", "r2", "loss")
    is_better_lower: ClassVar = True

    rmse: float
    mae: float
    r2: float | None  # None where the labels are all the same
    loss: float


Metrics = ClassificationMetrics | MultiLabelMetrics | RegressionMetrics
METRICS: dict[Task, type[Metrics]] = {
    "classification": ClassificationMetrics,
    "multi-label": MultiLabelMetrics,
    "regression": RegressionMetrics,
}


def task_metrics(
    logits: Tensor, targets: Tensor, class_names: Sequence[str], config: TemporalConfig
) -> Metrics:
    """Computes the figures of a split.

    Args:
        logits: [N, C], one row a video.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        class_names: [C].
        config: of the model.
    """
    loss = float(task_loss(logits, targets, config))
    if config.task == "classification":
        return _classification(logits, targets, class_names, loss)
    if config.task == "multi-label":
        return _multi_label(logits, targets, class_names, loss)
    return _regression(logits[:, 0], targets, loss)


def _classification(
    logits: Tensor, labels: Tensor, class_names: Sequence[str], loss: float
) -> ClassificationMetrics:
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
        loss=loss,
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


def _multi_label(
    logits: Tensor, targets: Tensor, class_names: Sequence[str], loss: float
) -> MultiLabelMetrics:
    is_label = targets.long()
    probabilities = logits.double().sigmoid()  # in float32, sure ones would be equal
    per_class = {
        name: float(binary_average_precision(probabilities[:, k], is_label[:, k]))
        if is_label[:, k].any()
        else None
        for k, name in enumerate(class_names)
    }
    occurring = [precision for precision in per_class.values() if precision is not None]
    return MultiLabelMetrics(
        mean_average_precision=sum(occurring) / max(1, len(occurring)),
        f1=float(binary_f1_score(is_decided(logits).long().flatten(), is_label.flatten())),
        loss=loss,
        per_class=per_class,
    )


def _regression(values: Tensor, targets: Tensor, loss: float) -> RegressionMetrics:
    values, targets = values.double(), targets.double()
    mean = targets.mean()
    is_constant = bool((targets == targets[0]).all())
    return RegressionMetrics(
        rmse=float(mean_squared_error(values, targets, squared=False)),
        mae=float(mean_absolute_error(values, targets)),
        # Of differences from the mean: as it is, r2_score loses the digits of labels far from 0.
        r2=None if is_constant else float(r2_score(values - mean, targets - mean)),
        loss=loss,
    )
