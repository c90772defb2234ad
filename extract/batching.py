"""Batches of frames: filled from decoded chunks, run through the backbone, and divided by video.

A frame's features may depend, in their last bits, on its position in a batch. Therefore each lane
(see `lanes.py`) fills batches of its own, and the frames that are left at its end join those of the
lanes before it. So positions follow from the plan alone, while lanes are decoded in any order, and
batches are computed as they become full.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..manifests.errors import BackboneError, FeaturesError
from .backbone import Backbone, PendingFeatures
from .decode.frames import Outcome
from .decode.protocol import Chunk


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
        self.add(self._stage, time.perf_counter() - self._start)

    def add(self, stage: str, seconds: float) -> None:
        """Count seconds for a stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


class ExtractedVideo:
    """Features and times of one request, growing until complete.

    Attributes:
        name: name for messages.
        num_expected: number of frames that the plan expects.
        outcome: result of decoding; None while it goes on.
    """

    def __init__(self, name: str, num_expected: int = 0) -> None:
        self.name = name
        self.num_expected = num_expected
        self.outcome: Outcome | None = None
        self._features: list[npt.NDArray[Any]] = []  # [n, V, D] each, in decoding order
        self._frame_index: list[int] = []
        self._timestamps: list[float] = []

    @property
    def is_complete(self) -> bool:
        """Whether decoding has ended and all features are there."""
        return self.outcome is not None and self.num_features == len(self._frame_index)

    @property
    def num_lost_frames(self) -> int:
        """Number of frames that could not be decoded; all that are expected if decoding failed."""
        if self.outcome is None:
            return 0
        return (
            self.num_expected if self.outcome.status == "failed" else self.outcome.num_lost_frames
        )

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


class FrameBuffer:
    """Frames of any videos that wait for a batch to become full.

    Attributes:
        ranges: videos of the frames, in order.
        images: [n, V, 3, h, w] uint8 each.
    """

    def __init__(self) -> None:
        self.ranges: list[_FrameRange] = []
        self.images: list[Tensor] = []

    def __len__(self) -> int:
        return sum(one.num_frames for one in self.ranges)

    def append(self, video: ExtractedVideo, images: Tensor) -> None:
        """Add frames of a video."""
        self.ranges.append(_FrameRange(video, len(images)))
        self.images.append(images)


class Batcher:
    """Runs the backbone on full batches of frames, and gives the features to their videos.

    Features of a batch are fetched after the next one has been given to the backbone, so that it
    always has work.

    Args:
        backbone: the backbone.
        batch_size: images per backbone call.
        dtype: dtype of the features to store.
        timer: counts the seconds of each stage.
        on_progress: called after each batch.

    Attributes:
        timer: see above.
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
        self._backbone = backbone
        self._num_frames = max(1, batch_size // len(backbone.transform.views))
        self._dtype = np.dtype(dtype)
        self._on_progress = on_progress
        self._reading: tuple[torch.cuda.Event, Callable[[], None]] | None = None
        self._pending: deque[tuple[list[_FrameRange], PendingFeatures]] = deque()

    def prepare(self, chunk: Chunk) -> Tensor:
        """Copy a chunk's frames to the device and resize them: [n, V, 3, h, w] uint8.

        On a GPU this returns before either has happened; the chunk's memory is given back when it
        has been copied or, if a GPU's engines have decoded it, resized: at the next call at the
        latest.
        """
        transform = self._backbone.transform
        with self.timer("copy"):
            uploaded, is_read = transform.upload(chunk.data, is_pinned=chunk.is_pinned)
            self._release()
        with self.timer("preprocess"):
            views = transform.resize(uploaded, chunk.format)
        if uploaded is chunk.data:
            is_read = transform.reached()
        self._reading = None if is_read is None else (is_read, chunk.hold())
        return views

    def add(self, frames: FrameBuffer, video: ExtractedVideo, images: Tensor) -> None:
        """Add a video's frames to others, and run each batch that they fill.

        Args:
            frames: the others; what is left afterwards is less than a batch.
            video: the video.
            images: [n, V, 3, h, w] uint8, from `prepare`.
        """
        while len(images):
            room = self._num_frames - len(frames)
            taken, images = images[:room], images[room:]
            frames.append(video, taken)
            if len(taken) == room:
                self.run(frames)

    def join(self, frames: FrameBuffer, others: FrameBuffer) -> None:
        """Add other frames, less than a batch, to frames, as `add` does."""
        for (video, _), images in zip(others.ranges, others.images, strict=True):
            self.add(frames, video, images)

    def run(self, frames: FrameBuffer) -> None:
        """Run the backbone on frames, at most a batch, and remove them."""
        if not frames.ranges:
            return
        self._pending.append((frames.ranges, self._backbone.start(torch.cat(frames.images))))
        frames.ranges, frames.images = [], []
        while len(self._pending) > self._backbone.num_threads + 1:  # one that waits
            self._fetch()

    def finish(self) -> None:
        """Fetch all features, and give back the memory of the last chunk.

        Raises:
            FeaturesError: a feature is not finite, or exceeds the range of the dtype.
        """
        self._release()
        while self._pending:
            self._fetch()

    def _release(self) -> None:
        """Give back the memory of the chunk that is being read."""
        if self._reading is not None:
            is_read, release = self._reading
            is_read.synchronize()
            release()
            self._reading = None

    def _fetch(self) -> None:
        """Give the features of the oldest batch to their videos."""
        ranges, pending = self._pending.popleft()
        with self.timer("wait"):
            try:
                features = pending.wait().numpy()
            except torch.OutOfMemoryError:
                raise BackboneError(
                    f"out of memory on {self._backbone.transform.device} with {self._num_frames} "
                    "frames per batch; give a smaller --batch-size (extract) or --chunk-frames"
                ) from None
        self.timer.add("forward", pending.seconds / self._backbone.num_threads)
        with np.errstate(over="ignore"):
            stored = features.astype(self._dtype)
        is_finite = np.isfinite(stored).all(axis=(1, 2))
        offset = 0
        for video, num_frames in ranges:
            rows = slice(offset, offset + num_frames)
            offset += num_frames
            if not is_finite[rows].all():
                _raise_not_finite(video, features[rows], is_finite[rows], self._dtype)
            video.add_features(stored[rows])
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
