"""Clips decoded from video files on the fly: what finetuning reads in place of stored features."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from ...extract.augmentation import Augmentation
from ...extract.backbone import evaluation_transform
from ...extract.choices import Decoder
from ...extract.decode.cuts import cut_clip
from ...extract.decode.frames import Outcome
from ...extract.decode.index import Unreadable, VideoIndex, survey, write_index
from ...extract.decode.pool import DecodingChildren
from ...extract.decode.protocol import Chunk, Decode, Restarted
from ...extract.decode.sampling import Sampling, select
from ...extract.decode.timeline import Timeline
from ...extract.preprocessing import Preprocessing
from ...manifests.atomic import FileState, file_state
from ...manifests.manifest import VideoRow
from ...temporal.clips import Clip, Frames, Times
from ...temporal.dataset import Read
from ..console import CountProgress
from ..extraction.failures import Failure
from ..extraction.planning import CHILDREN_PER_CPU
from ..processors import num_cpus

WAITING_SECONDS = 1.0
NUM_AUGMENTATIONS = 2**32  # ways to look at a clip


@dataclass(frozen=True, kw_only=True)
class IndexedVideos:
    """Rows of a manifest with the timelines of their files.

    Attributes:
        rows: by video_id.
        index: of their files.
        sampling: which of a row's frames are used.
        decoder: that decodes them; `auto` is PyAV for single frames.
    """

    rows: dict[str, VideoRow]
    index: VideoIndex
    sampling: Sampling
    decoder: Decoder = "auto"

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """Ranks in the file [T] and timestamps [T] of a row's frames."""
        row = self.rows[video_id]
        times = self.index.timeline(row.path).times
        ranks = select(times, self.sampling, start=row.start, end=row.end)
        return ranks, times[ranks]

    def num_frames(self, video_id: str) -> int:
        """T of a row; without reading its timeline where that is the whole file."""
        row = self.rows[video_id]
        if row.start is None and row.end is None and self.sampling == Sampling():
            return self.index.num_presented(row.path)
        return len(self.times(video_id)[0])

    def state(self, video_id: str) -> FileState:
        """Of a row's file, when it was indexed."""
        return self.index.state(self.rows[video_id].path)

    def requests(self, video_id: str, ranks: Frames) -> list[Decode]:
        """What is to be decoded for some frames of a row, increasing."""
        row = self.rows[video_id]
        pieces = cut_clip(self.index.timeline(row.path), ranks.tolist())
        return [
            Decode(row.path, cut=cut, frames=piece, decoder=self.decoder) for cut, piece in pieces
        ]

    def failures(self) -> list[Failure]:
        """Rows without frames, and rows with fewer than their file's index promises."""
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


class VideoReader:
    """Decodes clips, and augments them; a `ClipReader`.

    Each process that reads has a decoding child of its own, so that a file that hangs or crashes
    its decoder costs a clip.

    Args:
        videos: to read from.
        preprocessing: what is done to frames in evaluation.
        augmentation: what is done instead; None for none.
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
        # By process: those that a fork inherits are kept, as whoever forgets them ends them.
        self._children: dict[int, DecodingChildren] = {}

    @property
    def num_views(self) -> int:
        """1, or as many as there are seeds of an augmentation."""
        return 1 if self._augmentation is None else NUM_AUGMENTATIONS

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """Ranks in the file [T] and timestamps [T] of a video's frames."""
        return self._videos.times(video_id)

    def num_frames(self, video_id: str) -> int:
        """T of a video."""
        return self._videos.num_frames(video_id)

    def read(self, clips: Sequence[Clip]) -> Read:
        """Frames [B, T, 3, h, w] uint8, padded with black."""
        requests: list[Decode] = []
        owners: list[int] = []
        places: list[dict[int, int]] = []  # of each clip: rank → place in it
        for number, (video_id, frames, _) in enumerate(clips):
            ranks = self._videos.times(video_id)[0][frames]
            places.append({rank: place for place, rank in enumerate(ranks.tolist())})
            pieces = self._videos.requests(video_id, np.sort(ranks))
            requests += pieces
            owners += [number] * len(pieces)
        height, width = self._transform.preprocessing.input_size[1:]
        longest = max(len(frames) for _, frames, _ in clips)
        inputs = torch.zeros(len(clips), longest, 3, height, width, dtype=torch.uint8)
        is_lost = torch.ones(len(clips), longest, dtype=torch.bool)
        faults: dict[int, str] = {}
        for request, event in self._child().run(requests):
            number = owners[request]
            if isinstance(event, Chunk):
                rows = [places[number][rank] for rank in event.frame_index]
                images = torch.from_numpy(event.images)
                inputs[number, rows] = self._prepare(images, clips[number].view)
                is_lost[number, rows] = False
            elif isinstance(event, Restarted):
                again = requests[request].frames or ()
                is_lost[number, [places[number][rank] for rank in again]] = True
            elif isinstance(event, Outcome) and event.status != "ok":
                faults.setdefault(
                    number, f"{clips[number].video_id}: {event.reason}: {event.message}"
                )
        return Read(inputs, is_lost, tuple(faults.values()))

    def _prepare(self, images: Tensor, seed: int) -> Tensor:
        """[n, H, W, 3] → [n, 3, h, w], uint8."""
        if self._augmentation is not None:
            return self._augmentation(images, seed)
        return self._transform.resize(images)[:, 0]

    def _child(self) -> DecodingChildren:
        if os.getpid() not in self._children:
            self._children[os.getpid()] = DecodingChildren()
        return self._children[os.getpid()]

    def close(self) -> None:
        """Ends this process's decoding child; it starts again when it is needed."""
        self._child().close()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_children": {}}


def index_videos(
    path: Path, rows: Iterable[VideoRow], console: Console, *, is_maker: bool = True
) -> VideoIndex:
    """The index of the rows' files as they are now; made, unless it is there.

    Args:
        path: of the index.
        rows: of the manifest.
        console: for how far it is.
        is_maker: make it; else wait until another process has made it, however long that takes.
    """
    states = {row.path: file_state(row.path) for row in rows}
    while not (index := VideoIndex(path)).covers(states) and not is_maker:
        time.sleep(WAITING_SECONDS)
    if index.covers(states):
        return index
    with CountProgress("index", "videos", len(states), console) as progress:

        def counted() -> Iterator[tuple[str, Timeline | Unreadable]]:
            for one in survey(list(states), CHILDREN_PER_CPU * num_cpus()):
                progress.count()
                yield one

        write_index(path, states, counted())
    return VideoIndex(path)
