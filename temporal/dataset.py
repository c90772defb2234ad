"""Clip data set: clips as samples, their padded batches, and the order of the batches.

A key (number, draw) names a sample: the number of its row, and one of the row's draws. In training
the draw is the epoch, and the clip depends on (seed, epoch, video_id) alone; num_workers, the other
rows and resuming a run do not change it. In evaluation the draws are the row's clips and views,
whose logits are averaged.

A `ClipReader` reads the frames, from a feature folder or from the videos. Clips of different
lengths are padded: inputs [B, T, ...], positions [B, T] and a mask [B, T], True for frames. No
finite value at a place where the mask is False changes a logit.

Which samples make a batch, and in which order, follows from lengths and seeds alone.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..manifests.errors import StoppedError
from .clips import (
    ALL_FRAMES,
    Clip,
    ClipSampling,
    Frames,
    Times,
    draw_clip,
    even_clip,
    frame_positions,
    generator_of,
)

BLOCK_BATCHES = 32  # training batches whose clips are sorted by length together
MAX_FRAMES = 2**17  # per evaluation batch, padding included, unless one video alone has more

POLL_SECONDS = 1.0

Key = tuple[int, int]


class Batch(NamedTuple):
    """Clips, padded to the longest of them.

    Attributes:
        inputs: features [B, T, D] float32, or frames [B, T, 3, H, W] uint8.
        positions: [B, T] int64, frame positions.
        mask: [B, T] bool, True for frames, False for padding and for frames that could not be
            read; but a clip of which no frame could be read keeps True for all its frames.
        targets: [B] or [B, C], see `temporal/tasks.py`.
        rows: [B] int64, index of each clip's row in the data set.
        is_read: [B] bool, False for a clip of which no frame could be read.
        faults: videos that could not be read completely, and why.
    """

    inputs: Tensor
    positions: Tensor
    mask: Tensor
    targets: Tensor
    rows: Tensor
    is_read: Tensor
    faults: tuple[str, ...] = ()

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return inputs, positions and mask, the arguments of a model, on a device."""
        return (
            self.inputs.to(device, non_blocking=True),
            self.positions.to(device, non_blocking=True),
            self.mask.to(device, non_blocking=True),
        )


class Read(NamedTuple):
    """Clips as a reader returns them.

    Attributes:
        inputs: [B, T, ...], padded with zeros to the longest clip.
        is_lost: [B, T] bool, True for frames that cannot be read; None if all were read.
        faults: why frames cannot be read, one line per video.
    """

    inputs: Tensor
    is_lost: Tensor | None = None
    faults: tuple[str, ...] = ()


class ClipReader(Protocol):
    """Source of clips: a feature folder, or video files."""

    @property
    def num_views(self) -> int:
        """Number of views of each frame."""

    def times(self, video_id: str) -> tuple[Frames, Times]:
        """Return frame_index [T] and timestamps [T] in seconds of a video's frames."""

    def num_frames(self, video_id: str) -> int:
        """Return the number of a video's frames, T."""

    def read(self, clips: Sequence[Clip]) -> Read:
        """Read clips, padded to the longest of them."""

    def close(self) -> None:
        """Abort reads in progress; the threads that wait for them get a StoppedError."""


@dataclass(frozen=True)
class RandomClips:
    """Training clips: each sample is one random clip of a random view; the draw is the epoch.

    Attributes:
        sampling: clip sampling options.
        seed: seed of clips and views.
    """

    sampling: ClipSampling = ClipSampling()
    seed: int = 0


@dataclass(frozen=True)
class EvenClips:
    """Evaluation clips, evenly over each video, in all views; by default, one clip of all frames.

    Attributes:
        sampling: clip sampling options.
        num_clips: number of clips per video.
        shuffle_seed: seed of a random order of each clip's frames, which get the positions of the
            right order; None for the right order.
    """

    sampling: ClipSampling = ALL_FRAMES
    num_clips: int = 1
    shuffle_seed: int | None = None


class Sample(NamedTuple):
    """One clip of a row, before it is read.

    Attributes:
        number: number of the row in the data set.
        frames: [t] indices of the frames among those of the row.
        view: number of the view.
        positions: [t] frame positions.
    """

    number: int
    frames: npt.NDArray[np.int64]
    view: int
    positions: npt.NDArray[np.int64]


class ClipDataset:
    """Samples of a split's rows, read one batch at a time.

    Args:
        reader: reader of the clips.
        video_ids: ids of the rows to use, all of which the reader must have.
        targets: [N] or [N, C] targets of the rows, see `temporal/tasks.py`.
        clips: training or evaluation clips.
        position_fps: positions per second of the model, see `frame_positions`.

    Attributes:
        targets: see above.
    """

    def __init__(
        self,
        reader: ClipReader,
        video_ids: Sequence[str],
        targets: Tensor,
        clips: RandomClips | EvenClips,
        *,
        position_fps: float | None,
    ) -> None:
        self.targets = targets
        self._reader = reader
        self._ids = list(video_ids)
        self._clips = clips
        self._position_fps = position_fps

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def num_draws(self) -> int:
        """Number of samples per row in an evaluation."""
        assert isinstance(self._clips, EvenClips)
        return self._clips.num_clips * self._reader.num_views

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Largest number of frames in a sample of each row, [N]."""
        most = self._clips.sampling.num_frames or np.iinfo(np.int64).max
        frames = [min(most, self._reader.num_frames(video_id)) for video_id in self._ids]
        return np.array(frames, dtype=np.int64)

    def sample(self, key: Key) -> Sample:
        """Choose the frames of a sample, without reading them."""
        number, draw = key
        video_id, clips = self._ids[number], self._clips
        frame_index, timestamps = self._reader.times(video_id)
        if isinstance(clips, RandomClips):
            generator = generator_of(clips.seed, draw, video_id)
            view = int(generator.integers(self._reader.num_views))
            frames = draw_clip(timestamps, clips.sampling, generator)
        else:
            clip, view = divmod(draw, self._reader.num_views)
            frames = even_clip(timestamps, clips.sampling, clip, clips.num_clips)
        origin = frames[0] if clips.sampling.spacing == "linspace" else 0
        positions = frame_positions(
            timestamps[frames],
            frame_index[frames],
            position_fps=self._position_fps,
            first=(float(timestamps[origin]), int(frame_index[origin])),
        )
        if isinstance(clips, EvenClips) and clips.shuffle_seed is not None:
            frames = generator_of(clips.shuffle_seed, 0, video_id).permutation(frames)
        return Sample(number, frames, view, positions)

    def close(self) -> None:
        """Abort reads in progress; the threads that wait for them get a StoppedError."""
        self._reader.close()

    def batch(self, keys: Sequence[Key]) -> Batch:
        """Read samples as one batch, padded to the longest of them."""
        samples = [self.sample(key) for key in keys]
        positions, mask = pad([sample.positions for sample in samples])
        rows = torch.tensor([sample.number for sample in samples])
        inputs, is_lost, faults = self._reader.read(
            [Clip(self._ids[sample.number], sample.frames, sample.view) for sample in samples]
        )
        is_read = torch.ones(len(samples), dtype=torch.bool)
        if is_lost is not None:
            is_read = (mask & ~is_lost).any(1)
            # A clip of which no frame was read keeps its mask, over black frames, so that it has
            # finite logits; it has no weight in the loss.
            mask = mask & ~(is_lost & is_read[:, None])
        targets = self.targets[rows]
        return Batch(inputs, positions, mask, targets, rows, is_read, faults)


def pad(positions: Sequence[npt.NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Pad the positions of clips to the longest clip.

    Args:
        positions: [t] frame positions of each clip.

    Returns:
        Positions [B, T] int64, 0 for padding, and the mask [B, T] bool, True for frames.
    """
    lengths = torch.tensor([len(one) for one in positions])
    padded = torch.zeros(len(positions), int(lengths.max()), dtype=torch.int64)
    for row, one in zip(padded, positions, strict=True):
        row[: len(one)] = torch.from_numpy(one)
    return padded, torch.arange(padded.shape[1]) < lengths[:, None]


def training_batches(
    lengths: npt.NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
) -> list[list[Key]]:
    """Return the batches of one training epoch: every clip once, similar lengths together.

    Clips are shuffled; blocks of `BLOCK_BATCHES` batches are sorted by length (stably, so that
    clips of equal length stay shuffled) and divided into batches; the batches are shuffled.

    Args:
        lengths: [N] frames of each clip.
        batch_size: clips per batch; one batch may be smaller.
        seed: seed of the order.
        epoch: epoch, which also becomes the draw of each key.
        drop_last: leave out a smaller batch, with clips that differ from epoch to epoch, unless it
            is the only one.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    if drop_last and len(order) > batch_size:
        order = order[: len(order) // batch_size * batch_size]
    block = BLOCK_BATCHES * batch_size
    for start in range(0, len(order), block):
        part = order[start : start + block]
        order[start : start + block] = part[np.argsort(lengths[part], kind="stable")]
    starts = np.arange(0, len(order), batch_size)
    generator.shuffle(starts)
    return [[(int(n), epoch) for n in order[start : start + batch_size]] for start in starts]


def evaluation_batches(
    lengths: npt.NDArray[np.int64], num_draws: int, batch_size: int
) -> list[list[Key]]:
    """Return the batches of an evaluation: all draws of every row, longest rows first.

    Batches of long clips are smaller, so that none exceeds `MAX_FRAMES` unless one clip alone does.

    Args:
        lengths: [N] frames of a clip of each row.
        num_draws: draws per row.
        batch_size: largest number of clips per batch.

    >>> evaluation_batches(np.array([5, 9, 5]), 1, 2)
    [[(1, 0), (0, 0)], [(2, 0)]]
    """
    batches: list[list[Key]] = []
    longest = 0
    for number in np.argsort(-lengths, kind="stable").tolist():
        for draw in range(num_draws):
            is_full = not batches or len(batches[-1]) == batch_size
            if is_full or (len(batches[-1]) + 1) * longest > MAX_FRAMES:
                batches.append([])
                longest = int(lengths[number])
            batches[-1].append((number, draw))
    return batches


def share_of(keys: list[Key], index: int, num_shares: int) -> list[Key]:
    """Return one share of a batch; shares differ in size by at most one, and may be empty.

    Args:
        keys: keys of the batch.
        index: number of the share, from 0.
        num_shares: number of shares.

    >>> [share_of([(0, 0), (1, 0), (2, 0)], index, 2) for index in (0, 1)]
    [[(0, 0), (1, 0)], [(2, 0)]]
    """
    return [keys[n] for n in np.array_split(np.arange(len(keys)), num_shares)[index]]


def load_batches(
    dataset: ClipDataset,
    batches: Sequence[list[Key]],
    num_workers: int,
    device: torch.device,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[Batch]:
    """Yield batches, in the given order; threads load them ahead.

    Clips are decoded in processes of their own, and arrays are copied outside of Python's lock, so
    that threads are enough; unlike processes, they need no shared memory, and an error in one ends
    the training at once.

    Args:
        dataset: the data set.
        batches: keys of each batch.
        num_workers: threads that load batches ahead, in pinned memory for a GPU; 0 to load them
            when they are asked for.
        device: device to which the batches will be copied.
        should_stop: asked while a thread is waited for.

    Raises:
        StoppedError: `should_stop` says so, though a batch is not there yet.
    """
    if not num_workers:
        yield from map(dataset.batch, batches)
        return

    def load(keys: list[Key]) -> Batch:
        batch = dataset.batch(keys)
        is_here = device.type == "cuda" and batch.inputs.device.type == "cpu"
        return batch._replace(inputs=batch.inputs.pin_memory()) if is_here else batch

    one_thread = partial(torch.set_num_threads, 1)
    pool = ThreadPoolExecutor(num_workers, "batches", initializer=one_thread)
    ahead: deque[Future[Batch]] = deque()
    try:
        remaining = iter(batches)
        ahead.extend(pool.submit(load, keys) for keys in islice(remaining, 2 * num_workers))
        while ahead:
            while not wait([ahead[0]], timeout=POLL_SECONDS).done:
                if should_stop():
                    raise StoppedError("stopped while a batch was loaded")
            yield ahead.popleft().result()
            ahead.extend(pool.submit(load, keys) for keys in islice(remaining, 1))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if ahead:  # an early end does not wait for a video that hangs
            dataset.close()
        pool.shutdown()
