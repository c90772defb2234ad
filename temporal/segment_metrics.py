"""Metrics of segmented videos, over the videos or over resamples of them.

- frame accuracy, with and without the frames whose true class is the background
- edit score: 1 - the Levenshtein distance of predicted and true sequence of segments, over the
  longer one's length; the mean over videos
- F1 at overlaps of 10%, 25% and 50%: a predicted segment counts as found if the true segment of its
  class with the largest intersection over union reaches the overlap, and no other one took it. The
  three are those of C. Lea et al., arXiv 1611.05267, as Y. Abu Farha and J. Gall compute them
  (arXiv 1903.01945).
- map: mean, over classes and over overlaps of 30% to 70%, of the interpolated average precision of
  the predicted segments, the likeliest first, as ActivityNet computes it

Segments are runs of frames, without the background. Frames that are not labeled are left out.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .config import TemporalConfig
from .frame_labels import UNLABELED, FrameLabels
from .metrics import (
    F1_OVERLAPS,
    MAP_OVERLAPS,
    FrameMetrics,
    FrameMultiLabelMetrics,
    Index,
    precisions_over,
)
from .segmentation import VITERBI, Decoding, Run, class_runs, decode_labels
from .tasks import task_losses

Array = npt.NDArray[Any]


def frame_metrics(
    logits: Sequence[Tensor],
    targets: FrameLabels,
    class_names: Sequence[str],
    config: TemporalConfig,
    decoding: Decoding = VITERBI,
) -> FrameMetrics:
    """Compute the metrics of N videos.

    Args:
        logits: [T, C] of each video.
        targets: labels of their frames.
        class_names: [C], in the order of the logits.
        config: configuration of the temporal model.
        decoding: how logits become segments.
    """
    return FrameCounts(logits, targets, config, decoding).metrics(class_names)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


class FrameCounts:
    """Counts of each of N videos, from whose sums the metrics follow.

    Args:
        logits: see `frame_metrics`.
        targets: see `frame_metrics`.
        config: see `frame_metrics`.
        decoding: see `frame_metrics`.

    Attributes:
        segments: [N, C, 3] numbers of true segments, of predicted ones, and of those that match at
            50%.
        per_class: [C] share of a class's frames that are predicted rightly, or its average
            precision; NaN for a class that does not occur.
        confusion: [C, C] frames of class i predicted as class j; None for several classes a frame.
    """

    def __init__(
        self,
        logits: Sequence[Tensor],
        targets: FrameLabels,
        config: TemporalConfig,
        decoding: Decoding = VITERBI,
    ) -> None:
        self._config = config
        C = config.num_classes
        labels = decode_labels(logits, targets.times, config, decoding)
        self._losses = np.array(
            [
                float(task_losses(one[None].float(), truth[None], config))
                for one, truth in zip(logits, targets.of_videos, strict=True)
            ]
        )
        self.segments = np.zeros((len(logits), C, 3), dtype=np.int64)
        self._hits = np.zeros((len(logits), len(F1_OVERLAPS)), dtype=np.int64)
        self._edits = np.ones(len(logits))
        self._confusions = np.zeros((len(logits), C, C), dtype=np.int64)
        scored: list[tuple[Array, ...]] = []
        for number, (one, found, truth) in enumerate(
            zip(logits, labels, map(_array, targets.of_videos), strict=True)
        ):
            found = _only_labeled(found, truth)
            predicted = list(class_runs(found, config.background_class))
            true = list(class_runs(truth, config.background_class))
            self._hits[number] = [_num_found(predicted, true, x / 100) for x in F1_OVERLAPS]
            self._count_segments(number, predicted, true)
            if config.task == "frames":
                is_labeled = truth != UNLABELED
                pairs = truth[is_labeled] * C + found[is_labeled]
                self._confusions[number] = np.bincount(pairs, minlength=C * C).reshape(C, C)
                self._edits[number] = edit_score(
                    [run.label for run in predicted], [run.label for run in true]
                )
            scored.append(_scored_segments(number, one, predicted, true, config))
        self._scored = [np.concatenate(part) for part in zip(*scored, strict=True)]
        self.confusion: Array | None = None
        if config.task == "frames":
            self.confusion = self._confusions.sum(0)
            totals = self.confusion.sum(1)
            with np.errstate(invalid="ignore"):  # 0 / 0 for a class that does not occur
                self.per_class = np.diag(self.confusion) / totals
        else:
            is_labeled = targets.is_labeled
            self._precisions = precisions_over(
                torch.cat(list(logits)).float()[is_labeled], targets.values[is_labeled]
            )
            counts = [int(one.sum()) for one in is_labeled.split(targets.lengths)]
            self._frames = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
            self.per_class = self._precisions(np.arange(sum(counts)))

    def _count_segments(self, number: int, predicted: list[Run], true: list[Run]) -> None:
        for kind, runs_of_kind in enumerate((true, predicted)):
            for run in runs_of_kind:
                self.segments[number, run.label, kind] += 1
        for label in {run.label for run in predicted}:
            of_class = [[run for run in some if run.label == label] for some in (predicted, true)]
            self.segments[number, label, 2] = _num_found(of_class[0], of_class[1], 0.5)

    def metrics(self, class_names: Sequence[str]) -> FrameMetrics:
        """Return the metrics of all the videos; `class_names` [C] as for `frame_metrics`."""
        values = self.over(np.arange(len(self.segments)))
        totals = self.segments.sum(0)
        kind = FrameMetrics if self._config.task == "frames" else FrameMultiLabelMetrics
        return kind(
            values={name: _defined(one) for name, one in values.items()},
            per_class={
                name: _defined(share)
                for name, share in zip(class_names, self.per_class, strict=True)
            },
            segments={
                name: (int(num_true), int(num_predicted), int(num_found))
                for name, (num_true, num_predicted, num_found) in zip(
                    class_names, totals, strict=True
                )
            },
            confusion=None if self.confusion is None else self.confusion.tolist(),
        )

    def over(self, index: Index) -> dict[str, float]:
        """Return the metrics over videos [n], each as often as it occurs; NaN if undefined."""
        found: dict[str, float] = {}
        if self._config.task == "frames":
            confusion = self._confusions[index].sum(0)
            found["frame_accuracy"] = _share(np.trace(confusion), confusion.sum())
            background = self._config.background_class
            if background is not None:
                confusion = np.delete(confusion, background, axis=0)
            right = sum(confusion[k, k + (background is not None and k >= background)]
                        for k in range(len(confusion)))  # fmt: skip
            found["frame_accuracy_without_background"] = _share(right, confusion.sum())
            found["edit"] = float(self._edits[index].mean())
        else:
            frames = np.concatenate([self._frames[number] for number in index.tolist()])
            found["frame_mean_average_precision"] = _mean(self._precisions(frames))
        num_true, num_predicted, _ = self.segments[index].sum((0, 1))
        for overlap, hits in zip(F1_OVERLAPS, self._hits[index].sum(0), strict=True):
            found[f"f1@{overlap}"] = _share(2 * hits, num_true + num_predicted)
        precisions = self._segment_precisions(index)
        found["map"] = _mean(precisions.mean(1))
        for number, overlap in enumerate(MAP_OVERLAPS):
            found[f"map@{overlap}"] = _mean(precisions[:, number])
        found["loss"] = float(self._losses[index].mean())
        return found

    def _segment_precisions(self, index: Index) -> Array:
        """Return the average precision of each class at each overlap, [C, M]; NaN without truth."""
        videos, labels, scores, matches = self._scored
        times = np.bincount(index, minlength=len(self.segments))
        num_true = (self.segments[:, :, 0] * times[:, None]).sum(0)
        found = np.full((len(num_true), len(MAP_OVERLAPS)), np.nan)
        for label in np.flatnonzero(num_true).tolist():
            chosen = np.flatnonzero(labels == label)
            chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
            weights = times[videos[chosen]]
            for number in range(len(MAP_OVERLAPS)):
                is_match = matches[chosen, number]
                found[label, number] = average_precision(is_match, weights, num_true[label])
        return found


def _array(labels: Tensor) -> Array:
    return np.asarray(labels.numpy())


def _only_labeled(labels: Array, truth: Array) -> Array:
    """Return predicted labels without those of frames that are not labeled."""
    if labels.ndim == 1:
        return np.where(truth == UNLABELED, UNLABELED, labels)
    return np.where(truth[:, :1] == UNLABELED, False, labels)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _mean(values: Array) -> float:
    """Return the mean of the values that are defined; NaN if none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def edit_score(predicted: Sequence[int], true: Sequence[int]) -> float:
    """Return 1 - the Levenshtein distance of two sequences over the longer one's length.

    >>> edit_score([1, 2, 3], [1, 3]), edit_score([], [])
    (0.6666666666666667, 1.0)
    """
    longest = max(len(predicted), len(true))
    if not longest:
        return 1.0
    row = np.arange(len(true) + 1)
    others = np.array(true)
    for number, label in enumerate(predicted, 1):
        # Deletions and substitutions at once; insertions are a running minimum.
        best = np.minimum(row[1:] + 1, row[:-1] + (others != label))
        row = np.concatenate(([number], best))
        row = np.minimum.accumulate(row - np.arange(len(row))) + np.arange(len(row))
    return float(1 - row[-1] / longest)


def overlaps(run: Run, others: Sequence[Run]) -> Array:
    """Return the intersection over union of a run with each of others, [n]; 0 of another class.

    >>> overlaps(Run(0, 4, 1), [Run(2, 6, 1), Run(0, 4, 2)]).round(3).tolist()
    [0.333, 0.0]
    """
    if not others:
        return np.empty(0)
    begins, ends, labels = np.array(others).T
    shared = np.minimum(run.end, ends) - np.maximum(run.begin, begins)
    union = np.maximum(run.end, ends) - np.minimum(run.begin, begins)
    return np.asarray(np.where(labels == run.label, np.maximum(shared, 0) / union, 0.0))


def _num_found(predicted: Sequence[Run], true: Sequence[Run], least: float) -> int:
    """Return how many predicted segments match a true one, in their order."""
    is_taken = np.zeros(len(true), dtype=bool)
    for run in predicted:
        found = overlaps(run, true)
        if len(found):
            best = int(found.argmax())
            if found[best] >= least and not is_taken[best]:
                is_taken[best] = True
    return int(is_taken.sum())


def _scored_segments(
    number: int, logits: Tensor, predicted: list[Run], true: list[Run], config: TemporalConfig
) -> tuple[Array, ...]:
    """Return video [n], class [n], score [n], and match at each overlap [n, M] of its segments.

    The likeliest segment of a class takes the true one that it overlaps most with, of those that
    are left.
    """
    probs = (logits.softmax(-1) if config.task == "frames" else logits.sigmoid()).double().numpy()
    scores = np.array([probs[run.begin : run.end, run.label].mean() for run in predicted])
    matches = np.zeros((len(predicted), len(MAP_OVERLAPS)), dtype=bool)
    is_taken = np.zeros((len(MAP_OVERLAPS), len(true)), dtype=bool)
    for one in np.argsort(-scores, kind="stable").tolist():
        found = overlaps(predicted[one], true)
        for at, least in enumerate(MAP_OVERLAPS):
            left = np.where(is_taken[at], 0.0, found)
            if len(left) and left.max() >= least / 100:
                is_taken[at, left.argmax()] = True
                matches[one, at] = True
    labels = np.array([run.label for run in predicted], dtype=np.int64)
    return np.full(len(predicted), number), labels, scores, matches


def average_precision(is_match: Array, weights: Array, num_true: int) -> float:
    """Return the interpolated average precision of predictions, the likeliest first.

    At each recall it takes the largest precision at that recall or a higher one.

    Args:
        is_match: [n] bool, whether a prediction matches.
        weights: [n] how often it occurs.
        num_true: number of true segments.

    >>> average_precision(np.array([True, False, True]), np.ones(3), 4)
    0.41666666666666663
    """
    hits = (is_match * weights).cumsum()
    precision = hits / np.maximum(1, weights.cumsum())
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(hits, prepend=0) / num_true
    return float((steps * envelope).sum())
