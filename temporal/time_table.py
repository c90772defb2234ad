"""Times of many videos, and clips of their frames, end to end in single arrays.

Rows of different lengths lie end to end (`Ragged`), so that many clips are chosen and read without
a loop over them: `clips.py` draws their frames from the times of all videos (`TimeTable`), and a
reader takes what was drawn (`Clips`).
"""

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Times = npt.NDArray[np.float64]
Frames = npt.NDArray[np.int64]


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
        """Mask of the values in rows that are padded to the longest one, [B, T]."""
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
