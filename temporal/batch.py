"""Positions, padding and masks: the only place that pads.

A batch holds clips of different lengths: inputs [B, T, ...], positions [B, T] and a mask [B, T]
that is True where there is a frame. Whatever finite number stands where the mask is False changes
no logit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Batch(NamedTuple):
    """Clips of different lengths, with the number of each one's row in its data set."""

    inputs: Tensor  # features [B, T, D] float32, or frames [B, T, 3, H, W] uint8
    positions: Tensor  # [B, T] int64
    mask: Tensor  # [B, T] bool
    targets: Tensor  # [B] or [B, C], see `temporal/tasks.py`
    numbers: Tensor  # [B] int64
    is_read: Tensor  # [B] bool: False for a clip of which no frame could be read
    faults: tuple[str, ...] = ()  # what could not be read, and why


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


def pad(positions: Sequence[npt.NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Pads clips' positions to the longest of them.

    Returns:
        positions [B, T], 0 where there is no frame, and the mask [B, T].
    """
    lengths = torch.tensor([len(one) for one in positions])
    padded = torch.zeros(len(positions), int(lengths.max()), dtype=torch.int64)
    for row, one in zip(padded, positions, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]
