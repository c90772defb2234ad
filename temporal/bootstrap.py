"""How sure a figure is: percentile intervals over videos drawn again with replacement (B. Efron,
The Annals of Statistics 7(1), 1979).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision, binary_f1_score

from .config import TemporalConfig
from .tasks import is_decided, task_losses

SHARE = 0.95

Index = npt.NDArray[np.int64]


def intervals(
    logits: Tensor, targets: Tensor, config: TemporalConfig, *, num_resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """The interval in which 95% of the resamples' figures lie, by the figure's name; none for a
    figure that is undefined in all of them.

    Args:
        logits: [N, C], one row a video.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        config: of the model.
        num_resamples: of N videos each; 0 for no intervals.
        seed: of the draws.
    """
    figures = {
        "classification": _classification,
        "multi-label": _multi_label,
        "regression": _regression,
    }[config.task](logits, targets, config)
    generator = np.random.default_rng(seed)
    num_videos = len(logits)
    found: dict[str, list[float]] = {}
    for _ in range(num_resamples):
        for name, value in figures(generator.integers(num_videos, size=num_videos)).items():
            found.setdefault(name, []).append(value)
    ends = (100 * (1 - SHARE) / 2, 100 * (1 + SHARE) / 2)
    quantiles = {
        name: np.nanpercentile(values, ends)
        for name, values in found.items()
        if np.isfinite(values).any()
    }
    return {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}


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
    probabilities, is_label = logits.double().sigmoid(), targets.long()
    decided = is_decided(logits).long()
    losses = task_losses(logits, targets, config).double()

    def figures(index: Index) -> dict[str, float]:
        drawn = torch.from_numpy(index)
        occurring = is_label[drawn].any(0)
        shares, truth = probabilities[drawn][:, occurring], is_label[drawn][:, occurring]
        precisions = [
            float(binary_average_precision(shares[:, k], truth[:, k]))
            for k in range(shares.shape[1])
        ]
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
