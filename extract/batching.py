"""Batches of frames across videos: filled from decoded chunks, run, and divided again by video.

A frame's features may depend, in their last bits, on its position in a batch. Positions follow from
the requests alone: if a video must be decoded again, all videos start again (`DecodeAgain`).
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..manifests.errors import BackboneError, FeaturesError
from .backbone import Backbone, PendingFeatures
from .decode.frames import Outcome
from .decode.protocol import Chunk, DecodeEvent, Selected

T = TypeVar("T")


@dataclass(frozen=True)
class TaskProgress:
    """Progress of a task since the last report."""

    num_frames: int = 0  # computed
    num_unplanned_frames: int = 0  # beyond the plan's estimate; negative for fewer

    def __add__(self, other: "TaskProgress") -> "TaskProgress":
        return TaskProgress(*np.add(astuple(self), astuple(other)).tolist())


class StageTimer:
    """Adds up the seconds spent in each stage.

    Attributes:
        seconds: stage → seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._start = 0.0

    def __call__(self, stage: str) -> "StageTimer":
        """Return a context whose time counts for a stage."""
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        spent = time.perf_counter() - self._start
        self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + spent

    def while_iterating(self, stage: str, iterator: Iterator[T]) -> Iterator[T]:
        """Yield from an iterator, counting the time that it takes to produce each item."""
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


class ExtractedVideo:
    """Features and times of one request, growing until complete.

    Attributes:
        name: name for messages.
        outcome: result of decoding; None while it goes on.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.outcome: Outcome | None = None
        self._features: list[npt.NDArray[Any]] = []  # [n, V, D] each, in decoding order
        self._frame_index: list[int] = []
        self._timestamps: list[float] = []

    @property
    def is_complete(self) -> bool:
        """Whether decoding has ended and all features are there."""
        return self.outcome is not None and self.num_features == len(self._frame_index)

    @property
    def num_features(self) -> int:
        """Number of frames whose features are computed."""
        return sum(map(len, self._features))

    def add_times(self, frame_index: list[int], timestamps: list[float]) -> None:
        """Note frames whose features will follow."""
        self._frame_index += frame_index
        self._timestamps += timestamps

    def add_features(self, features: npt.NDArray[Any]) -> None:
        """Add features [n, V, D] of the next frames."""
        self._features.append(features)

    def frame_index_of(self, row: int) -> int:
        """Return the frame index of a row of the features."""
        return self._frame_index[row]

    def arrays(
        self, row_shape: tuple[int, ...], dtype: str
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return features [T, *row_shape], frame_index [T] and timestamps [T], sorted by index.

        Args:
            row_shape: (D,) or (V, D).
            dtype: dtype of the features.
        """
        empty = np.empty((0, *row_shape), dtype)
        features = np.concatenate(
            [empty, *(rows.reshape(-1, *row_shape) for rows in self._features)]
        )
        order = np.argsort(self._frame_index, kind="stable")
        return (
            features[order],
            np.array(self._frame_index, dtype=np.int64)[order],
            np.array(self._timestamps, dtype=np.float64)[order],
        )


class _FrameRange(NamedTuple):
    """Consecutive frames of one video in a batch."""

    video: ExtractedVideo
    num_frames: int


class Batcher:
    """Collects frames of any videos, and runs the backbone whenever a batch is full.

    Features of a batch are fetched after the next batch has started, so that a GPU always has work.

    Args:
        backbone: the backbone.
        batch_size: images per backbone call.
        dtype: dtype of the features to store.
        timer: counts the seconds of each stage.
        on_progress: called after each batch.

    Attributes:
        timer: see above.
        num_computed: number of frames whose features have been computed.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        dtype: npt.DTypeLike,
        *,
        timer: StageTimer | None = None,
        on_progress: Callable[[TaskProgress], None] = lambda progress: None,
    ) -> None:
        self.timer = timer or StageTimer()
        self.num_computed = 0
        self._backbone = backbone
        self._num_frames = max(1, batch_size // len(backbone.transform.views))
        self._dtype = np.dtype(dtype)
        self._on_progress = on_progress
        self._ranges: list[_FrameRange] = []
        self._images: list[Tensor] = []  # [n, V, 3, h, w] uint8 each
        self._started: tuple[list[_FrameRange], PendingFeatures] | None = None

    def add(self, video: ExtractedVideo, chunk: Chunk) -> None:
        """Copy a chunk's frames to the device, and run each batch that they fill."""
        transform = self._backbone.transform
        with self.timer("copy"):
            uploaded = transform.upload(chunk.images)
        with self.timer("preprocess"):
            images = transform.resize(uploaded)
        video.add_times(chunk.frame_index, chunk.timestamps)
        while len(images):
            room = self._num_frames - sum(run.num_frames for run in self._ranges)
            taken, images = images[:room], images[room:]
            self._images.append(taken)
            self._ranges.append(_FrameRange(video, len(taken)))
            if len(taken) == room:
                self._start()

    def finish(self) -> None:
        """Run the remaining frames, and fetch all features.

        Raises:
            FeaturesError: a feature is not finite, or exceeds the range of the dtype.
        """
        if self._ranges:
            self._start()
        self._fetch()

    def _start(self) -> None:
        """Start the backbone on the collected frames, and fetch the batch before."""
        with self.timer("forward"):
            try:
                pending = self._backbone.start(torch.cat(self._images))
            except torch.OutOfMemoryError:
                raise BackboneError(
                    f"out of memory on {self._backbone.transform.device} with {self._num_frames} "
                    "frames per batch; give a smaller --batch-size (extract) or --chunk-frames"
                ) from None
        self._fetch()
        self._started = (self._ranges, pending)
        self._ranges, self._images = [], []

    def _fetch(self) -> None:
        """Give the features of the batch that was started last to their videos."""
        if self._started is None:
            return
        runs, pending = self._started
        self._started = None
        with self.timer("forward"):
            features = pending.wait().numpy()
        with np.errstate(over="ignore"):
            stored = features.astype(self._dtype)
        is_finite = np.isfinite(stored).all(axis=(1, 2))
        offset = 0
        for video, num_frames in runs:
            rows = slice(offset, offset + num_frames)
            offset += num_frames
            if not is_finite[rows].all():
                _raise_not_finite(video, features[rows], is_finite[rows], self._dtype)
            video.add_features(stored[rows])
        self.num_computed += offset
        self._on_progress(TaskProgress(num_frames=offset))


def _raise_not_finite(
    video: ExtractedVideo,
    features: npt.NDArray[np.float32],
    is_finite: npt.NDArray[np.bool_],
    dtype: np.dtype[Any],
) -> None:
    """Raise an error that names the first frame whose features cannot be stored."""
    number = int(np.argmin(is_finite))
    where = f"video_id {video.name!r}, frame {video.frame_index_of(video.num_features + number)}"
    if np.isfinite(features[number]).all():
        raise FeaturesError(
            f"{where}: a feature of {np.abs(features[number]).max():.4g} exceeds {dtype}'s "
            f"{np.finfo(dtype).max:.4g}; extract with --feature-dtype float32 into another folder"
        )
    raise FeaturesError(
        f"{where}: a feature is not finite; extract with --precision float32 into another folder, "
        "or check the backbone's weights"
    )


def extract_videos(
    names: Sequence[str],
    events: Iterator[tuple[int, DecodeEvent]],
    batcher: Batcher,
    on_selected: Callable[[int, int], None] = lambda number, num_frames: None,
) -> Iterator[ExtractedVideo]:
    """Run the backbone over decoded frames, and yield each video once it is complete, in order.

    Args:
        names: name of each video, for messages.
        events: events of the videos, from `DecoderPool.decode`.
        batcher: collects the frames; of no further use after an error.
        on_selected: called with a video's number and its number of frames.

    Raises:
        DecodeAgain: frames of a video are void; all videos not yet yielded must start again.
    """
    waiting: deque[ExtractedVideo] = deque()
    num_begun = 0
    for number, event in batcher.timer.while_iterating("wait", events):
        if number == num_begun:
            waiting.append(ExtractedVideo(names[number]))
            num_begun += 1
        video = waiting[-1]
        if isinstance(event, Chunk):
            batcher.add(video, event)
        elif isinstance(event, Selected):
            on_selected(number, event.num_frames)
        else:
            video.outcome = event
            if event.status == "failed":
                on_selected(number, 0)
        while waiting and waiting[0].is_complete:
            yield waiting.popleft()
    batcher.finish()
    yield from waiting
