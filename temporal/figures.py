"""Each task's figures over any of the videos that were scored: over all, or over some drawn again.

Classification and regression are numpy's own sums: torchmetrics takes seconds to import, in which
most trainings of stage two would be half done. The tests hold them to torchmetrics.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
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
    from torchmetrics.functional.classification import binary_average_precision

    # In float32, sure ones would be equal.
    probabilities, is_label = logits.double().sigmoid(), targets.long()
    return [
        float(binary_average_precision(probabilities[:, k], is_label[:, k]))
        if is_label[:, k].any()
        else None
        for k in range(logits.shape[1])
    ]


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
    from torchmetrics.functional.classification import binary_f1_score

    decided, is_label = is_decided(logits).long(), targets.long()
    losses = task_losses(logits, targets, config).double()

    def figures(index: Index) -> dict[str, float]:
        drawn = torch.from_numpy(index)
        found = average_precisions(logits[drawn], targets[drawn])
        precisions = [precision for precision in found if precision is not None]
        return {
            "mean_average_precision": sum(precisions) / max(1, len(precisions)),
            "f1": float(binary_f1_score(decided[drawn].flatten(), is_label[drawn].flatten())),
            "loss": float(losses[drawn].mean()),
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
