"""The processes that fit or evaluate one model together, by Hugging Face accelerate: one, or as
many as `torchrun` or `accelerate launch` started.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object

from ..manifests.errors import SettingsError
from .choices import Precision

__all__ = ["Accelerator", "accelerated", "all_of", "max_of", "sum_of"]

_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@contextmanager
def accelerated(device: str, precision: Precision) -> Iterator[Accelerator]:
    """Yields what places a model on this process's device and keeps the processes together.

    Args:
        device: `cpu`, `cuda` or `cuda:N`; of several processes, each takes a GPU of its own.
        precision: of what a prepared model computes.

    Raises:
        SettingsError: a CPU can't compute in float16.
    """
    is_cpu = device == "cpu"
    if is_cpu and precision == "float16":
        raise SettingsError(
            "--precision float16 with --device cpu: it needs a GPU; give bfloat16 or float32"
        )
    if ":" in device:
        torch.cuda.set_device(device)
    AcceleratorState._reset_state()  # of a run before in this process, perhaps in another precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # the last layer's, often
    accelerator = Accelerator(
        cpu=is_cpu, mixed_precision=_MIXED[precision], kwargs_handlers=[unused]
    )
    try:
        yield accelerator
    finally:
        if accelerator.num_processes == 1:
            AcceleratorState._reset_state()
            PartialState._reset_state()


def max_of(accelerator: Accelerator, value: int) -> int:
    """The largest of all processes' values."""
    if accelerator.num_processes == 1:
        return value
    found = accelerator.gather(torch.tensor([value], device=accelerator.device))
    return int(found.max())


def sum_of(accelerator: Accelerator, value: float) -> float:
    """The sum of all processes' values."""
    if accelerator.num_processes == 1:
        return value
    mine = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    return float(accelerator.gather(mine).sum())


def all_of(accelerator: Accelerator, value: Any) -> list[Any]:
    """All processes' values, by rank."""
    if accelerator.num_processes == 1:
        return [value]
    return list(gather_object([value]))
