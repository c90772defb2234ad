"""Clips as samples: which rows are used, and which frames of each; where they are read from, a
feature folder or the videos, is a reader's.

A key (number, draw) names a sample: the row, and which of its draws. For training the draw is the
epoch, and what is drawn depends on (seed, epoch, video_id) alone, so neither loading processes, nor
other rows, nor a resumed run change it. For evaluation it counts the row's clips and views, whose
logits are averaged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .batch import Batch, frame_positions, pad
from .clips import WHOLE, Clip, ClipSampling, Frames, Times, draw_clip, generator_of, lay_clip

Key = tuple[int, int]


class Read(NamedTuple):
    """What a reader gives of clips.

    Attributes:
        inputs: [B, T, ...], padded to the longest clip with zeros.
        is_lost: [B, T] bool: frames that can't be read; None for none.
        faults: why, one line a video.
    """

    inputs: Tensor
    is_lost: Tensor | None = None
    faults: tuple[str, ...] = ()


class ClipReader(Protocol):
    """Where clips are read from."""

    @property
    def num_views(self) -> int:
        """How many views each frame has."""

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """frame_index [T] and timestamps [T] of a video's frames."""

    def num_frames(self, video_id: str) -> int:
        """T."""

    def read(self, clips: Sequence[Clip]) -> Read:
        """Clips as a batch."""


@dataclass(frozen=True)
class RandomClips:
    """One random clip of a random view a sample; the draw is the epoch."""

    sampling: ClipSampling = ClipSampling()
    seed: int = 0


@dataclass(frozen=True)
class EvenClips:
    """All views of so many clips, evenly over each video; by default, every frame at once.

    Attributes:
        shuffle_seed: give the frames of each clip in a random order of this seed, at the positions
            of the right one; None for the right order.
    """

    sampling: ClipSampling = WHOLE
    num_clips: int = 1
    shuffle_seed: int | None = None


class Sample(NamedTuple):
    """One clip: which frames [t] of the row, of which view, and their positions [t]."""

    number: int
    frames: npt.NDArray[np.int64]
    view: int
    positions: npt.NDArray[np.int64]


class ClipDataset(Dataset[Batch]):
    """The rows of a split as samples, read a batch at a time.

    Args:
        reader: of the clips.
        video_ids: of the rows to use; the reader has each of them.
        targets: of each row, see `temporal/tasks.py`.
        clips: which are taken.
        position_fps: of the model, see `frame_positions`.
    """

    def __init__(
        self,
        reader: ClipReader,
        video_ids: Sequence[str],
        targets: Tensor,
        clips: RandomClips | EvenClips,
        *,
        position_fps: float | None,
    ) -> None:
        self.targets = targets
        self._reader = reader
        self._ids = list(video_ids)
        self._clips = clips
        self._position_fps = position_fps

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def num_draws(self) -> int:
        """Samples of each row in an evaluation."""
        assert isinstance(self._clips, EvenClips)
        return self._clips.num_clips * self._reader.num_views

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """[N] frames of a sample of each row, at most."""
        most = self._clips.sampling.num_frames or np.iinfo(np.int64).max
        frames = [min(most, self._reader.num_frames(video_id)) for video_id in self._ids]
        return np.array(frames, dtype=np.int64)

    def sample(self, key: Key) -> Sample:
        """Chooses the frames of a sample; reads none of them."""
        number, draw = key
        video_id, clips = self._ids[number], self._clips
        frame_index, timestamps = self._reader.times(video_id)
        if isinstance(clips, RandomClips):
            generator = generator_of(clips.seed, draw, video_id)
            view = int(generator.integers(self._reader.num_views))
            frames = draw_clip(timestamps, clips.sampling, generator)
        else:
            clip, view = divmod(draw, self._reader.num_views)
            frames = lay_clip(timestamps, clips.sampling, clip, clips.num_clips)
        positions = frame_positions(
            timestamps[frames],
            frame_index[frames],
            position_fps=self._position_fps,
            first=(float(timestamps[0]), int(frame_index[0])),
        )
        if isinstance(clips, EvenClips) and clips.shuffle_seed is not None:
            frames = generator_of(clips.shuffle_seed, 0, video_id).permutation(frames)
        return Sample(number, frames, view, positions)

    def batch(self, keys: Sequence[Key]) -> Batch:
        """Reads samples as one batch, padded to the longest of them."""
        samples = [self.sample(key) for key in keys]
        positions, mask = pad([sample.positions for sample in samples])
        numbers = torch.tensor([sample.number for sample in samples])
        inputs, is_lost, faults = self._reader.read(
            [Clip(self._ids[sample.number], sample.frames, sample.view) for sample in samples]
        )
        is_read = torch.ones(len(samples), dtype=torch.bool)
        if is_lost is not None:
            is_read = (mask & ~is_lost).any(1)
            # A clip without any frame stays as it is, black: it counts nothing, but has a logit.
            mask = mask & ~(is_lost & is_read[:, None])
        targets = self.targets[numbers]
        return Batch(inputs, positions, mask, targets, numbers, is_read, faults)

    __getitems__ = batch  # what torch's DataLoader calls
