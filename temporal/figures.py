"""Each task's figures over any of the videos that were scored: over all, or over some drawn again.

They are sums of numpy's: torchmetrics takes seconds to import, in which most trainings of stage two
would be half done, and has no way to draw the videos a thousand times. The tests hold them to it.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .config import TemporalConfig
from .tasks import is_decided, task_losses

Index = npt.NDArray[np.int64]


def figures_over(
    logits: Tensor, targets: Tensor, config: TemporalConfig
) -> Callable[[Index], dict[str, float]]:
    """What gives the figures over an index [n] of the videos, by their names, the most important
    first; NaN for one that is undefined.

    Args:
        logits: [N, C], one row a video.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        config: of the model.
    """
    return {
        "classification": _classification,
        "multi-label": _multi_label,
        "regression": _regression,
    }[config.task](logits, targets, config)


def average_precisions(logits: Tensor, targets: Tensor) -> list[float | None]:
    """Of each class [C]; None for one that does not occur.

    Args:
        logits: [N, C], one row a video.
        targets: [N, C], 1 for each label of the video.
    """
    found = _precisions_over(logits, targets)(np.arange(len(logits)))
    return [None if np.isnan(one) else float(one) for one in found]


def _precisions_over(logits: Tensor, targets: Tensor) -> Callable[[Index], npt.NDArray[np.float64]]:
    """What gives each class's average precision [C] over an index [n] of the videos; NaN for a
    class that does not occur among them.

    It is the mean, over the videos of the class, of the precision of all that are as sure or surer.
    """
    order = (-logits).argsort(dim=0, stable=True).T.numpy()  # [C, N], the surest first
    falling = -np.take_along_axis(logits.T.numpy(), order, 1)
    is_label = np.take_along_axis(targets.T.numpy() > 0, order, 1)
    # Of each place, the last one that is as sure.
    ends = np.array([np.searchsorted(row, row, side="right") - 1 for row in falling])

    def precisions(index: Index) -> npt.NDArray[np.float64]:
        drawn = np.bincount(index, minlength=len(logits))[order]  # [C, N] how often
        hits = drawn * is_label
        down_to_each = hits.cumsum(1) / np.maximum(1, drawn.cumsum(1))
        of_hits = hits * np.take_along_axis(down_to_each, ends, 1)
        with np.errstate(invalid="ignore"):  # of a class that does not occur
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

    def figures(index: Index) -> dict[str, float]:
        drawn = classes[index]
        counts = np.bincount(drawn, minlength=num_classes)
        hits = np.bincount(drawn, weights=top1[index], minlength=num_classes)
        return {
            "top1": top1[index].mean(),
            "top5": top5[index].mean(),
            "mean_class_accuracy": (hits[counts > 0] / counts[counts > 0]).mean(),
            "loss": losses[index].mean(),
        }

    return figures


def _multi_label(
    logits: Tensor, targets: Tensor, config: TemporalConfig
) -> Callable[[Index], dict[str, float]]:
    precisions = _precisions_over(logits, targets)
    decided, is_label = is_decided(logits), targets > 0
    hits = (decided & is_label).sum(1).numpy()
    either = (decided.sum(1) + is_label.sum(1)).numpy()
    losses = task_losses(logits, targets, config).double().numpy()

    def figures(index: Index) -> dict[str, float]:
        found = precisions(index)
        occurs = ~np.isnan(found)
        return {
            "mean_average_precision": found[occurs].sum() / max(1, occurs.sum()),
            "f1": 2 * hits[index].sum() / max(1, either[index].sum()),
            "loss": losses[index].mean(),
        }

    return figures


def _regression(
    logits: Tensor, targets: Tensor, config: TemporalConfig
) -> Callable[[Index], dict[str, float]]:
    errors = (logits[:, 0] - targets).double().numpy()
    centred = (targets - targets.mean()).double().numpy()
    losses = task_losses(logits, targets, config).double().numpy()

    def figures(index: Index) -> dict[str, float]:
        squared, spread = (errors[index] ** 2).mean(), centred[index].var()
        return {
            "rmse": squared**0.5,
            "mae": np.abs(errors[index]).mean(),
            "r2": 1 - squared / spread if spread > 0 else np.nan,
            "loss": losses[index].mean(),
        }

    return figures
