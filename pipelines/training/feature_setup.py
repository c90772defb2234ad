"""Set-up of a training on stored features: lengths, fitted statistics, validation.

- lengths: whether to train on clips or on whole videos
- statistics: mean and standard deviation of the features, baselines, the model's linear shortcut
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from rich.console import Console
from torch import Tensor, nn

from ...manifests.atomic import write_bytes
from ...manifests.errors import SettingsError
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow
from ...temporal.baselines import (
    MAX_VIDEOS,
    NAMES,
    Baselines,
    feature_statistics,
    fit_baselines,
    fitted_rows,
    floored,
)
from ...temporal.checkpoint import read_metadata, read_weights
from ...temporal.clips import ClipSampling
from ...temporal.config import Shortcut, TemporalConfig
from ...temporal.dataset import ClipDataset
from ...temporal.distributed import Accelerator
from ...temporal.feature_reader import check_finite
from ...temporal.frame_labels import FrameLabels
from ...temporal.inference import Scored, predict_frames, predict_logits
from ...temporal.metrics import Metrics, task_metrics
from ...temporal.model import TemporalClassifier
from ...temporal.segment_metrics import frame_metrics
from ...temporal.shortcut import choose_blend
from ...temporal.train import Validation
from ..console import duration_text, metrics_text, say
from .data import Splits
from .settings import TrainTemporalSettings

MIN_CLIP_SHARE = 0.5  # of the median video that a clip must cover
# Keys of a run's baselines.safetensors, besides those of the baselines.
CENTER, SCALE, OFFSETS, SHORTCUT = "features.center", "features.scale", "offsets", "shortcut"
MAX_TOKENS = 4096  # of a video that is trained on as a whole; of longer ones, evenly spaced frames


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Choice between clips and whole videos, as stored with a run.

    Attributes:
        trained_on: `clips`, `videos`, or, if whole ones have too many frames, `sampled videos` or,
            for tasks on frames, `windows`.
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
        if self.trained_on == "windows":
            return (
                f"training on whole videos, or windows, of up to {self.longest_tokens:,} frames; "
                f"videos are up to {duration_text(self.longest_seconds)} long"
            )
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
        if self.trained_on == "windows":
            return replace(sampling, num_frames=self.longest_tokens, spacing="consecutive")
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
    if settings.segments is not None:
        return Lengths(
            trained_on="windows",
            clip_share=1.0,
            longest_seconds=max(durations),
            longest_tokens=min(max(counts), MAX_TOKENS),
        )
    if trained_on == "auto":
        has_clips = settings.recipe == "paper" or settings.asks_for_clips
        trained_on = "clips" if has_clips or share >= MIN_CLIP_SHARE else "videos"
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
    """Statistics and baselines of the training split, as stored with the run.

    Attributes:
        center: [D], mean of the features.
        scale: [D], their standard deviation.
        baselines: the baselines; None for tasks on frames.
        shortcut: kind of the model's linear shortcut.
        offsets: held-out logits [N, C] of the shortcut's probe; None without a shortcut.
    """

    center: Tensor
    scale: Tensor
    baselines: Baselines | None
    shortcut: Shortcut
    offsets: Tensor | None

    def initialize(self, model: TemporalClassifier) -> None:
        """Set a new model's statistics, and add its shortcut."""
        if model.config.standardize:
            model.input.set_statistics(self.center, self.scale)
        if self.shortcut != "none" and self.baselines is not None:
            probe = self.baselines.mean if self.shortcut == "mean" else self.baselines.motion
            added = model.add_shortcut(self.shortcut)
            added.set_probe(probe.weight, probe.center, probe.bias)
            added.is_held_out = True

    def save(self, path: Path) -> None:
        """Write it as safetensors, atomically."""
        tensors = {} if self.baselines is None else self.baselines.to_tensors()
        tensors |= {CENTER: self.center, SCALE: self.scale}
        if self.offsets is not None:
            tensors[OFFSETS] = self.offsets.contiguous()
        write_bytes(safetensors.torch.save(tensors, {SHORTCUT: self.shortcut}), path)

    @classmethod
    def load(cls, path: Path) -> "Fitted":
        """Read what `save` wrote.

        Raises:
            FeaturesError: the file is missing or damaged.
        """
        tensors, metadata = read_weights(path), read_metadata(path)
        shortcut: Shortcut = metadata[SHORTCUT]  # type: ignore[assignment]
        return cls(
            center=tensors[CENTER],
            scale=tensors[SCALE],
            baselines=Baselines.from_tensors(tensors) if len(tensors) > 2 else None,
            shortcut=shortcut,
            offsets=tensors.get(OFFSETS),
        )


def fit_to_training_split(
    store: FeatureStore, splits: Splits, settings: TrainTemporalSettings, config: TemporalConfig
) -> Fitted:
    """Fit statistics and baselines to the training split.

    A large split is represented by some of its videos, see `fitted_rows`; it has enough of them
    for a model without a shortcut.

    Raises:
        SettingsError: a shortcut was asked for that cannot be fitted.
    """
    rows, targets = splits.train.rows, splits.targets[0]
    chosen = fitted_rows(len(rows), config.num_classes)
    dim = store.row_shape[-1]
    count, total, squares = 0, np.zeros(dim), np.zeros(dim)
    statistics = []
    for number in chosen:
        video_id = rows[number].video_id
        features = store[video_id].features
        check_finite(video_id, features, store)
        statistics.append(feature_statistics(features))
        frames = features.reshape(-1, dim).astype(np.float64)
        count += len(frames)
        total += frames.sum(0)
        squares += np.square(frames).sum(0)
    center = total / count
    scale = floored(np.sqrt(np.maximum(squares / count - center**2, 0.0)))
    if isinstance(targets, FrameLabels):
        return Fitted(
            center=torch.from_numpy(center).float(),
            scale=torch.from_numpy(scale).float(),
            baselines=None,
            shortcut="none",
            offsets=None,
        )
    baselines = fit_baselines(statistics, targets[chosen], config, seed=settings.seed)
    is_whole = len(chosen) == len(rows)
    shortcut = _choose_shortcut(settings, config, baselines, is_whole=is_whole)
    probe = {"mean": baselines.mean, "motion": baselines.motion}.get(shortcut)
    return Fitted(
        center=torch.from_numpy(center).float(),
        scale=torch.from_numpy(scale).float(),
        baselines=baselines,
        shortcut=shortcut,
        offsets=None if probe is None else probe.held_out,
    )


def _choose_shortcut(
    settings: TrainTemporalSettings,
    config: TemporalConfig,
    baselines: Baselines,
    *,
    is_whole: bool,
) -> Shortcut:
    """Return the kind of a model's shortcut: as given, else the probe with the lower held-out loss.

    Raises:
        SettingsError: the one that was given cannot be fitted.
    """
    if settings.recipe == "paper" or settings.shortcut == "none":
        return "none"
    is_possible = config.task == "classification" and is_whole
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


class FrameValidator:
    """Function that segments the videos of the validation split after an epoch.

    Args:
        config: configuration of the model.
        dataset: validation videos, by windows.
        targets: labels of their frames.
        class_names: [C], in the order of the logits.
        accelerator: see `temporal/distributed.py`.
        num_workers: threads that load batches ahead.
    """

    def __init__(
        self,
        config: TemporalConfig,
        dataset: ClipDataset,
        targets: FrameLabels,
        class_names: list[str],
        accelerator: Accelerator,
        num_workers: int,
    ) -> None:
        self._config = config
        self._dataset = dataset
        self._targets = targets
        self._class_names = class_names
        self._options: dict[str, Any] = {"accelerator": accelerator, "num_workers": num_workers}

    def __call__(self, network: nn.Module, should_stop: Callable[[], bool]) -> Validation:
        """Return the metrics of the split."""
        found = dict(
            predict_frames(network, self._dataset, should_stop=should_stop, **self._options)
        )
        logits = [found[number] for number in range(len(self._dataset))]
        metrics = frame_metrics(logits, self._targets, self._class_names, self._config)
        return Validation(metrics, len(logits), [])


class Validator:
    """Function that scores the validation split after an epoch.

    For a model with a shortcut, it also chooses the factor of the learned logits.

    Args:
        model: the model.
        dataset: validation videos.
        targets: their targets.
        class_names: [C], in the order of the logits.
        accelerator: see `temporal/distributed.py`.
        num_workers: threads that load batches ahead.
    """

    def __init__(
        self,
        model: TemporalClassifier,
        dataset: ClipDataset,
        targets: Tensor,
        class_names: list[str],
        accelerator: Accelerator,
        num_workers: int,
    ) -> None:
        self._model = model
        self._dataset = dataset
        self._targets = targets
        self._class_names = class_names
        self._options: dict[str, Any] = {
            "accelerator": accelerator,
            "num_workers": num_workers,
        }
        self._probe_logits: Tensor | None = None

    def __call__(self, network: nn.Module, should_stop: Callable[[], bool]) -> Validation:
        """Return the metrics of the split."""
        scored = Scored(self._logits(network, should_stop))
        return Validation.of(scored, self._targets, self._class_names, self._model.config)

    def _logits(self, network: nn.Module, should_stop: Callable[[], bool]) -> Tensor:
        shortcut = self._model.shortcut
        if shortcut is None:
            return self._predict(network, should_stop)
        if self._probe_logits is None:
            shortcut.blend.fill_(0.0)
            self._probe_logits = self._predict(network, should_stop)
        shortcut.blend.fill_(1.0)
        learned = self._predict(network, should_stop) - self._probe_logits
        blend = choose_blend(self._probe_logits, learned, self._targets)
        shortcut.blend.fill_(blend)
        return self._probe_logits + blend * learned

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
    found = baselines.logits_of(store, [row.video_id for row in rows], config)
    return {
        name: task_metrics(logits, targets, class_names, config) for name, logits in found.items()
    }


def say_baselines(
    console: Console, model: dict[str, float | None], scores: dict[str, Metrics]
) -> None:
    """Print a table of a model's metrics beside those of the baselines.

    Args:
        console: the console.
        model: metrics of the model by name, those to show.
        scores: metrics of the baselines.
    """
    rows = {"this model": model}
    for name, metrics in scores.items():
        rows[NAMES[name]] = {one: metrics[one] for one in model}
    width = max(map(len, rows))
    say(console, *(f"  {name.ljust(width)}  {metrics_text(row)}" for name, row in rows.items()))
