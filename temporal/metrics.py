"""What a model's predictions are worth, for each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .choices import Task
from .config import TemporalConfig
from .figures import average_precisions, figures_over


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many videos the figures speak of: a split's, those with features, those without, partial
    ones, and partial ones that were left out.
    """

    expected: int
    scored: int
    missing: int
    partial: int
    dropped: int


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
    over = figures_over(logits, targets, config)
    figures: dict[str, Any] = {
        name: float(value) for name, value in over(np.arange(len(logits))).items()
    }
    if config.task == "classification":
        confusion = _confusion(logits, targets)
        return ClassificationMetrics(
            **figures,
            per_class={
                name: float(row[k] / row.sum()) if row.any() else None
                for k, (name, row) in enumerate(zip(class_names, confusion, strict=True))
            },
            confusion=confusion.tolist(),
        )
    if config.task == "multi-label":
        precisions = average_precisions(logits, targets)
        return MultiLabelMetrics(
            **figures, per_class=dict(zip(class_names, precisions, strict=True))
        )
    if np.isnan(figures["r2"]):
        figures["r2"] = None
    return RegressionMetrics(**figures)


def _confusion(logits: Tensor, labels: Tensor) -> npt.NDArray[np.int64]:
    """[C, C] counts of class i predicted as class j."""
    num_classes = logits.shape[1]
    pairs = (labels * num_classes + logits.argmax(1)).numpy()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
