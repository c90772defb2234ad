"""Inference: logits of a data set's videos, and of one video with some of its frames hidden.

`predict_logits` averages logits over clips and views, and `predict_frames`, which gives logits to
each frame, over overlapping windows and views; both divide the batches among all processes.
`prefix_logits` and `logits_without` show which frames decide the prediction for one video: they
return its logits if only the beginning is visible, or if a part is hidden.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..manifests.errors import FeaturesError, StoppedError
from .clips import Windows
from .dataset import ClipDataset, Keys, evaluation_batches, load_batches
from .distributed import Accelerator, all_of
from .model import TemporalClassifier

MAX_TOKENS = 16_384  # per forward pass, padding included, unless one clip alone has more


class Scored(NamedTuple):
    """Logits of a split's videos.

    Attributes:
        logits: [M, C], one row per scored video.
        rows: [M] indices of the scored rows in the split; None for all rows, in order.
        faults: (video_id, why) of each video that could not be read completely.
    """

    logits: Tensor
    rows: Tensor | None = None
    faults: tuple[tuple[str, str], ...] = ()


def never() -> bool:
    """Return False: the default of `should_stop`, which never asks to stop."""
    return False


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    dataset: ClipDataset,
    *,
    accelerator: Accelerator,
    max_tokens: int = MAX_TOKENS,
    num_workers: int = 0,
    should_stop: Callable[[], bool] = never,
) -> Tensor:
    """Return the logits of a data set's rows, [N, C], the same in every process.

    The logits of a row are the mean over its draws. Whole batches are distributed to the processes
    in turn, and logits are added in the order of the batches, so that the result does not depend on
    the number of processes.

    Args:
        network: model as returned by `accelerator.prepare`; in evaluation mode afterwards.
        dataset: data set of `EvenClips`.
        accelerator: see `temporal/distributed.py`.
        max_tokens: largest number of frames in a batch, in each process.
        num_workers: threads that load batches ahead.
        should_stop: called after each batch; returns whether to stop.

    Raises:
        StoppedError: `should_stop` returned True in one of the processes.
    """
    sums: Tensor | None = None
    batches = evaluation_batches(dataset.lengths, dataset.num_draws, max_tokens)
    for keys, logits in _logits_of_batches(
        network, dataset, batches, accelerator, num_workers, should_stop
    ):
        if sums is None:
            sums = torch.zeros(len(dataset), logits.shape[1], dtype=torch.float64)
            dtype = logits.dtype
        sums.index_add_(0, torch.from_numpy(keys[:, 0]), logits.double())
    assert sums is not None, "a split has at least one row"
    return (sums / torch.from_numpy(dataset.num_draws)[:, None]).to(dtype)


@torch.inference_mode()
def predict_frames(
    network: nn.Module,
    dataset: ClipDataset,
    *,
    accelerator: Accelerator,
    max_tokens: int = MAX_TOKENS,
    num_workers: int = 0,
    should_stop: Callable[[], bool] = never,
) -> Iterator[tuple[int, Tensor]]:
    """Yield number and logits [T, C] of each of a data set's rows, the same in every process.

    The logits of a frame are the mean over the windows and views that it is in, as
    `Windows.weights` weights them. Only the rows of the batches at hand are in memory. Long rows
    come first.

    Args:
        network: model of a task on frames, as `accelerator.prepare` returns it.
        dataset: data set of `Windows`.
        accelerator: see `temporal/distributed.py`.
        max_tokens: largest number of frames in a batch, in each process.
        num_workers: threads that load batches ahead.
        should_stop: called after each batch; returns whether to stop.

    Raises:
        StoppedError: `should_stop` returned True in one of the processes.
    """
    batches = evaluation_batches(dataset.lengths, dataset.num_draws, max_tokens)
    lengths, num_draws = dataset.num_frames, dataset.num_draws
    sums: dict[int, Tensor] = {}  # weighted sum of the logits of a row, [T, C]
    totals: dict[int, Tensor] = {}  # sum of the weights, [T, 1]
    for keys, logits in _logits_of_batches(
        network, dataset, batches, accelerator, num_workers, should_stop
    ):
        for (row, draw), of_window in zip(keys.tolist(), logits.double(), strict=True):
            if row not in sums:
                sums[row] = torch.zeros(lengths[row], logits.shape[2], dtype=torch.float64)
                totals[row] = torch.zeros(lengths[row], 1, dtype=torch.float64)
            start, weights = dataset.window(row, draw)
            weight = torch.from_numpy(weights)[:, None]
            span = slice(start, start + len(weight))
            sums[row][span] += weight * of_window[: len(weight)]
            totals[row][span] += weight
            if draw == num_draws[row] - 1:
                yield row, (sums.pop(row) / totals.pop(row)).to(logits.dtype)


@torch.inference_mode()
def video_frame_logits(
    model: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    positions: Callable[[slice], Tensor],
    windows: Windows,
) -> Tensor:
    """Return the logits [T, C] of one video's frames, as `predict_frames` computes them.

    Args:
        model: takes inputs [1, T, ...] and positions [1, T], and returns logits [1, T, C].
        inputs: [V, T, ...] inputs of the video, on the model's device.
        positions: returns the positions [t] of some frames, from the first of them, on that device.
        windows: windows to divide the video into.
    """
    lengths = np.array([inputs.shape[1]])
    T = int(lengths[0])
    total, weight_sum = torch.zeros(()), torch.zeros(T, 1, dtype=torch.float64)
    for start in windows.starts(lengths, np.arange(int(windows.counts(lengths)[0]))).tolist():
        end = min(T, start + (windows.num_frames or T))
        weights = torch.from_numpy(windows.weights(start, end - start, T))[:, None]
        weight_sum[start:end] += weights
        own = positions(slice(start, end))[None]
        views = [model(view[None, start:end], own)[0].double().cpu() for view in inputs]
        if not total.ndim:
            total = torch.zeros(T, views[0].shape[1], dtype=torch.float64)
        total[start:end] += weights * torch.stack(views).mean(0)
    return (total / weight_sum).float()


def _logits_of_batches(
    network: nn.Module,
    dataset: ClipDataset,
    batches: list[Keys],
    accelerator: Accelerator,
    num_workers: int,
    should_stop: Callable[[], bool],
) -> Iterator[tuple[Keys, Tensor]]:
    """Yield keys and logits of each batch, in order, on the CPU; processes take turns.

    Raises:
        StoppedError: `should_stop` returned True in one of the processes.
    """
    network.eval()
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    loader = load_batches(dataset, batches[rank::num_processes], num_workers, accelerator.device)
    for first in range(0, len(batches), num_processes):
        batch = next(loader, None)
        mine = None if batch is None else network(*batch.on(accelerator.device)).cpu()
        found = all_of(accelerator, (mine, should_stop()))
        if any(stops for _, stops in found):
            raise StoppedError("stopped while evaluating")
        for number, (logits, _) in enumerate(found):
            if logits is not None:
                # Autocast returns bfloat16.
                precise = torch.promote_types(logits.dtype, torch.float32)
                yield batches[first + number], logits.to(precise)


def check_logits(logits: Tensor, video_ids: Sequence[str]) -> None:
    """Refuse logits [N, C] that are not finite.

    Raises:
        FeaturesError: names the first video with such logits.
    """
    is_finite = logits.isfinite().all(1)
    if not is_finite.all():
        first = int((~is_finite).nonzero()[0])
        raise FeaturesError(
            f"video_id {video_ids[first]!r}: its logits are not finite ("
            f"{int((~is_finite).sum()):,} of {len(logits):,} videos); the model's weights are "
            "broken, or overflow in this --precision: train it again, or give --precision float32"
        )


def even_spans(num_frames: int, most: int) -> list[tuple[int, int]]:
    """Divide frames into spans of about equal length, at least one frame each.

    Args:
        num_frames: number of frames.
        most: number of spans, unless there are fewer frames.

    Returns:
        Half-open ranges of frames.

    >>> even_spans(5, 2), even_spans(2, 10)
    ([(0, 2), (2, 5)], [(0, 1), (1, 2)])
    """
    count = min(num_frames, most)
    ends = [number * num_frames // count for number in range(count + 1)]
    return list(pairwise(ends))


@torch.inference_mode()
def prefix_logits(
    model: TemporalClassifier, features: Tensor, positions: Tensor, lengths: Sequence[int]
) -> Iterator[Tensor]:
    """Yield a video's logits, [C], for each number of first frames that the model sees.

    The logits are the mean over the views.

    Args:
        model: model in evaluation mode.
        features: [V, T, D] features of the video.
        positions: [T] int, frame positions.
        lengths: numbers of first frames, each from 1 to T.
    """
    V = len(features)
    for length in lengths:
        yield model(features[:, :length], positions[:length].expand(V, -1)).mean(0)


@torch.inference_mode()
def logits_without(
    model: TemporalClassifier,
    features: Tensor,
    positions: Tensor,
    spans: Sequence[tuple[int, int]],
) -> Iterator[Tensor]:
    """Yield a video's logits, [C], for each span of frames that is hidden from the model.

    The logits are the mean over the views. Hidden frames are masked: no token attends to them, and
    the other frames keep their positions.

    Args:
        model: model in evaluation mode.
        features: [V, T, D] features of the video.
        positions: [T] int, frame positions.
        spans: half-open ranges of frames to hide.
    """
    _, T, D = features.shape
    at_once = max(1, MAX_TOKENS // T)
    frames = torch.arange(T, device=features.device)
    for first in range(0, len(spans), at_once):
        ends = torch.tensor(spans[first : first + at_once], device=features.device)
        is_hidden = (frames >= ends[:, :1]) & (frames < ends[:, 1:])  # [B, T]
        B = len(ends)
        of_views = [
            model(view.expand(B, T, D), positions.expand(B, T), ~is_hidden) for view in features
        ]
        yield from torch.stack(of_views).mean(0)
