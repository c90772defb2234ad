"""Frames on their way through the backbone: batches filled across videos, features given back to
each.

A frame's features may depend, in their last bits, on its place in a batch. So places follow from
the task alone: a video that begins again takes the places that it took before.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..manifests.errors import BackboneError, FeaturesError
from ..manifests.plan import PlannedRow
from ..manifests.shards import VideoPart
from .backbone import Backbone, Computing
from .decode.frames import Outcome
from .decode.protocol import Chunk

_T = TypeVar("_T")


@dataclass(frozen=True)
class Progress:
    """Passed to the caller while a task runs: what has come to it since the last call."""

    num_frames: int = 0  # whose features are computed
    num_unplanned_frames: int = 0  # more than the plan expected; negative for fewer

    def __add__(self, other: "Progress") -> "Progress":
        return Progress(
            *(ours + theirs for ours, theirs in zip(astuple(self), astuple(other), strict=True))
        )


class Clock:
    """Adds up the seconds spent on each stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._stage = ""
        self._start = 0.0

    def __call__(self, stage: str) -> "Clock":
        """A context in which the time counts for a stage."""
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        spent = time.perf_counter() - self._start
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + spent

    def while_iterating(self, stage: str, iterator: Iterator[_T]) -> Iterator[_T]:
        """Yields from an iterator, counting the time it takes to give each item."""
        while True:
            with self(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item


class Place(NamedTuple):
    """A frame's place: which batch of the task, and which of its frames."""

    batch: int
    offset: int


class GrowingVideo:
    """A row on its way: the features and times that it has so far.

    Attributes:
        place: that its first frame takes.
    """

    def __init__(self, row: PlannedRow, place: Place) -> None:
        self.row = row
        self.place = place
        self.outcome: Outcome | None = None
        self.features: list[npt.NDArray[Any]] = []  # each [n, V, D], in the order of frame_index
        self.frame_index: list[int] = []
        self.timestamps: list[float] = []

    @property
    def is_complete(self) -> bool:
        """Whether all that there will be of it is there."""
        if self.outcome is None or self.outcome.status == "failed":
            return self.outcome is not None
        return sum(map(len, self.features)) == len(self.frame_index)

    def part(self, row_shape: tuple[int, ...], store: str) -> VideoPart:
        """What is there of a complete one, sorted by frame index.

        Args:
            row_shape: (D,) or (V, D), of a frame's features.
            store: their dtype.
        """
        assert self.outcome is not None
        kept = self.features if self.outcome.status != "failed" else []
        is_lost = self.outcome.status == "failed" and self.row.num_parts > 1
        features = np.concatenate(
            [np.empty((0, *row_shape), store)] + [rows.reshape(-1, *row_shape) for rows in kept]
        )
        count = len(features)
        order = np.argsort(self.frame_index[:count], kind="stable")
        return VideoPart(
            video_id=self.row.video_id,
            features=features[order],
            frame_index=np.array(self.frame_index[:count], dtype=np.int64)[order],
            timestamps=np.array(self.timestamps[:count], dtype=np.float64)[order],
            status=self.outcome.status,
            num_lost_frames=self.row.num_frames if is_lost else self.outcome.num_lost_frames,
            reason=self.outcome.reason,
            message=self.outcome.message,
            decoder=self.outcome.decoder,
            decoder_reason=self.outcome.decoder_reason,
            part=self.row.part,
            num_parts=self.row.num_parts,
        )


class Run(NamedTuple):
    """Neighbours in a batch: so many frames of one video, or fillers."""

    video: GrowingVideo | None
    num_frames: int


class Batch:
    """Frames of any videos, run through the backbone once there are enough of them.

    The features of a batch are fetched when the next one has been started, so that a GPU always has
    work.

    Attributes:
        clock: that counts the seconds of each stage.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        dtype: np.dtype[Any],
        clock: Clock,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._backbone = backbone
        self._num_frames = max(1, batch_size // len(backbone.transform.views))
        self._dtype = dtype
        self.clock = clock
        self._on_progress = on_progress
        self._number = 0
        self._runs: list[Run] = []
        self._images: list[Tensor] = []  # each [n, V, 3, h, w] uint8
        self._started: tuple[list[Run], Computing] | None = None

    @property
    def place(self) -> Place:
        """The place that the next frame takes."""
        return Place(self._number, sum(run.num_frames for run in self._runs))

    def add(self, video: GrowingVideo, chunk: Chunk) -> None:
        """Takes a chunk's frames over, and runs each batch that they fill."""
        transform = self._backbone.transform
        with self.clock("copy"):
            uploaded = transform.upload(chunk.images)
        with self.clock("preprocess"):
            images = transform.resize(uploaded)
        video.frame_index += chunk.frame_index
        video.timestamps += chunk.timestamps
        while len(images):
            taken = images[: self._num_frames - self.place.offset]
            images = images[len(taken) :]
            self._images.append(taken)
            self._runs.append(Run(video, len(taken)))
            if self.place.offset == self._num_frames:
                self._start()

    def rewind(self, place: Place) -> Place:
        """Forgets the frames since `place`; the next frame takes the same index, in this batch or a
        later one.

        A feature's last bits may depend on its index in the batch, so what was tried before must
        not shift it: where that batch has run already, fillers stand for the frames that came first
        in it.
        """
        if place.batch == self._number:
            num_left = place.offset
            runs, self._runs = self._runs, []
            for run in runs:
                if num_left:
                    self._runs.append(Run(run.video, min(run.num_frames, num_left)))
                    num_left -= self._runs[-1].num_frames
            self._images = [torch.cat(self._images)[: place.offset]] if self._runs else []
        else:
            transform = self._backbone.transform
            shape = (place.offset, len(transform.views), *transform.preprocessing.input_size)
            filler = torch.zeros(shape, dtype=torch.uint8, device=transform.device)
            self._runs = [Run(None, place.offset)] if place.offset else []
            self._images = [filler] if place.offset else []
        return self.place

    def finish(self) -> None:
        """Runs what is there, and gives out all features.

        Raises:
            FeaturesError: a feature is not finite, or beyond what the store's dtype holds.
        """
        if self._runs:
            self._start()
        self._give_out()

    def _start(self) -> None:
        """Sends what is there through the backbone, and gives out the features of what was sent
        before.
        """
        with self.clock("forward"):
            try:
                computing = self._backbone.start(torch.cat(self._images))
            except torch.OutOfMemoryError:
                raise BackboneError(
                    f"the device has too little memory for {self._num_frames} frames at once; "
                    "give a smaller --batch-size (extract) or --chunk-frames"
                ) from None
        self._give_out()
        self._started = (self._runs, computing)
        self._runs, self._images = [], []
        self._number += 1

    def _give_out(self) -> None:
        """Gives the features of the batch that was started last to their videos."""
        if self._started is None:
            return
        runs, computing = self._started
        self._started = None
        with self.clock("forward"):
            features = computing.wait().numpy()
        with np.errstate(over="ignore"):
            stored = features.astype(self._dtype)
        is_fine = np.isfinite(stored).all(axis=(1, 2))
        offset = num_frames = 0
        for run in runs:
            rows = slice(offset, offset + run.num_frames)
            offset += run.num_frames
            if run.video is None:
                continue
            if not is_fine[rows].all():
                _raise_not_finite(run.video, features[rows], is_fine[rows], self._dtype)
            run.video.features.append(stored[rows])
            num_frames += run.num_frames
        self._on_progress(Progress(num_frames=num_frames))


def _raise_not_finite(
    video: GrowingVideo,
    features: npt.NDArray[np.float32],
    is_fine: npt.NDArray[np.bool_],
    dtype: Any,
) -> None:
    """Names the first frame of a run whose features can't be stored."""
    number = int(np.argmin(is_fine))
    index = video.frame_index[sum(map(len, video.features)) + number]
    where = f"video_id {video.row.video_id!r}, frame {index}"
    if np.isfinite(features[number]).all():
        raise FeaturesError(
            f"{where}: a feature of {np.abs(features[number]).max():.4g} is beyond {dtype}'s "
            f"{np.finfo(dtype).max:.4g}; extract with --store float32 into another folder"
        )
    raise FeaturesError(
        f"{where}: the backbone gives a feature that is not finite; extract with "
        "--precision float32 into another folder, or, if that is what it has, see to its weights"
    )
