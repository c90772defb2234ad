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
from .backbone import Backbone
from .children import Chunk
from .frames import Outcome

_T = TypeVar("_T")


@dataclass(frozen=True)
class Progress:
    """Passed to the caller while a task runs: what has come to it since the last call."""

    num_frames: int = 0  # whose features are computed
    num_probed_videos: int = 0
    num_probed_frames: int = 0  # that those videos present

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
        self.outcome = Outcome(status="failed")
        self.features: list[npt.NDArray[Any]] = []  # each [D], in the order of frame_index
        self.frame_index: list[int] = []
        self.timestamps: list[float] = []

    def part(self, dim: int, store: str) -> VideoPart:
        """What goes into the shard, sorted by frame index."""
        count = len(self.features) if self.outcome.status != "failed" else 0
        order = np.argsort(self.frame_index[:count], kind="stable")
        features = np.array(self.features[:count], dtype=store).reshape(count, dim)
        return VideoPart(
            video_id=self.row.video_id,
            features=features[order],
            frame_index=np.array(self.frame_index[:count], dtype=np.int64)[order],
            timestamps=np.array(self.timestamps[:count], dtype=np.float64)[order],
            status=self.outcome.status,
            num_lost_frames=self.outcome.num_lost_frames,
            reason=self.outcome.reason,
            message=self.outcome.message,
            decoder=self.outcome.decoder,
            decoder_reason=self.outcome.decoder_reason,
            part=self.row.part,
            num_parts=self.row.num_parts,
        )


class Batch:
    """Frames of any videos, run through the backbone once there are enough of them."""

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        dtype: np.dtype[Any],
        clock: Clock,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._backbone = backbone
        self._size = batch_size
        self._dtype = dtype
        self._clock = clock
        self._on_progress = on_progress
        self._number = 0
        self._owners: list[GrowingVideo | None] = []  # None: a filler
        self._images: list[Tensor] = []  # each [n, 3, h, w] uint8

    @property
    def place(self) -> Place:
        """The place that the next frame takes."""
        return Place(self._number, len(self._owners))

    def add(self, video: GrowingVideo, chunk: Chunk) -> None:
        """Takes a chunk's frames over, and runs each batch that they fill."""
        with self._clock("resize"):
            images = self._backbone.resize(chunk.images)
        video.frame_index += chunk.frame_index
        video.timestamps += chunk.timestamps
        while len(images):
            taken = images[: self._size - len(self._owners)]
            images = images[len(taken) :]
            self._images.append(taken)
            self._owners += [video] * len(taken)
            if len(self._owners) == self._size:
                self.run()

    def rewind(self, place: Place) -> Place:
        """Forgets the frames since `place`; the next frame takes the same index, in this batch or a
        later one.

        A feature's last bits may depend on its index in the batch, so what was tried before must
        not shift it: where that batch has run already, fillers stand for the frames that came first
        in it.
        """
        if place.batch == self._number:
            self._owners = self._owners[: place.offset]
            self._images = [torch.cat(self._images)[: place.offset]] if self._owners else []
        else:
            shape = (place.offset, *self._backbone.preprocessing.input_size)
            self._owners = [None] * place.offset
            self._images = [torch.zeros(shape, dtype=torch.uint8)]
        return self.place

    def run(self) -> None:
        """Runs the backbone over what is there, and gives each frame's features to its video.

        Raises:
            FeaturesError: a feature is not finite, or beyond what the store's dtype holds.
        """
        if not self._owners:
            return
        with self._clock("backbone"):
            try:
                features = self._backbone.features(torch.cat(self._images)).numpy()
            except torch.OutOfMemoryError:
                raise BackboneError(
                    f"the device has too little memory for {self._size} "
                    "frames at once; give a smaller --batch-size"
                ) from None
        with np.errstate(over="ignore"):
            stored = features.astype(self._dtype)
        for owner, row, value in zip(self._owners, stored, features, strict=True):
            if owner is None:
                continue
            if not np.isfinite(row).all():
                _raise_not_finite(owner, value, self._dtype)
            owner.features.append(row)
        num_frames = sum(owner is not None for owner in self._owners)
        self._owners, self._images = [], []
        self._number += 1
        self._on_progress(Progress(num_frames=num_frames))


def _raise_not_finite(video: GrowingVideo, value: npt.NDArray[np.float32], dtype: Any) -> None:
    index = video.frame_index[len(video.features)]
    where = f"video_id {video.row.video_id!r}, frame {index}"
    if np.isfinite(value).all():
        raise FeaturesError(
            f"{where}: a feature of {np.abs(value).max():.4g} is beyond {dtype}'s "
            f"{np.finfo(dtype).max:.4g}; extract with --store float32"
        )
    raise FeaturesError(
        f"{where}: the backbone gives a feature that is not "
        "finite; extract with --precision float32"
    )
