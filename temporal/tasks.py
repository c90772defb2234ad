"""Tasks: for each task, the meaning of a label, the classes, the targets and the loss.

- classification: a label is one class. Targets [N] int64, logits [N, C]; the loss is the cross
  entropy.
- multi-label: a label is any number of classes, `a|b`. Targets [N, C] float32 of 0 and 1, logits
  [N, C]; the loss is the binary cross entropy, averaged over classes.
- frames, frames-multi-label: labels are segments. Targets [B, T] int64 or [B, T, C] int8 as in
  `temporal/frame_labels.py`, logits [B, T, C]; the loss is the mean, over the labeled frames of a
  clip, of the loss of a classification or multi-label classification.
- regression: a label is a number. Targets [N] and outputs [N, 1], float64, in the unit of the
  labels; the loss is the squared error, in units of the training labels' variance.
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
from .config import TaskType, TemporalConfig


def label_names(row: VideoRow, task: TaskType) -> list[str]:
    """Return the classes that a row's label names, sorted; none for an empty label.

    >>> label_names(VideoRow(video_id="v", path="v.mp4", label="b|a"), "multi-label")
    ['a', 'b']
    """
    parts = row.label.split("|") if task == "multi-label" else [row.label]
    return sorted({part.strip() if task == "multi-label" else part for part in parts} - {""})


def training_classes(
    rows: Sequence[VideoRow],
    usable: Sequence[VideoRow],
    split: str,
    task: TaskType = "classification",
) -> list[str]:
    """Return the classes of a training split, in the order of the logits; empty for regression.

    Args:
        rows: all rows of the manifest.
        usable: usable rows of the training split.
        split: name of the training split.
        task: task of the model.

    Raises:
        ManifestError: no row of the split has a label, or a class has no usable row.
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
                f"split {split!r}: no video of class {name!r} can be used, so the class cannot be "
                "learned; repair its videos, or remove its rows"
            )
    return names


def read_targets(
    rows: Sequence[VideoRow], class_names: Sequence[str], task: TaskType = "classification"
) -> Tensor:
    """Return the targets of rows; the module's docstring gives shape and dtype for each task.

    For multi-label, a video with an empty label belongs to no class.

    Args:
        rows: rows of one split.
        class_names: [C], in the order of the logits; ignored for regression.
        task: task of the model.

    Raises:
        ManifestError: a label is not one of the classes, or not a number; or for multi-label, no
            row has a label.
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
            f"video_id {row.video_id!r}: label {name!r} is not one of the model's {len(order)} "
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
            f"video_id {row.video_id!r}: label {row.label!r} is not a finite number, which "
            "regression needs; correct it"
        )
    return number


@dataclass(frozen=True, kw_only=True, eq=False)
class LossOptions:
    """Loss options of training; evaluation always uses the plain loss.

    Attributes:
        label_smoothing: share of a target that is spread over all classes.
        class_weights: [C] weight of a class's videos (classification), or of a class's presence
            relative to its absence (multi-label); None for equal weights.
        smoothing: for tasks on frames, weight of the truncated mean squared difference of the
            log-probabilities of neighboring frames (Y. Abu Farha and J. Gall, MS-TCN, arXiv
            1903.01945, equation 6).
    """

    label_smoothing: float = 0.0
    class_weights: Tensor | None = None
    smoothing: float = 0.0


PLAIN = LossOptions()
MAX_LOG_STEP = 4.0  # of MS-TCN's authors


def task_losses(
    logits: Tensor,
    targets: Tensor,
    config: TemporalConfig,
    options: LossOptions = PLAIN,
    mask: Tensor | None = None,
) -> Tensor:
    """Return the loss of each clip, [N].

    Args:
        logits: [N, C]; for regression [N, 1]; for tasks on frames [N, T, C].
        targets: the module's docstring gives shape and dtype for each task.
        config: configuration of the temporal model.
        options: loss options; by default, the plain loss.
        mask: [N, T] bool, True for frames, for tasks on frames; None without padding.
    """
    if config.is_per_frame:
        return _frame_losses(logits, targets, config, options, mask)
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


def _frame_losses(
    logits: Tensor,
    targets: Tensor,
    config: TemporalConfig,
    options: LossOptions,
    mask: Tensor | None,
) -> Tensor:
    """Return the mean loss of each clip's labeled frames, [N]; see `task_losses`."""
    if mask is None:
        mask = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    weights, label_smoothing = options.class_weights, options.label_smoothing
    if config.task == "frames":
        is_labeled = mask & (targets >= 0)
        losses = F.cross_entropy(
            logits.transpose(1, 2),
            targets.clamp(min=0),
            weights,
            label_smoothing=label_smoothing,
            reduction="none",
        )
        log_probs = logits.log_softmax(-1)
    else:
        is_labeled = mask & (targets[..., 0] >= 0)
        smooth = targets.clamp(min=0).float() * (1 - label_smoothing) + label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=weights, reduction="none"
        ).mean(-1)
        log_probs = F.logsigmoid(logits)
    total = _mean_where(losses, is_labeled)
    if options.smoothing:
        steps = log_probs[:, 1:] - log_probs[:, :-1].detach()
        squared = steps.clamp(-MAX_LOG_STEP, MAX_LOG_STEP).square().mean(-1)
        total = total + options.smoothing * _mean_where(squared, mask[:, 1:] & mask[:, :-1])
    return total


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    """Return the mean of values [N, T] where a mask [N, T] is True, [N]; 0 if nowhere."""
    return (values * where).sum(1) / where.sum(1).clamp(min=1)


def clip_weights(targets: Tensor, config: TemporalConfig, options: LossOptions) -> Tensor:
    """Return per-sample loss weights, [N], for a weighted mean of `task_losses`.

    As in torch's cross entropy, it is the weight of the sample's class in a classification with
    class weights, else 1.

    Args:
        targets: [N] or [N, C].
        config: configuration of the temporal model.
        options: loss options.
    """
    if config.task != "classification" or options.class_weights is None:
        return torch.ones(len(targets))
    return options.class_weights[targets]


def balanced_class_weights(targets: Tensor, config: TemporalConfig) -> Tensor:
    """Return class weights, [C], with which every class of the training targets counts alike.

    They are N / (C x videos of the class) for classification, absences / presences for multi-label.
    A class without videos counts as a class with one video. For tasks on frames, frames count
    instead of videos.

    Args:
        targets: all training targets, [N] or [N, C], without frames that are not labeled.
        config: configuration of the temporal model.

    >>> config = TemporalConfig(feature_dim=12, num_classes=2)
    >>> balanced_class_weights(torch.tensor([0, 0, 0, 1]), config).tolist()
    [0.6666666865348816, 2.0]
    """
    if targets.ndim == 2:
        present = targets.sum(0)
        # 0 would ignore the class.
        return (len(targets) - present).clamp(min=1) / present.clamp(min=1)
    counts = torch.bincount(targets, minlength=config.num_classes)
    return len(targets) / (config.num_classes * counts.clamp(min=1))


def probabilities(logits: Tensor, task: TaskType) -> Tensor:
    """Return the probability of each class, [..., C]; for regression an empty tensor, [..., 0].

    Args:
        logits: [..., C].
        task: task of the model.
    """
    if task == "regression":
        return logits[..., :0]
    is_single = task in ("classification", "frames")
    return logits.softmax(-1) if is_single else logits.sigmoid()


def log_odds(logits: Tensor, index: int, task: TaskType) -> Tensor:
    """Return the log odds of one class, log(p / (1 - p)), shape [...].

    Unlike the probability, they never saturate. For regression, return the number itself.

    Args:
        logits: [..., C].
        index: number of the class.
        task: task of the model.

    >>> float(log_odds(torch.tensor([40.0, 0.0]), 0, "classification"))
    40.0
    """
    if task != "classification" or logits.shape[-1] == 1:
        return logits[..., index]
    others = torch.cat([logits[..., :index], logits[..., index + 1 :]], dim=-1)
    return logits[..., index] - others.logsumexp(-1)


def decision(logits: Tensor, class_names: Sequence[str], task: TaskType) -> str:
    """Return the prediction for one clip, written like a label.

    Args:
        logits: [C].
        class_names: [C], in the order of the logits; ignored for regression.
        task: task of the model.

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
    """Return the predicted classes of multi-label logits: those of probability 0.5 or more.

    Args:
        logits: [..., C].

    Returns:
        [..., C] bool.
    """
    return logits >= 0
