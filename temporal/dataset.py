"""Clips of stored features: which rows of a feature folder are used, and which frames of each.

Training draws clips of some frames over some seconds by their timestamps; evaluation takes every
frame. What is drawn depends on (seed, epoch, video_id) alone, so neither workers nor a resumed run
change it.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..manifests.errors import FeaturesError
from ..manifests.store import FeatureStore
from ..manifests.times import nearest
from ..manifests.videos import VideoRow
from .batch import Sample, frame_positions


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """How training clips are drawn: `num_frames` evenly over `seconds`, from a random start."""

    num_frames: int = 16
    seconds: float = 5.12
    seed: int = 0


def draw_clip(
    timestamps: npt.NDArray[np.float64], sampling: ClipSampling, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Rows [t] of a random clip, t <= num_frames: the frames nearest to evenly spaced times.

    A video shorter than the clip is taken whole; a frame that is nearest to two times is taken
    once.

    Args:
        timestamps: [T] seconds, increasing.
        sampling: what to draw.
        generator: of the random start.
    """
    first, last = float(timestamps[0]), float(timestamps[-1])
    span = min(sampling.seconds, last - first)
    start = first + generator.random() * (last - first - span)
    # Midpoints of equal pieces: a clip as long as the video still moves by no frame at either end.
    targets = start + (np.arange(sampling.num_frames) + 0.5) * span / sampling.num_frames
    return nearest(timestamps, targets)


class ClipDataset(Dataset[Sample]):
    """The rows of a split as samples.

    Args:
        store: the features.
        rows: those to use; each must be in the store.
        targets: of each row, see `temporal/tasks.py`.
        position_fps: of the model, see `frame_positions`.
        sampling: how to draw clips; None for every frame.
        shuffle_seed: give the frames of each video in a random order of this seed, at the
            positions of the right one; None for the right order.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: Sequence[VideoRow],
        targets: Tensor,
        *,
        position_fps: float | None,
        sampling: ClipSampling | None = None,
        shuffle_seed: int | None = None,
    ) -> None:
        self._store = store
        self._rows = rows
        self._targets = targets
        self._position_fps = position_fps
        self._sampling = sampling
        self._shuffle_seed = shuffle_seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Sample:
        video_id = self._rows[number].video_id
        video = self._store[video_id]
        if video.features.ndim != 2:
            raise FeaturesError(
                f"video_id {video_id!r}: features of shape {video.features.shape}; one view a "
                "frame is expected, [T, D]"
            )
        chosen: npt.NDArray[np.int64] | slice = slice(None)
        if self._sampling is not None:
            generator = _generator(self._sampling.seed, self.epoch, video_id)
            chosen = draw_clip(video.timestamps, self._sampling, generator)
        features = video.features[chosen].astype(np.float32)
        if self._shuffle_seed is not None:
            _generator(self._shuffle_seed, 0, video_id).shuffle(features)
        if not np.isfinite(features).all():
            raise FeaturesError(
                f"video_id {video_id!r}: a stored feature is not finite, in "
                f"{self._store.folder.root}; "
                "remove the video's shard, and extract makes it again"
            )
        positions = frame_positions(
            video.timestamps[chosen],
            video.frame_index[chosen],
            position_fps=self._position_fps,
            first=(float(video.timestamps[0]), int(video.frame_index[0])),
        )
        return Sample(
            torch.from_numpy(features),
            torch.from_numpy(positions),
            self._targets[number],
            video_id,
        )


def _generator(seed: int, epoch: int, video_id: str) -> np.random.Generator:
    return np.random.default_rng((seed, epoch, zlib.crc32(video_id.encode())))
