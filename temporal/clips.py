"""Clips: which frames of a video make a training or evaluation sample, and their positions.

Training clips are drawn at random; evaluation clips lie evenly over the video. Frames are chosen by
their timestamps, so that a clip of 5.12 s has the same length at every frame rate.
"""

import math
import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..manifests.times import frame_rate, nearest

Spacing = Literal["even", "linspace"]
Times = npt.NDArray[np.float64]
Frames = npt.NDArray[np.int64]


class Clip(NamedTuple):
    """Frames of a video to read.

    Attributes:
        video_id: id of the video.
        frames: [t] numbers of the frames among those that the reader has of the video, in the
            order in which they are to be returned.
        view: number of a stored view; for frames that are decoded, the seed of an augmentation.
    """

    video_id: str
    frames: Frames
    view: int


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """Clip sampling options.

    Attributes:
        num_frames: number of frames, evenly spaced over the clip's seconds; None for every frame of
            the video.
        seconds: length of a clip.
        jitter: share of the gap between two frames; each frame's time moves at random by up to half
            of it. With 1, a frame lies anywhere in its equal piece of the clip.
        spacing: `even`, the middles of equal pieces of the clip; or `linspace`, as in PySlowFast:
            frames count from the clip's first one, and so do positions; a clip that is longer than
            its video repeats the last frame.
        drop: probability with which each frame of a clip is left out; at least one frame stays.
    """

    num_frames: int | None = 16
    seconds: float = 5.12
    jitter: float = 0.0
    spacing: Spacing = "even"
    drop: float = 0.0


ALL_FRAMES = ClipSampling(num_frames=None)


def draw_clip(timestamps: Times, sampling: ClipSampling, generator: np.random.Generator) -> Frames:
    """Draw a random clip: the frames nearest to evenly spaced times.

    A clip of a shorter video spans the whole video. A frame that is nearest to two times is taken
    once.

    Args:
        timestamps: [T] seconds, increasing.
        sampling: clip sampling options.
        generator: source of randomness.

    Returns:
        [t] indices into `timestamps`, increasing, and different but for `linspace`; t <=
        `sampling.num_frames`, if that is given.
    """
    if sampling.num_frames is None:
        frames = np.arange(len(timestamps))
    elif sampling.spacing == "linspace":
        frames = _linspace(timestamps, sampling, generator)
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


def even_clip(timestamps: Times, sampling: ClipSampling, number: int, num_clips: int) -> Frames:
    """Return one of several clips that lie evenly over a video; a single clip lies in the middle.

    >>> clip = ClipSampling(num_frames=2, seconds=2.0)
    >>> [even_clip(np.arange(7.0), clip, number, 3).tolist() for number in range(3)]
    [[0, 1], [2, 3], [4, 5]]
    >>> even_clip(np.arange(7.0), clip, 0, 1).tolist()
    [2, 3]

    Args:
        timestamps: [T] seconds, increasing.
        sampling: clip sampling options, of which jitter and drop are ignored.
        number: number of the clip, from 0.
        num_clips: number of clips.

    Returns:
        [t] indices into `timestamps`, increasing.
    """
    if sampling.num_frames is None:
        return np.arange(len(timestamps))
    if sampling.spacing == "linspace":
        # The authors' test: one clip from the beginning, whose frames repeat in a shorter video.
        last = min(float(len(timestamps)), _clip_frames(timestamps, sampling) - 1)
        steps = np.linspace(0, max(last, 0.0), sampling.num_frames)
        return np.minimum(steps, len(timestamps) - 1).astype(np.int64)
    span = _span(timestamps, sampling)
    room = float(timestamps[-1] - timestamps[0]) - span
    share = number / (num_clips - 1) if num_clips > 1 else 0.5
    return _evenly(timestamps, sampling.num_frames, float(timestamps[0]) + share * room, span, 0.0)


def _linspace(timestamps: Times, sampling: ClipSampling, generator: np.random.Generator) -> Frames:
    """Draw a clip as the authors' decoder does (bomri/SlowFast, slowfast/datasets/decoder.py)."""
    assert sampling.num_frames is not None
    num_frames, clip_frames = len(timestamps), _clip_frames(timestamps, sampling)
    start = math.ceil(generator.random() * max(num_frames - clip_frames, 0.0))
    steps = np.linspace(0, max(clip_frames - 1, 0.0), sampling.num_frames)
    return np.minimum(start + steps.astype(np.int64), num_frames - 1)


def _clip_frames(timestamps: Times, sampling: ClipSampling) -> float:
    """Return the number of a video's frames in the seconds of a clip, parts of one included."""
    rate = frame_rate(timestamps)
    return sampling.seconds * (rate if np.isfinite(rate) else 1.0)


def _span(timestamps: Times, sampling: ClipSampling) -> float:
    return min(sampling.seconds, float(timestamps[-1] - timestamps[0]))


def _evenly(
    timestamps: Times, num_frames: int, start: float, span: float, moves: float | Times
) -> Frames:
    # Midpoints of equal pieces, so that a clip as long as the video is not shifted at either end.
    return nearest(timestamps, start + (np.arange(num_frames) + 0.5 + moves) * span / num_frames)


def generator_of(seed: int, draw: int, video_id: str) -> np.random.Generator:
    """Return the random generator of one sample, which depends on the arguments alone.

    Args:
        seed: seed of the clips.
        draw: draw of the video: the epoch in training.
        video_id: id of the video.
    """
    return np.random.default_rng((seed, draw, zlib.crc32(video_id.encode())))


def frame_positions(
    timestamps: Times,
    frame_index: Frames,
    *,
    position_fps: float | None,
    first: tuple[float, int] | None = None,
) -> npt.NDArray[np.int64]:
    """Return the position of each frame, counted from the first frame of its manifest row.

    A position is the time in units of 1 / `position_fps`, so that videos of different frame rates
    agree, or the frame index if `position_fps` is None.

    Args:
        timestamps: [T] seconds.
        frame_index: [T] frame indices.
        position_fps: positions per second; None for frame indices.
        first: timestamp and frame index of the row's first frame, required if `timestamps` does not
            begin with it, as in a clip; by default, the first of those given.

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
