"""From logits of frames to segments: runs of the most probable class.

argmax   each frame on its own; runs shorter than `min_seconds` go to a neighbor
viterbi  the sequence of classes with the largest sum of log-probabilities, less a cost for each
         change of class: the path of a hidden Markov model whose changes are all alike
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..manifests.segments import Segment
from ..manifests.times import seconds_edges
from .config import TemporalConfig
from .time_table import Times

Method = Literal["viterbi", "argmax"]
Labels = npt.NDArray[np.int64]
MAX_VALUES = 2**24  # frames times classes that are decoded side by side


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Options of decoding.

    Attributes:
        method: `viterbi` or `argmax`.
        transition_cost: cost of a change of class in nats; `viterbi` only.
        min_seconds: shortest segment; `argmax` only.
    """

    method: Method = "viterbi"
    transition_cost: float = 4.0
    min_seconds: float = 0.5


VITERBI = Decoding()


class Run(NamedTuple):
    """Run of equal labels: the frames [begin, end)."""

    begin: int
    end: int
    label: int


def runs(labels: npt.NDArray[Any]) -> list[Run]:
    """Return the runs of equal labels [T], in order.

    >>> [tuple(one) for one in runs(np.array([2, 2, 0, 1, 1, 1]))]
    [(0, 2, 2), (2, 3, 0), (3, 6, 1)]
    """
    if not len(labels):
        return []
    edges = [0, *(np.flatnonzero(np.diff(labels)) + 1).tolist(), len(labels)]
    return [Run(begin, end, int(labels[begin])) for begin, end in pairwise(edges)]


def decode_labels(
    logits: Sequence[Tensor], times: Sequence[Times], config: TemporalConfig, decoding: Decoding
) -> list[npt.NDArray[Any]]:
    """Return the labels of each video's frames: [T] int64, or [T, C] bool for several classes.

    Args:
        logits: [T, C] of each video.
        times: [T] seconds of each video's frames.
        config: configuration of the temporal model, of a task on frames.
        decoding: options of decoding.
    """
    if config.task == "frames":
        return _decoded([one.double().log_softmax(-1) for one in logits], times, decoding)
    found = []
    for one, seconds in zip(logits, times, strict=True):
        # Each class is decoded on its own, against its absence.
        absent, present = (torch.nn.functional.logsigmoid(x.double()).T for x in (-one, one))
        pairs = list(torch.stack([absent, present], dim=-1))
        decoded = _decoded(pairs, [seconds] * len(pairs), decoding)
        found.append(np.stack(decoded, axis=1) > 0)
    return found


def _decoded(
    log_probs: Sequence[Tensor], times: Sequence[Times], decoding: Decoding
) -> list[Labels]:
    """Return the labels [T] of each sequence of log-probabilities [T, C]."""
    if decoding.method == "argmax":
        return [
            without_short_runs(one.numpy(), seconds, decoding.min_seconds)
            for one, seconds in zip(log_probs, times, strict=True)
        ]
    found: list[Labels] = [np.empty(0, np.int64)] * len(log_probs)
    order = sorted(range(len(log_probs)), key=lambda number: len(log_probs[number]))
    while order:
        longest = log_probs[order[-1]]
        count = max(1, MAX_VALUES // max(1, longest.numel()))
        chosen, order = order[-count:], order[:-count]
        paths = viterbi([log_probs[n].numpy() for n in chosen], decoding.transition_cost)
        for number, path in zip(chosen, paths, strict=True):
            found[number] = path
    return found


def viterbi(log_probs: Sequence[npt.NDArray[np.float64]], cost: float) -> list[Labels]:
    """Return the labels [T] with the largest sum of log-probabilities less the cost of changes.

    As all changes cost the same, a step compares staying with coming from the best class: O(T C).

    Args:
        log_probs: [T, C] of each sequence.
        cost: cost of a change of label.

    >>> one = np.log([[0.9, 0.1], [0.4, 0.6], [0.9, 0.1]])
    >>> [viterbi([one], cost)[0].tolist() for cost in (0.0, 1.0)]
    [[0, 1, 0], [0, 0, 0]]
    """
    lengths = np.array([len(one) for one in log_probs])
    N, T, C = len(log_probs), int(lengths.max()), log_probs[0].shape[1]
    padded = np.zeros((T, N, C))
    for number, one in enumerate(log_probs):
        padded[: len(one), number] = one
    stays = np.ones((T, N, C), dtype=bool)
    best_before = np.zeros((T, N), dtype=np.int64)
    scores = padded[0].copy()
    rows = np.arange(N)
    final = np.where(lengths == 1, scores.argmax(1), 0)
    for t in range(1, T):
        best = scores.argmax(1)
        changed = scores[rows, best][:, None] - cost
        stays[t] = scores >= changed
        best_before[t] = best
        scores = np.maximum(scores, changed) + padded[t]
        ends = lengths == t + 1
        if ends.any():
            final[ends] = scores[ends].argmax(1)
    paths = np.zeros((T, N), dtype=np.int64)
    label = final.copy()
    for t in range(T - 1, -1, -1):
        is_inside = t < lengths
        label = np.where(t == lengths - 1, final, label)
        paths[t] = label
        if t:
            before = np.where(stays[t, rows, label], label, best_before[t])
            label = np.where(is_inside, before, label)
    return [paths[:length, number] for number, length in enumerate(lengths.tolist())]


def without_short_runs(
    log_probs: npt.NDArray[np.float64], seconds: Times, min_seconds: float
) -> Labels:
    """Return the most probable labels [T]; short runs go to the more probable neighbor.

    The shortest run goes first, again and again, until all last `min_seconds` or one is left.

    Args:
        log_probs: [T, C].
        seconds: [T] timestamps.
        min_seconds: shortest run.
    """
    labels: Labels = log_probs.argmax(1)
    edges = seconds_edges(seconds)
    found = runs(labels)
    while len(found) > 1:
        durations = [edges[one.end] - edges[one.begin] for one in found]
        shortest = int(np.argmin(durations))
        if durations[shortest] >= min_seconds - 1e-9:
            break
        begin, end, _ = found[shortest]
        neighbors = [
            found[number].label
            for number in (shortest - 1, shortest + 1)
            if 0 <= number < len(found)
        ]
        sums = [log_probs[begin:end, label].sum() for label in neighbors]
        labels[begin:end] = neighbors[int(np.argmax(sums))]
        found = runs(labels)
    return labels


def segments_of(
    video_id: str,
    logits: Tensor,
    labels: npt.NDArray[Any],
    seconds: Times,
    class_names: Sequence[str],
    config: TemporalConfig,
) -> list[Segment]:
    """Return the segments of a video, by their start; the score is the class's mean probability.

    Args:
        video_id: id of the video.
        logits: [T, C].
        labels: [T] or [T, C], see `decode_labels`.
        seconds: [T] timestamps.
        class_names: [C], in the order of the logits.
        config: configuration of the temporal model.
    """
    is_single = config.task == "frames"
    probs = (logits.double().softmax(-1) if is_single else logits.double().sigmoid()).numpy()
    edges = seconds_edges(seconds)
    found = [
        Segment(
            video_id,
            float(edges[begin]),
            float(edges[end]),
            class_names[label],
            float(probs[begin:end, label].mean()),
        )
        for begin, end, label in class_runs(labels, config.background_class)
    ]
    return sorted(found, key=lambda one: (one.start, one.label))


def class_runs(labels: npt.NDArray[Any], background: int | None) -> Iterator[Run]:
    """Yield the runs of each class but the background, which has the number `background`.

    Args:
        labels: [T] numbers of classes, negative for none; or [T, C], positive for each class.
        background: number of the background; None if it is no class.
    """
    if labels.ndim == 1:
        yield from (one for one in runs(labels) if one.label >= 0 and one.label != background)
        return
    for label in range(labels.shape[1]):
        for begin, end, is_present in runs(labels[:, label] > 0):
            if is_present:
                yield Run(begin, end, label)
