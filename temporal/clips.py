"""Which frames of a video make a clip: drawn at random for training, or laid evenly for evaluation.

Clips are chosen by timestamps, so a clip of 5.12 s is as long at every frame rate.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..manifests.times import nearest

Times = npt.NDArray[np.float64]
Frames = npt.NDArray[np.int64]


class Clip(NamedTuple):
    """Frames [t] of a video, in the order in which they are wanted, and one of its views.

    A view is one of those that are stored; of frames that are decoded, the seed of an augmentation.
    """

    video_id: str
    frames: Frames
    view: int


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """How clips are taken.

    Attributes:
        num_frames: of a clip, evenly over its seconds; None for every frame of the video.
        seconds: length of a clip.
        jitter: moves each frame's time at random by up to half of this share of the gap between two
            frames; with 1, each is anywhere in its piece of the clip.
        drop: probability with which each frame of a clip is left out; one always stays.
    """

    num_frames: int | None = 16
    seconds: float = 5.12
    jitter: float = 0.0
    drop: float = 0.0


WHOLE = ClipSampling(num_frames=None)


def draw_clip(timestamps: Times, sampling: ClipSampling, generator: np.random.Generator) -> Frames:
    """Rows [t] of a random clip, t <= num_frames: the frames nearest to evenly spaced times.

    A video shorter than the clip is taken whole; a frame that is nearest to two times is taken
    once.

    Args:
        timestamps: [T] seconds, increasing.
        sampling: what to draw.
        generator: of the draw.
    """
    if sampling.num_frames is None:
        frames = np.arange(len(timestamps))
    else:
        span = _span(timestamps, sampling)
        room = float(timestamps[-1] - timestamps[0]) - span
        start = float(timestamps[0]) + generator.random() * room
        moves = (generator.random(sampling.num_frames) - 0.5) * sampling.jitter
        frames = _evenly(timestamps, sampling.num_frames, start, span, moves)
    if sampling.drop:
        stays = generator.random(len(frames)) >= sampling.drop
        stays[generator.integers(len(frames))] |= not stays.any()
        frames = frames[stays]
    return frames


def lay_clip(timestamps: Times, sampling: ClipSampling, number: int, num_clips: int) -> Frames:
    """Rows [t] of one of several clips that lie evenly over a video; of one, in its middle.

    >>> clip = ClipSampling(num_frames=2, seconds=2.0)
    >>> [lay_clip(np.arange(7.0), clip, number, 3).tolist() for number in range(3)]
    [[0, 1], [2, 3], [4, 5]]
    >>> lay_clip(np.arange(7.0), clip, 0, 1).tolist()
    [2, 3]

    Args:
        timestamps: [T] seconds, increasing.
        sampling: frames and seconds of a clip; all frames where it says so.
        number: which of the clips.
        num_clips: how many there are.
    """
    if sampling.num_frames is None:
        return np.arange(len(timestamps))
    span = _span(timestamps, sampling)
    room = float(timestamps[-1] - timestamps[0]) - span
    share = number / (num_clips - 1) if num_clips > 1 else 0.5
    return _evenly(timestamps, sampling.num_frames, float(timestamps[0]) + share * room, span, 0.0)


def _span(timestamps: Times, sampling: ClipSampling) -> float:
    return min(sampling.seconds, float(timestamps[-1] - timestamps[0]))


def _evenly(
    timestamps: Times, num_frames: int, start: float, span: float, moves: float | Times
) -> Frames:
    # Midpoints of equal pieces: a clip as long as the video still moves by no frame at either end.
    return nearest(timestamps, start + (np.arange(num_frames) + 0.5 + moves) * span / num_frames)


def generator_of(seed: int, draw: int, video_id: str) -> np.random.Generator:
    """The randomness of one sample: of (seed, epoch, video_id), and of nothing else."""
    return np.random.default_rng((seed, draw, zlib.crc32(video_id.encode())))
