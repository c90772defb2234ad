"""Clips: which frames of a video make a training or evaluation sample, and their positions.

Training clips are drawn at random; evaluation clips lie evenly over the video. Frames are chosen by
their timestamps, so that a clip of 5.12 s has the same length at every frame rate.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .time_table import Frames, Ragged, Times, TimeTable

Spacing = Literal["even", "linspace", "consecutive"]

# Counters of the random numbers of a sample.
VIEW, START, SPARED, MOVES = range(4)
# Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (2014), figure 16.
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


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
            its video repeats the last frame; or `consecutive` frames, whatever their times, for
            which `seconds` and `jitter` have no meaning: positions count from the first one.
        drop: probability with which each frame of a clip is left out; at least one frame stays.
    """

    num_frames: int | None = 16
    seconds: float = 5.12
    jitter: float = 0.0
    spacing: Spacing = "even"
    drop: float = 0.0


ALL_FRAMES = ClipSampling(num_frames=None)


def draw_clips(
    table: TimeTable, videos: Frames, draws: Frames, sampling: ClipSampling, seed: int
) -> Ragged:
    """Draw random clips: the frames nearest to evenly spaced times.

    A clip of a shorter video spans the whole video. A frame that is nearest to two times is taken
    once. A clip depends on (seed, draw, video) alone.

    Args:
        table: times of the videos.
        videos: [B] numbers of videos.
        draws: [B] draw of each: the epoch in training.
        sampling: clip sampling options.
        seed: seed of the clips.

    Returns:
        numbers of frames in their videos: for each clip at most `sampling.num_frames`, if that is
        given, increasing, and different but for `linspace`.
    """
    keys = _keys(seed, draws, table.seeds[videos])
    num_frames = sampling.num_frames or 0
    if sampling.num_frames is None:
        clips = _all_frames(table.lengths[videos])
    elif sampling.spacing == "linspace":
        clips = _linspace(table, videos, sampling, _uniform(keys, START))
    elif sampling.spacing == "consecutive":
        rooms = np.maximum(0, table.lengths[videos] - num_frames) + 1
        starts = (_uniform(keys, START) * rooms).astype(np.int64)
        clips = consecutive_frames(table, videos, starts, num_frames)
    else:
        starts, spans = _rooms(table, videos, sampling, _uniform(keys, START))
        moves: float | Times = 0.0
        if sampling.jitter:
            moves = _uniform(keys[:, None], MOVES + np.arange(num_frames)) - 0.5
            moves = moves * sampling.jitter
        clips = _evenly(table, videos, num_frames, starts, spans, moves)
    if sampling.drop:
        clips = _without_dropped(clips, keys, MOVES + num_frames, sampling.drop)
    return clips


def draw_views(
    table: TimeTable, videos: Frames, draws: Frames, num_views: int, seed: int
) -> Frames:
    """Draw a view of each clip, [B]."""
    keys = _keys(seed, draws, table.seeds[videos])
    return (_uniform(keys, VIEW) * num_views).astype(np.int64)


def even_clips(
    table: TimeTable, videos: Frames, numbers: Frames, sampling: ClipSampling, num_clips: int
) -> Ragged:
    """Return clips that lie evenly over their videos; a single clip lies in the middle.

    Args:
        table: times of the videos.
        videos: [B] numbers of videos.
        numbers: [B] number of the clip of each, from 0.
        sampling: clip sampling options, of which jitter and drop are ignored.
        num_clips: number of clips of a video.

    Returns:
        numbers of frames in their videos, increasing.
    """
    if sampling.num_frames is None:
        return _all_frames(table.lengths[videos])
    if sampling.spacing == "linspace":
        # The authors' test: one clip from the beginning, whose frames repeat in a shorter video.
        lengths = table.lengths[videos].astype(np.float64)
        clip_frames = sampling.seconds * table.rates(videos)
        limits = np.maximum(np.minimum(lengths, clip_frames - 1), 0.0)
        steps = _steps(limits, sampling.num_frames)
        frames = np.minimum(steps, lengths[:, None] - 1).astype(np.int64)
        return _rectangle(frames)
    shares = numbers / (num_clips - 1) if num_clips > 1 else np.full(len(videos), 0.5)
    starts, spans = _rooms(table, videos, sampling, shares)
    return _evenly(table, videos, sampling.num_frames, starts, spans, 0.0)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of consecutive frames that cover a video, to give logits to each of its frames.

    Attributes:
        num_frames: number of frames of a window; None for whole videos.
    """

    num_frames: int | None = None

    @property
    def overlap(self) -> int:
        """Number of frames that a window shares with the next one."""
        return (self.num_frames or 0) // 3

    def counts(self, lengths: Frames) -> Frames:
        """Return the number of windows of videos of L frames, [N]."""
        if self.num_frames is None:
            return np.ones_like(lengths)
        step = self.num_frames - self.overlap
        return 1 + np.maximum(0, -(-(lengths - self.num_frames) // step))

    def starts(self, lengths: Frames, numbers: Frames) -> Frames:
        """Return the first frames of windows [B], given their videos' lengths and their numbers.

        The last window ends with its video.

        >>> Windows(num_frames=6).starts(np.full(4, 15), np.arange(4)).tolist()
        [0, 4, 8, 9]
        """
        if self.num_frames is None:
            return np.zeros_like(numbers)
        step = self.num_frames - self.overlap
        return np.minimum(numbers * step, np.maximum(0, lengths - self.num_frames))

    def weights(self, start: int, count: int, length: int) -> Times:
        """Return the weight of each frame of a window in the mean over windows, [count].

        It is 0 in the third of an overlap that is next to where the window cuts the video, since
        there the model sees too little of what is around a frame.

        >>> Windows(num_frames=9).weights(0, 9, 20).tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
        """
        weights = np.ones(count)
        cut = self.overlap // 3
        if start and cut:
            weights[:cut] = 0.0
        if start + count < length and cut:
            weights[-cut:] = 0.0
        return weights


def consecutive_frames(
    table: TimeTable, videos: Frames, starts: Frames, num_frames: int | None
) -> Ragged:
    """Return clips of consecutive frames, at most `num_frames` each, from given first frames."""
    counts = table.lengths[videos] - starts
    if num_frames is not None:
        counts = np.minimum(counts, num_frames)
    clips = _all_frames(counts)
    return Ragged(clips.values + np.repeat(starts, counts), clips.offsets)


def draw_clip(timestamps: Times, sampling: ClipSampling, seed: int) -> Frames:
    """Draw one random clip of a video, as `draw_clips`; return indices into `timestamps` [T]."""
    table = TimeTable.of([""], lambda _: (np.empty(0, np.int64), timestamps))
    return draw_clips(table, np.array([0]), np.array([0]), sampling, seed).values


def even_clip(timestamps: Times, sampling: ClipSampling, number: int, num_clips: int) -> Frames:
    """Return one of several clips that lie evenly over a video, as `even_clips`.

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
    table = TimeTable.of([""], lambda _: (np.empty(0, np.int64), timestamps))
    return even_clips(table, np.array([0]), np.array([number]), sampling, num_clips).values


def _all_frames(lengths: Frames) -> Ragged:
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    return Ragged(np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths), offsets)


def _rectangle(frames: Frames) -> Ragged:
    num_clips, num_frames = frames.shape
    return Ragged(frames.ravel(), np.arange(num_clips + 1) * num_frames)


def _rooms(
    table: TimeTable, videos: Frames, sampling: ClipSampling, shares: Times
) -> tuple[Times, Times]:
    """Return start and length of clips [B] in seconds, by the share of the room before each."""
    first = table.timestamps[table.starts[videos]]
    last = table.timestamps[table.starts[videos] + table.lengths[videos] - 1]
    spans = np.minimum(sampling.seconds, last - first)
    return first + shares * (last - first - spans), spans


def _evenly(
    table: TimeTable,
    videos: Frames,
    num_frames: int,
    starts: Times,
    spans: Times,
    moves: float | Times,
) -> Ragged:
    # Midpoints of equal pieces, so that a clip as long as the video is not shifted at either end.
    targets = (np.arange(num_frames) + 0.5 + moves) * spans[:, None] / num_frames
    frames = _nearest(table, videos, starts[:, None] + targets)
    is_new = np.ones(frames.shape, dtype=bool)
    is_new[:, 1:] = frames[:, 1:] != frames[:, :-1]
    return Ragged.of(frames[is_new], is_new.sum(1))


def _nearest(table: TimeTable, videos: Frames, targets: Times) -> Frames:
    """Return the frames nearest to times [B, n] of videos [B], as `times.nearest_each`.

    At a steady rate a frame follows from its time; the others are searched for.
    """
    begin, length = table.starts[videos], table.lengths[videos]
    since_first = targets - table.timestamps[begin][:, None]
    guess = np.rint(since_first * table.rates(videos)[:, None]).astype(np.int64)
    frames = np.clip(guess, 0, (length - 1)[:, None]) + begin[:, None]
    last = (begin + length - 1)[:, None]
    times = table.timestamps
    before = targets - times[np.maximum(frames - 1, begin[:, None])]
    here, after = targets - times[frames], times[np.minimum(frames + 1, last)] - targets
    is_nearest = (before > -here) | (frames == begin[:, None])
    is_nearest &= (here <= after) | (frames == last)
    if not is_nearest.all():
        rows, _ = np.nonzero(~is_nearest)
        frames[~is_nearest] = _search(times, begin[rows], length[rows], targets[~is_nearest])
    return frames - begin[:, None]


def _search(times: Times, begin: Frames, length: Frames, targets: Times) -> Frames:
    """Return the numbers in `times` nearest to targets [K], each in a range of its own."""
    low, high, last = begin, begin + length, begin + length - 1
    # Binary searches side by side; a search that has ended stays where it is.
    for _ in range(int(length.max()).bit_length()):
        middle = (low + high) >> 1
        is_before = (times[np.minimum(middle, last)] < targets) & (low < high)
        low, high = np.where(is_before, middle + 1, low), np.where(is_before, high, middle)
    after, before = np.minimum(low, last), np.maximum(np.minimum(low, last) - 1, begin)
    is_earlier = targets - times[before] <= times[after] - targets
    return np.asarray(np.where(is_earlier, before, after), dtype=np.int64)


def _linspace(table: TimeTable, videos: Frames, sampling: ClipSampling, shares: Times) -> Ragged:
    """Draw clips as the authors' decoder does (bomri/SlowFast, slowfast/datasets/decoder.py)."""
    assert sampling.num_frames is not None
    lengths = table.lengths[videos]
    clip_frames = sampling.seconds * table.rates(videos)
    starts = np.ceil(shares * np.maximum(lengths - clip_frames, 0.0)).astype(np.int64)
    steps = _steps(np.maximum(clip_frames - 1, 0.0), sampling.num_frames).astype(np.int64)
    return _rectangle(np.minimum(starts[:, None] + steps, lengths[:, None] - 1))


def _steps(limits: Times, num_steps: int) -> Times:
    """Return num_steps evenly spaced values from 0 to each limit, [B, num_steps]."""
    return np.linspace(np.zeros(len(limits)), limits, num_steps, axis=1)


def _without_dropped(
    clips: Ragged, keys: npt.NDArray[np.uint64], counter: int, drop: float
) -> Ragged:
    """Leave frames out at random, but at least one of a clip stays."""
    counts, begins = clips.counts, clips.offsets[:-1]
    places = np.arange(len(clips.values)) - np.repeat(begins, counts)
    counters = (counter + places).astype(np.uint64)
    stays = _uniform(np.repeat(keys, counts), counters) >= drop
    chosen = begins + (_uniform(keys, SPARED) * counts).astype(np.int64)
    stays[chosen] |= np.add.reduceat(stays, begins) == 0
    return Ragged.of(clips.values[stays], np.add.reduceat(stays, begins))


def _keys(seed: int, draws: Frames, video_seeds: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return a key of each sample [B], from which its random numbers follow."""
    start = np.full(len(draws), seed & (2**64 - 1), dtype=np.uint64)
    return _mixed(_mixed(_mixed(start) + draws.astype(np.uint64)) + video_seeds)


def _uniform(keys: npt.NDArray[np.uint64], counters: Any) -> Times:
    """Return random numbers in [0, 1), of keys and counters that are broadcast together."""
    bits = _mixed(keys + np.asarray(counters, dtype=np.uint64) * GOLDEN)
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53, dtype=np.float64)


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the next output of SplitMix64 in each state."""
    bits = bits + GOLDEN
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)), dtype=np.uint64)


def generator_of(seed: int, video_id: str) -> np.random.Generator:
    """Return the random generator of a video's shuffled frames."""
    return np.random.default_rng((seed, 0, zlib.crc32(video_id.encode())))


def clip_positions(
    table: TimeTable,
    videos: Frames,
    clips: Ragged,
    position_fps: float | None,
    *,
    from_clip: bool = False,
) -> Ragged:
    """Return the positions of the frames of clips, as `frame_positions`.

    Args:
        table: times of the videos.
        videos: [B] number of each clip's video.
        clips: numbers of the frames in their videos.
        position_fps: positions per second; None for frame indices.
        from_clip: count from the first frame of a clip instead of that of its video.
    """
    begins = table.starts[videos]
    counts = clips.counts
    frames = clips.values + np.repeat(begins, counts)
    firsts = frames[clips.offsets[:-1]] if from_clip else begins
    values: Any = table.timestamps
    if position_fps is None:
        assert table.frame_index is not None
        values = table.frame_index
    since_first = values[frames] - np.repeat(values[firsts], counts)
    if position_fps is not None:
        since_first = np.rint(since_first * position_fps).astype(np.int64)
    return replace(clips, values=since_first)


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
