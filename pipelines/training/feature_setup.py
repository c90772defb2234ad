"""What stage two derives from the stored features before it trains, and its validation.

- lengths: whether to train on clips or on whole videos
- statistics: mean and standard deviation of the features, baselines, the model's linear shortcut
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from torch import Tensor, nn

from ...manifests.errors import SettingsError
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow
from ...temporal.baselines import (
    MAX_VIDEOS,
    NAMES,
    Baselines,
    Probe,
    evenly,
    feature_statistics,
    fit_baselines,
    floored,
)
from ...temporal.clips import ClipSampling
from ...temporal.config import Shortcut, TemporalConfig
from ...temporal.dataset import ClipDataset
from ...temporal.distributed import Accelerator
from ...temporal.inference import Scored, predict_logits
from ...temporal.metrics import Metrics, task_metrics
from ...temporal.model import TemporalClassifier
from ...temporal.shortcut import choose_blend
from ..console import duration_text, metrics_text, say
from .data import Splits
from .settings import TrainTemporalSettings

MIN_CLIP_SHARE = 0.5  # of the median video that a clip must cover
MAX_TOKENS = 4096  # of a video that is trained on as a whole; of longer ones, evenly spaced frames


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Choice between clips and whole videos, as stored with a run.

    Attributes:
        trained_on: `clips`, `videos`, or `sampled videos` if whole ones have too many frames.
        clip_share: share of the median training video that a clip covers, at most 1.
        longest_seconds: duration of the longest training video.
        longest_tokens: most frames of a training sample.
    """

    trained_on: str
    clip_share: float
    longest_seconds: float
    longest_tokens: int

    def describe(self, settings: TrainTemporalSettings) -> str:
        """Return the choice in one line."""
        clip = (
            f"a clip of {settings.clip_seconds:g} s covers {self.clip_share:.1%} of the median one"
        )
        return (
            f"training on {self.trained_on} of up to {self.longest_tokens:,} frames; videos are up "
            f"to {duration_text(self.longest_seconds)} long, {clip}"
        )

    def sampling(self, sampling: ClipSampling) -> ClipSampling:
        """Return the sampling of training clips, given that of the settings."""
        if self.trained_on == "videos":
            return replace(sampling, num_frames=None)
        if self.trained_on == "sampled videos":
            seconds = self.longest_seconds + 1.0
            return replace(sampling, num_frames=MAX_TOKENS, seconds=seconds, jitter=1.0)
        return sampling


def choose_lengths(settings: TrainTemporalSettings, store: FeatureStore, splits: Splits) -> Lengths:
    """Choose between clips and whole videos by the lengths of the training videos."""
    durations, counts = [], []
    for video_id in splits.train.video_ids:
        times = store.times(video_id)[1]
        durations.append(float(times[-1] - times[0]))
        counts.append(len(times))
    share = min(1.0, settings.clip_seconds / max(float(np.median(durations)), 1e-9))
    trained_on: str = settings.train_on
    if trained_on == "auto":
        is_fair = share >= MIN_CLIP_SHARE or settings.recipe == "paper"
        trained_on = "clips" if is_fair else "videos"
    longest = max(counts)
    if trained_on == "clips":
        longest = min(longest, settings.clip_frames)
    elif settings.train_on == "auto" and longest > MAX_TOKENS:
        trained_on, longest = "sampled videos", MAX_TOKENS
    return Lengths(
        trained_on=trained_on,
        clip_share=share,
        longest_seconds=max(durations),
        longest_tokens=longest,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """What is fitted to the training split.

    Attributes:
        center: [D], mean of the features.
        scale: [D], their standard deviation.
        baselines: the baselines.
        shortcut: kind of the model's linear shortcut.
    """

    center: Tensor
    scale: Tensor
    baselines: Baselines
    shortcut: Shortcut

    @property
    def probe(self) -> Probe | None:
        """Probe of the shortcut; None without a shortcut."""
        kinds = {"mean": self.baselines.mean, "motion": self.baselines.motion}
        return kinds.get(self.shortcut)

    @property
    def offsets(self) -> Tensor | None:
        """Held-out logits [N, C] of the shortcut's probe; None without a shortcut."""
        return None if self.probe is None else self.probe.held_out

    def initialize(self, model: TemporalClassifier) -> None:
        """Set a new model's statistics, and its shortcut."""
        if model.config.standardize:
            model.input.set_statistics(self.center, self.scale)
        if model.shortcut is not None and self.probe is not None:
            model.shortcut.set_probe(self.probe.weight, self.probe.bias)
            model.shortcut.is_held_out = True


def fit_to_training_split(
    store: FeatureStore, splits: Splits, settings: TrainTemporalSettings, config: TemporalConfig
) -> Fitted:
    """Fit statistics and baselines to the training split, the same in every process.

    A split of more than `MAX_VIDEOS` videos is represented by so many of them; it has enough
    videos for a model without a shortcut.

    Raises:
        SettingsError: a shortcut was asked for that cannot be fitted.
    """
    rows, targets = splits.train.rows, splits.targets[0]
    chosen = list(evenly(len(rows)))
    dim = store.row_shape[-1]
    count, total, squares = 0, np.zeros(dim), np.zeros(dim)
    statistics = []
    for number in chosen:
        features = store[rows[number].video_id].features
        statistics.append(feature_statistics(features))
        frames = features.reshape(-1, dim).astype(np.float64)
        count += len(frames)
        total += frames.sum(0)
        squares += np.square(frames).sum(0)
    center = total / count
    scale = floored(np.sqrt(np.maximum(squares / count - center**2, 0.0)))
    baselines = fit_baselines(statistics, targets[chosen], config, seed=settings.seed)
    return Fitted(
        center=torch.from_numpy(center).float(),
        scale=torch.from_numpy(scale).float(),
        baselines=baselines,
        shortcut=_choose_shortcut(settings, config, baselines, num_videos=len(rows)),
    )


def _choose_shortcut(
    settings: TrainTemporalSettings,
    config: TemporalConfig,
    baselines: Baselines,
    *,
    num_videos: int,
) -> Shortcut:
    """Return the kind of a model's shortcut: as given, else the probe with the lower held-out loss.

    Raises:
        SettingsError: the one that was given cannot be fitted.
    """
    if settings.recipe == "paper" or settings.shortcut == "none":
        return "none"
    is_possible = config.task == "classification" and num_videos <= MAX_VIDEOS
    if settings.shortcut != "auto":
        if not is_possible:
            raise SettingsError(
                f"--shortcut {settings.shortcut}: it is for classification with at most "
                f"{MAX_VIDEOS:,} training videos; leave it out"
            )
        return settings.shortcut
    if not is_possible or config.encoder not in ("longformer", "full"):
        return "none"
    mean, motion = baselines.mean, baselines.motion
    best = mean if mean.held_out_loss <= motion.held_out_loss else motion
    if not best.is_informative:
        return "none"
    return "mean" if best is mean else "motion"


class Validator:
    """Function that scores the validation split after an epoch.

    For a model with a shortcut, it also chooses the factor of the learned logits.

    Args:
        model: the model.
        dataset: validation videos.
        targets: their targets.
        batch_size: videos per batch.
        accelerator: see `temporal/distributed.py`.
        num_workers: processes that load batches ahead.
    """

    def __init__(
        self,
        model: TemporalClassifier,
        dataset: ClipDataset,
        targets: Tensor,
        batch_size: int,
        accelerator: Accelerator,
        num_workers: int,
    ) -> None:
        self._model = model
        self._dataset = dataset
        self._targets = targets
        self._options: dict[str, Any] = {
            "batch_size": batch_size,
            "accelerator": accelerator,
            "num_workers": num_workers,
        }
        self._probe_logits: Tensor | None = None

    def __call__(self, network: nn.Module, should_stop: Callable[[], bool]) -> Scored:
        """Return the logits of the split."""
        shortcut = self._model.shortcut
        if shortcut is None:
            return Scored(self._predict(network, should_stop))
        if self._probe_logits is None:
            shortcut.blend.fill_(0.0)
            self._probe_logits = self._predict(network, should_stop)
        shortcut.blend.fill_(1.0)
        learned = self._predict(network, should_stop) - self._probe_logits
        blend = choose_blend(self._probe_logits, learned, self._targets)
        shortcut.blend.fill_(blend)
        return Scored(self._probe_logits + blend * learned)

    def _predict(self, network: nn.Module, should_stop: Callable[[], bool]) -> Tensor:
        return predict_logits(
            network,
            self._dataset,
            should_stop=should_stop,
            **self._options,
        )


def describe_shortcut(fitted: Fitted) -> list[str]:
    """Return a line about a model's shortcut; none without one."""
    if fitted.shortcut == "none":
        return []
    name = NAMES[f"probe_{fitted.shortcut}"]
    return [f"shortcut: {name}; the model learns what it misses"]


def baseline_metrics(
    baselines: Baselines,
    store: FeatureStore,
    rows: list[VideoRow],
    targets: Tensor,
    class_names: list[str],
    config: TemporalConfig,
) -> dict[str, Metrics]:
    """Return the metrics of each baseline on some of a folder's videos, by its name."""
    statistics: list[npt.NDArray[np.float32]] = [
        feature_statistics(store[row.video_id].features) for row in rows
    ]
    return {
        name: task_metrics(logits, targets, class_names, config)
        for name, logits in baselines.logits(statistics, config).items()
    }


def say_baselines(
    console: Console, model: dict[str, float | None], scores: dict[str, Metrics]
) -> None:
    """Print a table of a model's metrics beside those of the baselines.

    Args:
        console: the console.
        model: metrics of the model by name.
        scores: metrics of the baselines.
    """
    rows = {"this model": model}
    for name, metrics in scores.items():
        rows[NAMES[name]] = {one: getattr(metrics, one) for one in metrics.names}
    width = max(map(len, rows))
    say(console, *(f"  {name.ljust(width)}  {metrics_text(row)}" for name, row in rows.items()))
