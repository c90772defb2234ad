"""Metrics of each task, over the scored videos or over resamples of them.

Metrics are numpy sums: torchmetrics takes seconds to import, about half the time of most trainings
on stored features, and cannot resample the videos a thousand times. The tests compare them with
torchmetrics.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .config import TaskType, TemporalConfig
from .tasks import is_decided, task_losses

Index = npt.NDArray[np.int64]  # [n] numbers of videos; a video may occur several times


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of videos behind the metrics of a split.

    Attributes:
        expected: all videos of the split.
        scored: videos with features, or frames, that were scored.
        missing: videos without features, or frames.
        partial: partial videos that were scored.
        dropped: partial videos that were left out.
    """

    expected: int
    scored: int
    missing: int
    partial: int
    dropped: int


class _Metrics:
    """Base of the metrics of all tasks: metrics[name] is the value of one of `names`."""

    names: ClassVar[tuple[str, ...]]
    is_better_lower: ClassVar[bool] = False

    def __getitem__(self, name: str) -> float | None:
        found: float | None = getattr(self, name)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return all values by name."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True, kw_only=True)
class ClassificationMetrics(_Metrics):
    """Metrics of a classification, over videos; all but the loss are in [0, 1].

    Attributes:
        names: names of the metrics, the decisive one first.
        is_better_lower: whether a lower value of the decisive metric is better.
        top1: share of videos whose most probable class is the right one.
        top5: share of videos whose right class is among the five most probable ones.
        mean_class_accuracy: mean of the per-class accuracies of the classes that occur.
        loss: mean loss.
        per_class: class → accuracy; None for a class that does not occur.
        confusion: [C][C]; `confusion[i][j]` counts videos of class i predicted as class j.
    """

    names = ("top1", "top5", "mean_class_accuracy", "loss")

    top1: float
    top5: float
    mean_class_accuracy: float
    loss: float
    per_class: dict[str, float | None]
    confusion: list[list[int]]


@dataclass(frozen=True, kw_only=True)
class MultiLabelMetrics(_Metrics):
    """Metrics of a multi-label classification, over videos and classes; in [0, 1] but for the loss.

    Attributes:
        names: names of the metrics, the decisive one first.
        is_better_lower: whether a lower value of the decisive metric is better.
        mean_average_precision: mean over the classes that occur; 0 if none does.
        f1: F1 score over the decisions of all classes together; a class is predicted if its
            probability is at least 0.5.
        loss: mean loss.
        per_class: class → average precision; None for a class that does not occur.
    """

    names = ("mean_average_precision", "f1", "loss")

    mean_average_precision: float
    f1: float
    loss: float
    per_class: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class RegressionMetrics(_Metrics):
    """Metrics of a regression, over videos.

    Attributes:
        names: names of the metrics, the decisive one first.
        is_better_lower: whether a lower value of the decisive metric is better.
        rmse: root mean squared error, in the unit of the labels.
        mae: mean absolute error, in the unit of the labels.
        r2: coefficient of determination; None if all labels are the same.
        loss: mean loss.
    """

    names = ("rmse", "mae", "r2", "loss")
    is_better_lower = True

    rmse: float
    mae: float
    r2: float | None
    loss: float


# Overlaps, in percent, from which on a predicted segment counts as found (F1, average precision).
F1_OVERLAPS = (10, 25, 50)
MAP_OVERLAPS = (30, 40, 50, 60, 70)
_OF_SEGMENTS = (
    *(f"f1@{overlap}" for overlap in F1_OVERLAPS),
    "map",
    *(f"map@{overlap}" for overlap in MAP_OVERLAPS),
    "loss",
)


@dataclass(frozen=True, kw_only=True)
class FrameMetrics(_Metrics):
    """Metrics of segmented videos, over frames or segments; all but the loss are in [0, 1].

    See `temporal/segment_metrics.py` for their definitions.

    Attributes:
        names: names of the metrics of the task `frames`, the decisive one first.
        values: value of each metric by name; None if it is undefined.
        per_class: class → share of its frames that are predicted rightly; None for a class that
            does not occur.
        segments: class → number of true segments, of predicted ones, and of those that match at an
            overlap of 50%.
        confusion: [C][C]; `confusion[i][j]` counts frames of class i predicted as class j.
    """

    names = (
        *("frame_accuracy", "frame_accuracy_without_background", "edit"),
        *_OF_SEGMENTS,
    )

    values: dict[str, float | None]
    per_class: dict[str, float | None]
    segments: dict[str, tuple[int, int, int]]
    confusion: list[list[int]] | None = None

    def __getitem__(self, name: str) -> float | None:
        return self.values[name]

    def to_json(self) -> dict[str, Any]:
        """Return all values by name."""
        found = asdict(self)
        return {**found.pop("values"), **found}


@dataclass(frozen=True, kw_only=True)
class FrameMultiLabelMetrics(FrameMetrics):
    """Metrics of the task `frames-multi-label`; `per_class` has average precisions over frames."""

    names = ("frame_mean_average_precision", *_OF_SEGMENTS)


Metrics = ClassificationMetrics | MultiLabelMetrics | RegressionMetrics | FrameMetrics
METRICS: dict[TaskType, type[Metrics]] = {
    "classification": ClassificationMetrics,
    "multi-label": MultiLabelMetrics,
    "regression": RegressionMetrics,
    "frames": FrameMetrics,
    "frames-multi-label": FrameMultiLabelMetrics,
}


def shown_names(task: TaskType, num_classes: int) -> tuple[str, ...]:
    """Return the names of the metrics worth showing, see `is_shown`.

    >>> shown_names("classification", 2)
    ('top1', 'mean_class_accuracy', 'loss')
    """
    names: tuple[str, ...] = METRICS[task].names
    return tuple(name for name in names if is_shown(name, num_classes))


def is_shown(name: str, num_classes: int) -> bool:
    """Return whether a metric is worth showing.

    Top-5 is always 1 for up to five classes, and `map` is the mean of those at each overlap.
    """
    return not name.startswith("map@") and (name != "top5" or num_classes > 5)


def task_metrics(
    logits: Tensor, targets: Tensor, class_names: Sequence[str], config: TemporalConfig
) -> Metrics:
    """Compute the metrics of a split.

    Args:
        logits: [N, C], one row per video.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        class_names: [C], in the order of the logits.
        config: configuration of the temporal model.
    """
    over = metrics_over(logits, targets, config)
    metrics: dict[str, Any] = {
        name: float(value) for name, value in over(np.arange(len(logits))).items()
    }
    if config.task == "classification":
        confusion = _confusion(logits, targets)
        return ClassificationMetrics(
            **metrics,
            per_class={
                name: float(row[k] / row.sum()) if row.any() else None
                for k, (name, row) in enumerate(zip(class_names, confusion, strict=True))
            },
            confusion=confusion.tolist(),
        )
    if config.task == "multi-label":
        precisions = average_precisions(logits, targets)
        return MultiLabelMetrics(
            **metrics, per_class=dict(zip(class_names, precisions, strict=True))
        )
    if np.isnan(metrics["r2"]):
        metrics["r2"] = None
    return RegressionMetrics(**metrics)


def _confusion(logits: Tensor, labels: Tensor) -> npt.NDArray[np.int64]:
    """Return the confusion matrix, [C, C]: counts of class i predicted as class j."""
    num_classes = logits.shape[1]
    pairs = (labels * num_classes + logits.argmax(1)).numpy()
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def metrics_over(
    logits: Tensor, targets: Tensor, config: TemporalConfig
) -> Callable[[Index], dict[str, float]]:
    """Return a function that computes the metrics over any of the videos.

    Args:
        logits: [N, C], one row per video.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        config: configuration of the temporal model.

    Returns:
        A function of the numbers [n] of videos that returns the metrics by name, the decisive one
        first; NaN for an undefined metric.
    """
    return {
        "classification": _classification,
        "multi-label": _multi_label,
        "regression": _regression,
    }[config.task](logits, targets, config)


def average_precisions(logits: Tensor, targets: Tensor) -> list[float | None]:
    """Return the average precision of each class, [C]; None for a class that does not occur.

    Args:
        logits: [N, C], one row per video.
        targets: [N, C], 1 for each class of the video, else 0.
    """
    found = precisions_over(logits, targets)(np.arange(len(logits)))
    return [None if np.isnan(one) else float(one) for one in found]


def precisions_over(logits: Tensor, targets: Tensor) -> Callable[[Index], npt.NDArray[np.float64]]:
    """Return a function that computes the average precision of each class over any of the videos.

    The average precision is the mean, over the videos of the class, of the precision among all
    videos with at least the same logit.

    Args:
        logits: [N, C], one row per video.
        targets: [N, C], 1 for each class of the video, else 0.

    Returns:
        A function of the numbers [n] of videos that returns the average precisions, [C]; NaN for a
        class that does not occur among these videos.
    """
    order = (-logits).argsort(dim=0, stable=True).T.numpy()  # [C, N], largest logit first
    falling = -np.take_along_axis(logits.T.numpy(), order, 1)
    is_label = np.take_along_axis(targets.T.numpy() > 0, order, 1)
    # For each place in the order, the last place with the same logit.
    ends = np.array([np.searchsorted(row, row, side="right") - 1 for row in falling])

    def precisions(index: Index) -> npt.NDArray[np.float64]:
        drawn = np.bincount(index, minlength=len(logits))[order]  # [C, N], times each video occurs
        hits = drawn * is_label
        down_to_each = hits.cumsum(1) / np.maximum(1, drawn.cumsum(1))
        of_hits = hits * np.take_along_axis(down_to_each, ends, 1)
        with np.errstate(invalid="ignore"):  # 0 / 0 for a class that does not occur
            return np.asarray(of_hits.sum(1) / hits.sum(1))

    return precisions


def _classification(
    logits: Tensor, labels: Tensor, config: TemporalConfig
) -> Callable[[Index], dict[str, float]]:
    num_classes = config.num_classes
    best = logits.topk(min(5, num_classes), dim=1).indices
    top5 = (best == labels[:, None]).any(1).numpy()
    top1 = (logits.argmax(1) == labels).numpy()
    losses = task_losses(logits, labels, config).double().numpy()
    classes = labels.numpy()

    def metrics(index: Index) -> dict[str, float]:
        drawn = classes[index]
        counts = np.bincount(drawn, minlength=num_classes)
        hits = np.bincount(drawn, weights=top1[index], minlength=num_classes)
        return {
            "top1": top1[index].mean(),
            "top5": top5[index].mean(),
            "mean_class_accuracy": (hits[counts > 0] / counts[counts > 0]).mean(),
            "loss": losses[index].mean(),
        }

    return metrics


def _multi_label(
    logits: Tensor, targets: Tensor, config: TemporalConfig
) -> Callable[[Index], dict[str, float]]:
    precisions = precisions_over(logits, targets)
    decided, is_label = is_decided(logits), targets > 0
    hits = (decided & is_label).sum(1).numpy()
    either = (decided.sum(1) + is_label.sum(1)).numpy()
    losses = task_losses(logits, targets, config).double().numpy()

    def metrics(index: Index) -> dict[str, float]:
        found = precisions(index)
        occurs = ~np.isnan(found)
        return {
            "mean_average_precision": found[occurs].sum() / max(1, occurs.sum()),
            "f1": 2 * hits[index].sum() / max(1, either[index].sum()),
            "loss": losses[index].mean(),
        }

    return metrics


def _regression(
    logits: Tensor, targets: Tensor, config: TemporalConfig
) -> Callable[[Index], dict[str, float]]:
    errors = (logits[:, 0] - targets).double().numpy()
    centered = (targets - targets.mean()).double().numpy()
    losses = task_losses(logits, targets, config).double().numpy()

    def metrics(index: Index) -> dict[str, float]:
        squared, spread = (errors[index] ** 2).mean(), centered[index].var()
        return {
            "rmse": squared**0.5,
            "mae": np.abs(errors[index]).mean(),
            "r2": 1 - squared / spread if spread > 0 else np.nan,
            "loss": losses[index].mean(),
        }

    return metrics
