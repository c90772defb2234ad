"""Confidence intervals of metrics, and the comparison of two models on the same videos.

Resampled intervals are percentile intervals over groups of videos drawn with replacement (B. Efron,
The Annals of Statistics 7(1), 1979).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .config import TemporalConfig
from .metrics import METRICS, Index, metrics_over

CONFIDENCE = 0.95  # of all intervals


def confidence_intervals(
    logits: Tensor,
    targets: Tensor,
    config: TemporalConfig,
    *,
    num_resamples: int,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the 95% interval of each metric; videos of a group are not independent.

    Shares of videos, and the mean class accuracy, have Wilson's interval (E. B. Wilson, Journal of
    the American Statistical Association 22, 1927), which keeps its coverage near 0 and 1; other
    metrics have the percentile interval over resampled groups, widened to Wilson's where all
    resamples agree.

    Args:
        logits: [N, C], one row per video.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        config: configuration of the temporal model.
        num_resamples: number of resamples; 0 for no intervals.
        seed: seed of the resamples.
        groups: [N] group of each video, such as its recording; None if all are independent.

    Returns:
        Name of the metric → (low, high); without metrics that are undefined in all resamples.
    """
    if not num_resamples:
        return {}
    num_videos, members = len(logits), _members(len(logits), groups)
    metrics = metrics_over(logits, targets, config)
    values = metrics(np.arange(num_videos))
    found = resampled_intervals(
        metrics, num_videos, num_resamples=num_resamples, seed=seed, groups=groups
    )
    if config.task == "classification":
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
        for name, hits in (("top1", best[:, 0]), ("top5", best.any(1))):
            count = _effective_count(hits.double().numpy(), members)
            found[name] = wilson_interval(values[name], count)
        counts = np.bincount(targets.numpy(), minlength=config.num_classes)
        counts = counts[counts > 0]
        share = _effective_count(best[:, 0].double().numpy(), members) / num_videos
        count = share * len(counts) ** 2 / (1 / counts).sum()
        found["mean_class_accuracy"] = wilson_interval(values["mean_class_accuracy"], count)
    for name in ("mean_average_precision", "f1"):
        if name in found and found[name][0] == found[name][1]:
            found[name] = wilson_interval(values[name], len(members))
    return {name: found[name] for name in values if name in found}


def resampled_intervals(
    metrics: Callable[[Index], dict[str, float]],
    num_videos: int,
    *,
    num_resamples: int,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each metric over resampled groups of videos.

    Args:
        metrics: returns the metrics over videos by their numbers, see `metrics_over`.
        num_videos: number of videos.
        num_resamples: number of resamples; 0 for no intervals.
        seed: seed of the resamples.
        groups: [N] group of each video; None if all are independent.

    Returns:
        Name of the metric → (low, high); without metrics that are undefined in all resamples.
    """
    if not num_resamples:
        return {}
    found = _resampled(metrics, _members(num_videos, groups), num_resamples, seed)
    return {name: ends for name, ends in found.items() if np.isfinite(ends).all()}


def _members(num_videos: int, groups: Sequence[str] | None) -> list[Index]:
    """Return the numbers of the videos of each group; each video alone without groups."""
    if groups is None:
        return [np.array([number]) for number in range(num_videos)]
    numbers = np.unique(np.array(groups, dtype=np.str_), return_inverse=True)[1]
    return [np.flatnonzero(numbers == group) for group in range(numbers.max() + 1)]


def wilson_interval(share: float, count: float) -> tuple[float, float]:
    """Return Wilson's 95% interval of a share that was found in `count` independent videos.

    >>> [round(end, 3) for end in wilson_interval(1.0, 60)]
    [0.94, 1.0]
    """
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    center = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return float(max(0.0, center - half)), float(min(1.0, center + half))


def _effective_count(hits: npt.NDArray[np.float64], members: Sequence[Index]) -> float:
    """Return the number of independent videos with the same variance of a share.

    Args:
        hits: [N], 1 for a hit, else 0.
        members: numbers of the videos of each group.
    """
    num_videos, num_groups = len(hits), len(members)
    share = hits.mean()
    if num_groups in (1, num_videos) or share in (0.0, 1.0):
        return float(num_groups)
    sums = np.array([(hits[one] - share).sum() for one in members])
    variance = num_groups / (num_groups - 1) * np.square(sums).sum() / num_videos**2
    return float(min(num_videos, share * (1 - share) / max(variance, 1e-12)))


def _resampled(
    metrics: Callable[[Index], dict[str, float]],
    members: Sequence[Index],
    num_resamples: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Return the percentile interval of each metric over resampled groups."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(num_resamples):
        drawn = generator.integers(len(members), size=len(members))
        for name, value in metrics(np.concatenate([members[one] for one in drawn])).items():
            found.setdefault(name, []).append(value)
    ends = (100 * (1 - CONFIDENCE) / 2, 100 * (1 + CONFIDENCE) / 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of metrics that are always undefined
        quantiles = {name: np.nanpercentile(values, ends) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in quantiles.items()}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Comparison of two models on the same videos.

    Attributes:
        metric: name of the decisive metric.
        first: its value for the first model.
        second: its value for the second model.
        interval: 95% interval of second - first, over resampled groups of videos.
        only_first: classification: number of videos that only the first model classifies rightly.
        only_second: the same for the second model.
        p_value: classification: two-sided exact McNemar test of the two numbers.
    """

    metric: str
    first: float
    second: float
    interval: tuple[float, float]
    only_first: int | None = None
    only_second: int | None = None
    p_value: float | None = None


def compare(
    first: Tensor,
    second: Tensor,
    targets: Tensor,
    config: TemporalConfig,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> Comparison:
    """Compare the logits [N, C] of two models on the same videos.

    Args:
        first: logits of the first model.
        second: logits of the second model.
        targets: [N] or [N, C], see `temporal/tasks.py`.
        config: configuration of one of the models.
        num_resamples: number of resamples for the interval.
        seed: seed of the resamples.
        groups: [N] group of each video; None if all are independent.
    """
    name = METRICS[config.task].names[0]
    of_first, of_second = (metrics_over(one, targets, config) for one in (first, second))
    members = _members(len(first), groups)

    def difference(index: Index) -> dict[str, float]:
        return {name: of_second(index)[name] - of_first(index)[name]}

    everything = np.arange(len(first))
    found = Comparison(
        metric=name,
        first=float(of_first(everything)[name]),
        second=float(of_second(everything)[name]),
        interval=_resampled(difference, members, max(1, num_resamples), seed)[name],
    )
    if config.task != "classification":
        return found
    right = [(one.argmax(1) == targets).numpy() for one in (first, second)]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    return replace(
        found,
        only_first=only_first,
        only_second=only_second,
        p_value=mcnemar(only_first, only_second),
    )


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p-value of the exact McNemar test (Psychometrika 12, 1947).

    >>> mcnemar(0, 0), mcnemar(1, 6)
    (1.0, 0.125)
    """
    total, least = only_first + only_second, min(only_first, only_second)
    tail = sum(math.comb(total, count) for count in range(least + 1))
    return min(1.0, float(2 * tail / 2**total))
