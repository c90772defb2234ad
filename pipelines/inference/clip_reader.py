"""Clips decoded from video files on the fly, in place of stored features (finetuning)."""

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ...extract.augmentation import Augmentation
from ...extract.backbone import evaluation_transform
from ...extract.cores import num_cpus
from ...extract.decode.cuts import cut_clip
from ...extract.decode.frames import Decoder, Outcome
from ...extract.decode.index import Unreadable, VideoIndex, read_timelines, write_index
from ...extract.decode.pool import DecoderPool
from ...extract.decode.probe import Timeline
from ...extract.decode.protocol import Chunk, DecodeRequest, Selected
from ...extract.decode.sampling import Sampling, select
from ...extract.preprocessing import Preprocessing
from ...manifests.atomic import FileState, file_state
from ...manifests.failures import Failure
from ...manifests.manifest import VideoRow
from ...temporal.dataset import Read
from ...temporal.time_table import Clips, Frames, Times
from ..console import CountProgress

PROCESSES_PER_CPU = 2  # processes that read timelines wait for the disk half of the time
WAIT_SECONDS = 1.0
NUM_AUGMENTATIONS = 2**32  # different augmentations of a clip


@dataclass(frozen=True, kw_only=True)
class IndexedVideos:
    """Rows of a manifest with the timelines of their files.

    Attributes:
        rows: video_id → row.
        index: index of the files.
        sampling: frames taken of each row.
        decoder: decoder option; `auto` is PyAV for single frames.
    """

    rows: dict[str, VideoRow]
    index: VideoIndex
    sampling: Sampling
    decoder: Decoder = "auto"

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """Return frame_index [T] and timestamps [T] of a row's frames."""
        row = self.rows[video_id]
        times = self.index.timeline(row.path).times
        frame_index = select(times, self.sampling, start=row.start, end=row.end)
        return frame_index, times[frame_index]

    def num_frames(self, video_id: str) -> int:
        """Return T of a row, without reading the timeline if the row is its whole file."""
        row = self.rows[video_id]
        if row.start is None and row.end is None and self.sampling == Sampling():
            return self.index.num_presented(row.path)
        return len(self.times(video_id)[0])

    def state(self, video_id: str) -> FileState:
        """Return the size and time of a row's file when it was indexed."""
        return self.index.state(self.rows[video_id].path)

    def requests(self, video_id: str, frame_index: Frames) -> list[DecodeRequest]:
        """Return requests that decode some frames of a row, one for each piece of its file.

        Args:
            video_id: id of the row.
            frame_index: indices of the frames in the file, increasing.
        """
        row = self.rows[video_id]
        pieces = cut_clip(self.index.timeline(row.path), frame_index.tolist())
        return [
            DecodeRequest(row.path, cut=cut, frames=piece, decoder=self.decoder)
            for cut, piece in pieces
        ]

    def failures(self) -> list[Failure]:
        """Return the rows without frames (failed) and those of truncated files (partial)."""
        return list(filter(None, map(self._failure, self.rows.values())))

    def _failure(self, row: VideoRow) -> Failure | None:
        fault = self.index.fault(row.path)
        if fault is not None:
            return Failure(row.video_id, row.path, "failed", fault.reason, fault.message, 0)
        num_lost = self.index.num_beyond_end(row.path)
        if not self.num_frames(row.video_id):
            until = "…" if row.end is None else f"{row.end:g}"
            message = (
                f"{row.path}: no frame is in [{row.start or 0:g}, {until}) s; correct its span"
            )
            reason = "truncated" if num_lost else "no-frames"
            return Failure(row.video_id, row.path, "failed", reason, message, num_lost)
        if num_lost and (row.end is None or row.end > self.index.timeline(row.path).times[-1]):
            message = f"{row.path}: ends before {num_lost} of its frames; copy it again"
            return Failure(row.video_id, row.path, "partial", "truncated", message, num_lost)
        return None


class VideoClipReader:
    """Decodes and augments clips; a `ClipReader`.

    Each thread that reads has a decoder process of its own at that time, so that a file that hangs
    or crashes its decoder costs one clip.

    Args:
        videos: videos to read from.
        preprocessing: preprocessing of the frames for evaluation.
        augmentation: augmentation that replaces the preprocessing; None for evaluation.
    """

    def __init__(
        self,
        videos: IndexedVideos,
        preprocessing: Preprocessing,
        augmentation: Augmentation | None,
    ) -> None:
        self._videos = videos
        self._transform = evaluation_transform(preprocessing, "cpu")
        self._augmentation = augmentation
        self._idle: SimpleQueue[DecoderPool] = SimpleQueue()
        self._busy: set[DecoderPool] = set()

    @property
    def num_views(self) -> int:
        """Number of views: 1, or the number of different augmentations."""
        return 1 if self._augmentation is None else NUM_AUGMENTATIONS

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """Return frame_index [T] and timestamps [T] of a video's frames."""
        return self._videos.times(video_id)

    def read(self, clips: Clips, sizes: Sequence[int]) -> Iterator[Read]:
        """Decode batches of clips, [B, T, 3, h, w] uint8, padded with zeros."""
        yield from map(self._read, clips.batches(sizes))

    def _read(self, clips: Clips) -> Read:
        requests: list[DecodeRequest] = []
        owners: list[int] = []  # number of the clip of each request
        positions: list[dict[int, int]] = []  # for each clip, frame index → position in the clip
        for number, (video_id, frames, _) in enumerate(clips.each()):
            frame_index = self._videos.times(video_id)[0][frames]
            positions.append(
                {index: position for position, index in enumerate(frame_index.tolist())}
            )
            pieces = self._videos.requests(video_id, np.sort(frame_index))
            requests += pieces
            owners += [number] * len(pieces)
        height, width = self._transform.preprocessing.input_size[1:]
        shape = clips.frames.mask.shape
        inputs = torch.zeros(*shape, 3, height, width, dtype=torch.uint8)
        is_lost = torch.ones(shape, dtype=torch.bool)
        faults: dict[int, str] = {}

        def lost(request: int) -> list[int]:
            """Return the positions of a request's frames in its clip."""
            return [positions[owners[request]][index] for index in requests[request].frames or ()]

        pool = self._idle_pool() or DecoderPool()
        self._busy.add(pool)
        try:
            for request, event in pool.decode(requests):
                number = owners[request]
                if isinstance(event, Selected):
                    is_lost[number, lost(request)] = True
                elif isinstance(event, Chunk):
                    decoded = [positions[number][index] for index in event.frame_index]
                    inputs[number, decoded] = self._prepare(event, int(clips.views[number]))
                    is_lost[number, decoded] = False
                elif isinstance(event, Outcome) and event.status != "ok":
                    if event.status == "failed":
                        is_lost[number, lost(request)] = True
                    video_id = clips.video_ids[number]
                    faults.setdefault(number, f"{video_id}: {event.reason}: {event.message}")
        finally:
            self._busy.discard(pool)
        self._idle.put(pool)
        return Read(inputs, is_lost, tuple(faults.values()))

    def _prepare(self, frames: Chunk, seed: int) -> Tensor:
        """Convert n frames to inputs [n, 3, h, w], uint8."""
        if self._augmentation is not None:
            return self._augmentation(torch.from_numpy(frames.images), seed)
        return self._transform(frames.images)[:, 0]

    def _idle_pool(self) -> DecoderPool | None:
        with contextlib.suppress(Empty):
            return self._idle.get_nowait()
        return None

    def close(self) -> None:
        """Kill the decoder processes; threads that wait for them get a StoppedError."""
        for pool in list(self._busy):
            pool.stop()
        self._busy.clear()
        while (idle := self._idle_pool()) is not None:
            idle.close()


def index_videos(
    path: Path, rows: Iterable[VideoRow], console: Console, *, is_writer: bool = True
) -> VideoIndex:
    """Return an index of the rows' files as they are now, and write it unless it exists.

    Args:
        path: path of the index.
        rows: rows of the manifest.
        console: for progress.
        is_writer: whether to write the index, or else to wait until another process has.
    """
    states = {row.path: file_state(row.path) for row in rows}
    while not (index := VideoIndex(path)).covers(states) and not is_writer:
        time.sleep(WAIT_SECONDS)
    if index.covers(states):
        return index
    with CountProgress("index", "videos", len(states), console) as progress:

        def counted() -> Iterator[tuple[str, Timeline | Unreadable]]:
            for one in read_timelines(list(states), PROCESSES_PER_CPU * num_cpus()):
                progress.count()
                yield one

        write_index(path, states, counted())
    return VideoIndex(path)
