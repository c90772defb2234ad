"""One task → one shard: rows are decoded by child processes, batched across videos, run, and
written at once.

This process holds the backbone and only ever sees arrays. The same task gives the same bytes on
every run: the order of frames, their place in a batch and the batch sizes follow from the task
alone.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..manifests.errors import BackboneError, FeaturesError
from ..manifests.folder import FeatureFolder, read_extraction
from ..manifests.plan import PlannedRow, Task
from ..manifests.shards import VideoPart, write_shard
from .backbone import Backbone, Preprocessing, load_backbone
from .children import Chunk, DecodingChildren, Probed, Request, Restarted
from .choices import Decoder
from .frames import Outcome

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker needs beside its tasks; small, as it travels with each of them."""

    folder: str
    device: str
    num_threads: int  # of the backbone, on a CPU
    num_children: int
    batch_size: int
    decoder: Decoder
    settings: dict[str, Any]  # in force, recorded with each shard


@dataclass(kw_only=True)
class TaskReport:
    """What a finished task says: counts, and the seconds that this process spent on what."""

    task: str
    num_frames: int = 0
    num_videos: dict[str, int] = field(default_factory=dict)  # by status
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


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


def run_task(
    task: Task, job: Job, on_progress: Callable[[Progress], None] = lambda progress: None
) -> TaskReport:
    """Extracts a task's rows and writes its shard.

    Raises:
        FeaturesError: a feature is not finite, or beyond what the store's dtype holds.
        BackboneError: the folder's weights are not the ones that extraction.json names.
    """
    folder = FeatureFolder(Path(job.folder))
    extraction = read_extraction(folder)
    identity = extraction["identity"]
    if job.device == "cpu":
        torch.set_num_threads(job.num_threads)
    backbone = _backbone(job.folder, identity["weights_digest"], job.device)
    children = _children(job.num_children)
    report = TaskReport(task=task.name)
    clock = _Clock(report.seconds)
    batch = _Batch(backbone, job.batch_size, np.dtype(identity["store"]), clock, on_progress)
    videos: list[_Video] = []
    requests = [Request(row.path, row.start, row.end, job.decoder) for row in task.rows]
    with contextlib.closing(children.decode(requests)) as events:
        for number, event in clock.while_iterating("wait for frames", events):
            if number == len(videos):
                videos.append(_Video(task.rows[number], batch.place))
            video = videos[number]
            if isinstance(event, Chunk):
                batch.add(video, event)
            elif isinstance(event, Restarted):
                videos[number] = _Video(video.row, batch.rewind(video.place))
            elif isinstance(event, Probed):
                on_progress(Progress(num_probed_videos=1, num_probed_frames=event.num_frames))
            else:
                video.outcome = event
                if event.status == "failed":
                    batch.rewind(video.place)
    batch.run()
    parts = [video.part(backbone.dim, identity["store"]) for video in videos]
    with clock("write"):
        write_shard(
            task.shard(folder),
            parts,
            row_shape=tuple(extraction["row_shape"]),
            dtype=identity["store"],
            fingerprint=extraction["fingerprint"],
            views=identity["views"],
            settings=job.settings,
        )
    report.num_frames = sum(len(part.features) for part in parts)
    for part in parts:
        report.num_videos[part.status] = report.num_videos.get(part.status, 0) + 1
    return report


@lru_cache(maxsize=1)
def _backbone(folder: str, digest: str, device: str) -> Backbone:
    """This process's backbone; kept between tasks."""
    paths = FeatureFolder(Path(folder))
    extraction = read_extraction(paths)
    identity = extraction["identity"]
    return load_backbone(
        identity["backbone"],
        paths.backbone,
        digest=digest,
        preprocessing=Preprocessing.from_json(identity["preprocessing"]),
        dim=extraction["row_shape"][-1],
        device=device,
        dtype=identity["precision"],
    )


@lru_cache(maxsize=1)
def _children(num_children: int) -> DecodingChildren:
    """This process's decoding children; kept between tasks, they end with it."""
    return DecodingChildren(num_children)


class _Clock:
    """Adds up the seconds spent on each stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._stage = ""
        self._start = 0.0

    def __call__(self, stage: str) -> "_Clock":
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


class _Place(NamedTuple):
    """A frame's place: which batch of the task, and which of its frames."""

    batch: int
    offset: int


class _Video:
    """A row on its way: the features and times that it has so far.

    Attributes:
        place: that its first frame takes.
    """

    def __init__(self, row: PlannedRow, place: _Place) -> None:
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


class _Batch:
    """Frames of any videos, run through the backbone once there are enough of them."""

    def __init__(
        self,
        backbone: Backbone,
        batch_size: int,
        dtype: np.dtype[Any],
        clock: _Clock,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._backbone = backbone
        self._size = batch_size
        self._dtype = dtype
        self._clock = clock
        self._on_progress = on_progress
        self._number = 0
        self._owners: list[_Video | None] = []  # None: a filler
        self._images: list[Tensor] = []  # each [n, 3, h, w] uint8

    @property
    def place(self) -> _Place:
        """The place that the next frame takes."""
        return _Place(self._number, len(self._owners))

    def add(self, video: _Video, chunk: Chunk) -> None:
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

    def rewind(self, place: _Place) -> _Place:
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
                    f"the device has too little memory for {self._size} frames at once; give a "
                    "smaller "
                    "--batch-size"
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


def _raise_not_finite(video: _Video, value: npt.NDArray[np.float32], dtype: Any) -> None:
    index = video.frame_index[len(video.features)]
    where = f"video_id {video.row.video_id!r}, frame {index}"
    if np.isfinite(value).all():
        raise FeaturesError(
            f"{where}: a feature of {np.abs(value).max():.4g} is beyond {dtype}'s "
            f"{np.finfo(dtype).max:.4g}; extract with --store float32"
        )
    raise FeaturesError(
        f"{where}: the backbone gives a feature that is not finite; extract with --precision "
        "float32"
    )
