"""Clips: which frames of a video make a training or evaluation sample, and their positions.

Training clips are drawn at random; evaluation clips lie evenly over the video. Frames are chosen by
their timestamps, so that a clip of 5.12 s has the same length at every frame rate.
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Spacing = Literal["even", "linspace"]
Times = npt.NDArray[np.float64]
Frames = npt.NDArray[np.int64]

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
            its video repeats the last frame.
        drop: probability with which each frame of a clip is left out; at least one frame stays.
    """

    num_frames: int | None = 16
    seconds: float = 5.12
    jitter: float = 0.0
    spacing: Spacing = "even"
    drop: float = 0.0


ALL_FRAMES = ClipSampling(num_frames=None)


@dataclass(frozen=True, eq=False)
class Ragged:
    """Rows of different lengths, end to end: row b is values[offsets[b] : offsets[b + 1]].

    Attributes:
        values: [K].
        offsets: [B + 1].
    """

    values: Frames
    offsets: Frames

    @property
    def counts(self) -> Frames:
        """Length of each row, [B]."""
        return self.offsets[1:] - self.offsets[:-1]

    @cached_property
    def width(self) -> int | None:
        """Length of all rows; None if they differ."""
        width = int(self.offsets[1]) if len(self.offsets) > 1 else 0
        return width if bool((self.counts == width).all()) else None

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """Where a row has values if it is padded to the longest one, [B, T]."""
        counts = self.counts
        return np.arange(int(counts.max())) < counts[:, None]

    def rows(self, begin: int, end: int) -> "Ragged":
        """Return the rows [begin, end)."""
        offsets = self.offsets[begin : end + 1]
        return Ragged(self.values[offsets[0] : offsets[-1]], offsets - offsets[0])

    def padded(self, sizes: Iterable[int]) -> Iterator[tuple[Frames, npt.NDArray[np.bool_]]]:
        """Yield batches of rows, padded with 0 to their longest one, [B, T], and their masks.

        Args:
            sizes: number of rows in each batch.
        """
        end = 0
        if self.width is not None:
            values = self.values.reshape(-1, self.width)
            is_value = np.ones(values.shape, dtype=bool)
        for size in sizes:
            begin, end = end, end + size
            if self.width is not None:
                yield values[begin:end], is_value[begin:end]
                continue
            rows = self.rows(begin, end)
            mask = rows.mask
            padded = np.zeros(mask.shape, dtype=rows.values.dtype)
            padded[mask] = rows.values
            yield padded, mask

    @classmethod
    def of(cls, values: Frames, counts: Frames) -> "Ragged":
        """Create rows of given lengths [B]."""
        return cls(values, np.concatenate(([0], np.cumsum(counts))))


class Clips(NamedTuple):
    """Clips to read: frames of videos.

    Attributes:
        video_ids: id of each clip's video, [B].
        frames: numbers of the frames among those that the reader has of a video, in the order in
            which they are to be returned.
        views: [B] numbers of stored views; for frames that are decoded, seeds of an augmentation.
    """

    video_ids: list[str]
    frames: Ragged
    views: Frames

    def rows(self, begin: int, end: int) -> "Clips":
        """Return the clips [begin, end)."""
        video_ids, views = self.video_ids[begin:end], self.views[begin:end]
        return Clips(video_ids, self.frames.rows(begin, end), views)

    def batches(self, sizes: Iterable[int]) -> Iterator["Clips"]:
        """Yield the clips of each batch, given the number of clips in each."""
        end = 0
        for size in sizes:
            begin, end = end, end + size
            yield self.rows(begin, end)

    def each(self) -> Iterator[tuple[str, Frames, int]]:
        """Yield video_id, frames and view of each clip."""
        parts = np.split(self.frames.values, self.frames.offsets[1:-1])
        yield from zip(self.video_ids, parts, self.views.tolist(), strict=True)

    @classmethod
    def of(cls, clips: Iterable[tuple[str, Frames, int]]) -> "Clips":
        """Create clips of video_id, frames and view of each."""
        video_ids, frames, views = zip(*clips, strict=True)
        counts = np.array([len(one) for one in frames])
        return cls(list(video_ids), Ragged.of(np.concatenate(frames), counts), np.array(views))


@dataclass(frozen=True, kw_only=True, eq=False)
class TimeTable:
    """Times of N videos, end to end, to choose the frames of many clips at once.

    Attributes:
        starts: [N] number of a video's first frame.
        lengths: [N] number of its frames.
        timestamps: [F] seconds, increasing in each video.
        frame_index: [F]; None if positions are not counted in frames.
        seeds: [N] uint64, hashes of the ids.
    """

    starts: Frames
    lengths: Frames
    timestamps: Times
    frame_index: Frames | None
    seeds: npt.NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        video_ids: Sequence[str],
        times: Callable[[str], tuple[Frames, Times]],
        *,
        with_frame_index: bool = False,
    ) -> "TimeTable":
        """Create the table from the frame_index and timestamps of each video."""
        found = [times(video_id) for video_id in video_ids]
        lengths = np.array([len(one) for _, one in found], dtype=np.int64)
        indices = [one for one, _ in found] if with_frame_index else []
        return cls(
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            timestamps=np.concatenate([np.empty(0), *(one for _, one in found)]),
            frame_index=np.concatenate(indices) if indices else None,
            seeds=np.array([zlib.crc32(one.encode()) for one in video_ids], dtype=np.uint64),
        )

    def rates(self, videos: Frames) -> Times:
        """Return frames per second of videos [B]; 1 if undefined, as in `times.frame_rate`."""
        starts, lengths = self.starts[videos], self.lengths[videos]
        spans = self.timestamps[starts + lengths - 1] - self.timestamps[starts]
        return np.where(spans > 0, (lengths - 1) / np.where(spans > 0, spans, 1.0), 1.0)


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
