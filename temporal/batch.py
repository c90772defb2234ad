"""Positions, padding and masks: the only place that pads.

A batch holds clips of different lengths: features [B, T, D], positions [B, T] and a mask [B, T]
that is True where there is a frame. Whatever finite number stands where the mask is False changes
no logit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Sample(NamedTuple):
    """One clip: features [T, D] float32, positions [T] int64, its target, whose it is."""

    features: Tensor
    positions: Tensor
    target: Tensor  # scalar or [C], see `temporal/tasks.py`
    video_id: str


class Batch(NamedTuple):
    """Clips of different lengths: features [B, T, D], positions, mask [B, T], targets [B, ...]."""

    features: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    video_ids: tuple[str, ...]


def frame_positions(
    timestamps: npt.NDArray[np.float64],
    frame_index: npt.NDArray[np.int64],
    *,
    position_fps: float | None,
    first: tuple[float, int] | None = None,
) -> npt.NDArray[np.int64]:
    """The position of each frame, from 0 at the first frame of its manifest row.

    Time in units of 1 / `position_fps`, so that videos of different frame rates agree; or the frame
    index where `position_fps` is None.

    Args:
        timestamps: [T] seconds.
        frame_index: [T].
        position_fps: positions a second.
        first: timestamp and index of the row's first frame, where the frames are some of its clip.

    Returns:
        [T] int64.

    >>> times, index = np.array([2.0, 2.04, 2.08]), np.array([60, 61, 63])
    >>> frame_positions(times, index, position_fps=25).tolist()
    [0, 1, 2]
    >>> frame_positions(times, index, position_fps=None).tolist()
    [0, 1, 3]
    """
    first_time, first_index = first or (timestamps[0], frame_index[0])
    if position_fps is None:
        return np.asarray(frame_index - first_index, dtype=np.int64)
    return np.rint((timestamps - first_time) * position_fps).astype(np.int64)


def collate(samples: Sequence[Sample]) -> Batch:
    """Pads clips to the longest of them: with zeros, position 0, and False in the mask."""
    lengths = [len(sample.features) for sample in samples]
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    return Batch(
        features=torch.nn.utils.rnn.pad_sequence([s.features for s in samples], batch_first=True),
        positions=torch.nn.utils.rnn.pad_sequence([s.positions for s in samples], batch_first=True),
        mask=mask,
        targets=torch.stack([sample.target for sample in samples]),
        video_ids=tuple(sample.video_id for sample in samples),
    )
