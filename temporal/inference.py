"""A model's logits for the videos of a data set: averaged over clips and views, by all processes
together.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..manifests.errors import StoppedError
from .batch import Batch
from .dataset import ClipDataset
from .distributed import Accelerator, all_of
from .order import evaluation_batches


class Scored(NamedTuple):
    """Logits of a split's videos.

    Attributes:
        logits: [M, C].
        rows: [M] numbers of the rows that they are of; None for all, in order.
        faults: (video_id, why) of the rows that could not be read, or not all of them.
    """

    logits: Tensor
    rows: Tensor | None = None
    faults: tuple[tuple[str, str], ...] = ()


def never() -> bool:
    """Nothing asks to stop."""
    return False


@torch.inference_mode()
def predict_logits(
    network: nn.Module,
    dataset: ClipDataset,
    *,
    batch_size: int,
    accelerator: Accelerator,
    num_loaders: int = 0,
    should_stop: Callable[[], bool] = never,
) -> Tensor:
    """Logits [N, C] of a data set's rows, the same in every process.

    Whole batches go to the processes in turn, so that a clip's logits don't depend on how many
    there are, and sums are taken in the order of the batches.

    Args:
        network: as `accelerator.prepare` gives it; is in evaluation mode afterwards.
        dataset: of `EvenClips`; the mean of each row's logits is taken over its draws.
        batch_size: clips at once, in each process.
        accelerator: see `temporal/distributed.py`.
        num_loaders: processes that read ahead.
        should_stop: asked after every batch.

    Raises:
        StoppedError: it said so, in one of the processes.
    """
    network.eval()
    rank, num_processes = accelerator.process_index, accelerator.num_processes
    batches = evaluation_batches(dataset.lengths, dataset.num_draws, batch_size)
    loader = iter(load(dataset, batches[rank::num_processes], num_loaders, accelerator))
    sums: Tensor | None = None
    for _ in range(0, len(batches), num_processes):
        batch = next(loader, None)
        mine = None if batch is None else (batch.numbers, run(network, batch, accelerator).cpu())
        found = all_of(accelerator, (mine, should_stop()))
        if any(stops for _, stops in found):
            raise StoppedError("stopped while evaluating")
        for numbers, logits in (one for one, _ in found if one is not None):
            if sums is None:
                sums = torch.zeros(len(dataset), logits.shape[1], dtype=torch.float64)
                dtype = logits.dtype
            sums.index_add_(0, numbers, logits.double())
    assert sums is not None, "a split has rows"
    return (sums / dataset.num_draws).to(dtype)


def load(
    dataset: ClipDataset,
    batches: list[list[tuple[int, int]]],
    num_loaders: int,
    accelerator: Accelerator,
) -> DataLoader[Batch]:
    """Reads batches of keys, in their order; what processes read ahead for a GPU lies in pinned
    memory.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=num_loaders,
        pin_memory=num_loaders > 0 and accelerator.device.type == "cuda",
    )


def _as_it_is(batch: Any) -> Any:
    return batch  # a data set's items are batches already


def run(network: nn.Module, batch: Batch, accelerator: Accelerator) -> Tensor:
    """Logits [B, C] of a batch, on the device."""
    inputs = (batch.inputs, batch.positions, batch.mask)
    here = (tensor.to(accelerator.device, non_blocking=True) for tensor in inputs)
    logits: Tensor = network(*here)
    return logits
