"""What a label means: for each task, its classes, its targets and its loss.

- classification: one class a video. Targets [N] int64, logits [N, C]; cross entropy.
- multi-label: `a|b`, any number of classes. Targets [N, C] float32 of 0 and 1, logits [N, C]; the
  binary cross entropy of each class.
- regression: a number. Targets [N] and output [N, 1], float64, in the labels' unit; the squared
  error, in units of the training labels' variance.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..manifests.errors import ManifestError
from ..manifests.manifest import VideoRow
from .choices import Task
from .config import TemporalConfig


def label_names(row: VideoRow, task: Task) -> list[str]:
    """The classes that a row's label names.

    >>> label_names(VideoRow(video_id="v", path="v.mp4", label="b|a"), "multi-label")
    ['a', 'b']
    """
    parts = row.label.split("|") if task == "multi-label" else [row.label]
    return sorted({part.strip() if task == "multi-label" else part for part in parts} - {""})


def training_classes(
    rows: Sequence[VideoRow], usable: Sequence[VideoRow], split: str, task: Task = "classification"
) -> list[str]:
    """The class order of a training split; empty for regression.

    Raises:
        ManifestError: no row has a label, or a class has no video with features.
    """
    names = sorted({n for row in rows if row.split == split for n in label_names(row, task)})
    if not names:
        raise ManifestError(f"split {split!r}: no row has a label; add labels to the manifest")
    if task == "regression":
        return []
    counts = Counter(name for row in usable for name in label_names(row, task))
    for name in names:
        if not counts[name]:
            raise ManifestError(
                f"split {split!r}: no video of class {name!r} can be used, so it can't be "
                "learned; see to its videos, or remove its rows"
            )
    return names


def read_targets(
    rows: Sequence[VideoRow], class_names: Sequence[str], task: Task = "classification"
) -> Tensor:
    """The targets of rows, one after the other; see above for shape and dtype.

    For multi-label, an empty label is a video of no class.

    Raises:
        ManifestError: a label is none of the classes, or no number; or no row has one.
    """
    if task == "regression":
        return torch.tensor([_number(row) for row in rows], dtype=torch.float64)
    order = {name: index for index, name in enumerate(class_names)}
    if task == "classification":
        return torch.tensor([_index(row, row.label, order) for row in rows])
    targets = torch.zeros(len(rows), len(class_names))
    for number, row in enumerate(rows):
        for name in label_names(row, task):
            targets[number, _index(row, name, order)] = 1.0
    if not targets.any():
        raise ManifestError(
            f"none of {len(rows)} videos of split {rows[0].split!r} has a label; add labels to the "
            "manifest"
        )
    return targets


def _index(row: VideoRow, name: str, order: dict[str, int]) -> int:
    if not name:
        raise ManifestError(
            f"video_id {row.video_id!r}: has no label; give it one, or leave its split empty"
        )
    if name not in order:
        known = ", ".join([*order][:5]) + (", …" if len(order) > 5 else "")
        raise ManifestError(
            f"video_id {row.video_id!r}: label {name!r} is none of the model's {len(order)} "
            f"classes ({known}), the labels of its training split; correct it, or add training "
            "videos of that class"
        )
    return order[name]


def _number(row: VideoRow) -> float:
    try:
        number = float(row.label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ManifestError(
            f"video_id {row.video_id!r}: label {row.label!r} is not a number, which regression "
            "needs; correct it"
        )
    return number


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOptions:
    """What training may change about the loss; evaluation's is always the plain one.

    Attributes:
        label_smoothing: share of a target that goes to all classes alike.
        class_weights: [C]: of a class's videos (classification), or of a class's presence against
            its absence (multi-label); None for all alike.
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None


PLAIN = LossOptions()


def task_losses(
    logits: Tensor, targets: Tensor, config: TemporalConfig, options: LossOptions = PLAIN
) -> Tensor:
    """The loss of each clip, [N], from what the model gives: [N, C]."""
    smoothing, weights = options.label_smoothing, options.class_weights
    if config.task == "classification":
        return F.cross_entropy(
            logits, targets, weights, label_smoothing=smoothing, reduction="none"
        )
    if config.task == "multi-label":
        smooth = targets * (1 - smoothing) + smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=weights, reduction="none"
        )
        return losses.mean(1)
    return (logits[:, 0] - targets) ** 2 / config.target_std**2


def clip_weights(targets: Tensor, config: TemporalConfig, options: LossOptions) -> Tensor:
    """What each clip counts in a mean of losses, [N]: as in torch's cross entropy, its class's
    weight.
    """
    if config.task != "classification" or options.class_weights is None:
        return torch.ones(len(targets), device=targets.device)
    return options.class_weights[targets]


def balanced_class_weights(targets: Tensor, config: TemporalConfig) -> Tensor:
    """Weights [C] that make every class of the training targets count alike.

    For classification N / (C x videos of the class), for multi-label absences / presences; a class
    without videos counts as one with a single one.

    >>> config = TemporalConfig(feature_dim=12, num_classes=2)
    >>> balanced_class_weights(torch.tensor([0, 0, 0, 1]), config).tolist()
    [0.6666666865348816, 2.0]
    """
    if config.task == "multi-label":
        present = targets.sum(0)
        return (len(targets) - present).clamp(min=1) / present.clamp(min=1)  # 0 would forget one
    counts = torch.bincount(targets, minlength=config.num_classes)
    return len(targets) / (config.num_classes * counts.clamp(min=1))


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """Each class's probability, [..., C]; of regression, nothing: [..., 0]."""
    if task == "regression":
        return logits[..., :0]
    return logits.softmax(-1) if task == "classification" else logits.sigmoid()


def log_odds(logits: Tensor, index: int, task: Task) -> Tensor:
    """How sure of one class logits [..., C] are, log(p / (1 - p)), which never saturates; of
    regression the number itself: [...].

    >>> float(log_odds(torch.tensor([40.0, 0.0]), 0, "classification"))
    40.0
    """
    if task != "classification" or logits.shape[-1] == 1:
        return logits[..., index]
    others = torch.cat([logits[..., :index], logits[..., index + 1 :]], dim=-1)
    return logits[..., index] - others.logsumexp(-1)


def decision(logits: Tensor, class_names: Sequence[str], task: Task) -> str:
    """What a clip's logits [C] say, written as a label is written.

    >>> decision(torch.tensor([0.2, 3.0, -1.0]), ["a", "b", "c"], "multi-label")
    'a|b'
    >>> decision(torch.tensor([0.25]), [], "regression")
    '0.25'
    """
    if task == "regression":
        return f"{float(logits[0]):.9g}"
    if task == "classification":
        return class_names[int(logits.argmax())]
    is_there = is_decided(logits).tolist()
    return "|".join(name for name, there in zip(class_names, is_there, strict=True) if there)


def is_decided(logits: Tensor) -> Tensor:
    """Which classes of several a video is said to have: those of probability 0.5 and more."""
    return logits >= 0
