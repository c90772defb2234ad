"""Clip data set: clips as samples, their padded batches, and the order of the batches.

A key names a sample: the number of its row, and one of the row's draws. In training
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
from dataclasses import dataclass, replace
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
    ClipSampling,
    Windows,
    clip_positions,
    consecutive_frames,
    draw_clips,
    draw_views,
    even_clips,
    generator_of,
)
from .frame_labels import FrameLabels
from .time_table import Clips, Frames, Ragged, Times, TimeTable

BLOCK_BATCHES = 32  # training batches whose clips are sorted by length together
BLOCK_FRAMES = 2**16  # frames of the clips that are chosen at once; they fit in a core's cache
POLL_SECONDS = 1.0

Keys = npt.NDArray[np.int64]  # [B, 2]: number of a row, and draw, of each sample


class Batch(NamedTuple):
    """Clips, padded to the longest of them.

    Attributes:
        inputs: features [B, T, D] of their stored dtype, or frames [B, T, 3, H, W] uint8.
        positions: [B, T] int64, frame positions.
        mask: [B, T] bool, True for frames, False for padding and for frames that could not be
            read; but a clip of which no frame could be read keeps True for all its frames.
        targets: [B] or [B, C], see `temporal/tasks.py`; for tasks on frames [B, T] or [B, T, C].
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

    def read(self, clips: Clips, sizes: Sequence[int]) -> Iterator[Read]:
        """Read batches of clips, each padded to its longest clip.

        Args:
            clips: clips of all batches.
            sizes: number of clips in each batch.
        """

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


class ClipDataset:
    """Samples of a split's rows, read one batch at a time.

    Args:
        reader: reader of the clips.
        video_ids: ids of the rows to use, all of which the reader must have.
        targets: [N] or [N, C] targets of the rows, see `temporal/tasks.py`; or labels of frames.
        clips: training or evaluation clips.
        position_fps: positions per second of the model, see `frame_positions`.

    Attributes:
        targets: see above.
    """

    def __init__(
        self,
        reader: ClipReader,
        video_ids: Sequence[str],
        targets: Tensor | FrameLabels,
        clips: RandomClips | EvenClips | Windows,
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
    def num_draws(self) -> Frames:
        """Number of samples of each row in an evaluation, [N]."""
        assert not isinstance(self._clips, RandomClips)
        if isinstance(self._clips, Windows):
            return self._clips.counts(self._table.lengths) * self._reader.num_views
        return np.full(len(self), self._clips.num_clips * self._reader.num_views)

    def window(self, row: int, draw: int) -> tuple[int, Times]:
        """Return first frame and weights [T] of a sample of a row, of an evaluation by windows."""
        assert isinstance(self._clips, Windows)
        length = self._table.lengths[[row]]
        number = np.array([draw // self._reader.num_views])
        start = int(self._clips.starts(length, number)[0])
        return start, self._clips.weights(start, int(self.lengths[row]), int(length[0]))

    @property
    def num_frames(self) -> Frames:
        """Number of frames of each row, [N]."""
        return self._table.lengths

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Largest number of frames in a sample of each row, [N]."""
        clips = self._clips
        most = clips.num_frames if isinstance(clips, Windows) else clips.sampling.num_frames
        most = most or np.iinfo(np.int64).max
        return np.minimum(self._table.lengths, most)

    @cached_property
    def _table(self) -> TimeTable:
        return TimeTable.of(
            self._ids, self._reader.times, with_frame_index=self._position_fps is None
        )

    def samples(self, numbers: Frames, draws: Frames) -> tuple[Clips, Ragged]:
        """Choose the frames of samples, without reading them; return them and their positions.

        Args:
            numbers: [B] numbers of the samples' rows.
            draws: [B] their draws.
        """
        table, clips, num_views = self._table, self._clips, self._reader.num_views
        if isinstance(clips, RandomClips):
            views = draw_views(table, numbers, draws, num_views, clips.seed)
            frames = draw_clips(table, numbers, draws, clips.sampling, clips.seed)
        else:
            number, views = np.divmod(draws, num_views)
            if isinstance(clips, Windows):
                starts = clips.starts(table.lengths[numbers], number)
                frames = consecutive_frames(table, numbers, starts, clips.num_frames)
            else:
                frames = even_clips(table, numbers, number, clips.sampling, clips.num_clips)
        from_clip = isinstance(clips, Windows) or clips.sampling.spacing != "even"
        positions = clip_positions(table, numbers, frames, self._position_fps, from_clip=from_clip)
        video_ids = [self._ids[number] for number in numbers.tolist()]
        if isinstance(clips, EvenClips) and clips.shuffle_seed is not None:
            parts = np.split(frames.values, frames.offsets[1:-1])
            shuffled = [
                generator_of(clips.shuffle_seed, video_id).permutation(part)
                for video_id, part in zip(video_ids, parts, strict=True)
            ]
            frames = replace(frames, values=np.concatenate(shuffled))
        return Clips(video_ids, frames, views), positions

    def close(self) -> None:
        """Abort reads in progress; the threads that wait for them get a StoppedError."""
        self._reader.close()

    def batch(self, keys: npt.ArrayLike) -> Batch:
        """Read samples as one batch, padded to the longest of them."""
        return next(self.batches([np.asarray(keys, dtype=np.int64)]))

    def batches(self, batches: Sequence[Keys]) -> Iterator[Batch]:
        """Read batches of samples; the frames of many batches are chosen at once."""
        for block in self._blocks(batches):
            numbers, draws = np.concatenate(block).T
            clips, positions = self.samples(numbers, draws)
            rows = torch.from_numpy(numbers.copy())
            is_read = torch.ones(len(rows), dtype=torch.bool)
            sizes, end = [len(keys) for keys in block], 0
            for size, read, (places, is_frame), targets in zip(
                sizes,
                self._reader.read(clips, sizes),
                positions.padded(sizes),
                self._targets(rows, clips.frames, sizes),
                strict=True,
            ):
                begin, end = end, end + size
                yield _batch(
                    read,
                    positions=torch.from_numpy(places),
                    mask=torch.from_numpy(is_frame),
                    targets=targets,
                    rows=rows[begin:end],
                    is_read=is_read[begin:end],
                )

    def _targets(self, rows: Tensor, frames: Ragged, sizes: Sequence[int]) -> Iterator[Tensor]:
        """Yield the targets of each batch: of its clips, or of their frames."""
        if isinstance(self.targets, Tensor):
            yield from self.targets[rows].split(list(sizes))
            return
        begins = torch.from_numpy(self._table.starts)[rows].split(list(sizes))
        for begin, (numbers, _) in zip(begins, frames.padded(sizes), strict=True):
            yield self.targets.values[begin[:, None] + torch.from_numpy(numbers)]

    def _blocks(self, batches: Sequence[Keys]) -> Iterator[Sequence[Keys]]:
        """Divide batches into blocks of at most `BLOCK_FRAMES` frames, or of one batch."""
        begin, num_frames = 0, 0
        for number, keys in enumerate(batches):
            of_batch = int(self.lengths[keys[:, 0]].sum())
            if number > begin and num_frames + of_batch > BLOCK_FRAMES:
                yield batches[begin:number]
                begin, num_frames = number, 0
            num_frames += of_batch
        if batches:  # a process may have none
            yield batches[begin:]


def _batch(read: Read, *, mask: Tensor, is_read: Tensor, **others: Tensor) -> Batch:
    """Return what was read as a batch, without the frames that were lost."""
    if read.is_lost is not None:
        is_read = (mask & ~read.is_lost).any(1)
        # A clip of which no frame was read keeps its mask, over black frames, so that it has
        # finite logits; it has no weight in the loss.
        mask = mask & ~(read.is_lost & is_read[:, None])
    return Batch(inputs=read.inputs, mask=mask, is_read=is_read, faults=read.faults, **others)


def training_batches(
    lengths: npt.NDArray[np.int64],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    drop_last: bool = False,
) -> list[Keys]:
    """Return the batches of one training epoch: every clip once, similar lengths together.

    Clips are shuffled; blocks of `BLOCK_BATCHES` batches are sorted by length (stably, so that
    clips of equal length stay shuffled) and divided into batches; the batches are shuffled.

    Args:
        lengths: [N] frames of each clip.
        batch_size: clips per batch; one batch may be smaller.
        seed: seed of the order.
        epoch: epoch, which is also the draw of each sample.
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
    keys = np.stack([order, np.full(len(order), epoch)], axis=1)
    return [keys[start : start + batch_size] for start in starts.tolist()]


def evaluation_batches(lengths: Frames, num_draws: Frames, max_tokens: int) -> list[Keys]:
    """Return the batches of an evaluation: all draws of every row, longest rows first.

    Args:
        lengths: [N] frames of a clip of each row.
        num_draws: [N] draws of each row.
        max_tokens: largest number of frames in a batch, padding included; a longer clip is a batch
            of its own.

    >>> batches = evaluation_batches(np.array([5, 9, 5]), np.array([1, 1, 2]), 18)
    >>> [keys.tolist() for keys in batches]
    [[[1, 0], [0, 0]], [[2, 0], [2, 1]]]
    """
    order = np.argsort(-lengths, kind="stable")
    draws = [np.arange(count) for count in num_draws[order].tolist()]
    order = order.repeat(num_draws[order])
    keys = np.stack([order, np.concatenate(draws)], axis=1)
    batches: list[Keys] = []
    begin = 0
    while begin < len(keys):
        end = begin + max(1, max_tokens // int(lengths[order[begin]]))
        batches.append(keys[begin:end])
        begin = end
    return batches


def share_of(keys: Keys, index: int, num_shares: int) -> Keys:
    """Return one share of a batch; shares differ in size by at most one, and may be empty.

    Args:
        keys: keys of the batch.
        index: number of the share, from 0.
        num_shares: number of shares.

    >>> keys = np.array([[0, 0], [1, 0], [2, 0]])
    >>> [share_of(keys, index, 2).tolist() for index in (0, 1)]
    [[[0, 0], [1, 0]], [[2, 0]]]
    """
    size, num_larger = divmod(len(keys), num_shares)
    begin = index * size + min(index, num_larger)
    return keys[begin : begin + size + (index < num_larger)]


def load_batches(
    dataset: ClipDataset,
    batches: Sequence[Keys],
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
        yield from dataset.batches(batches)
        return

    def load(keys: Keys) -> Batch:
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
