"""Distributed training and evaluation: several processes for one model, by Hugging Face accelerate.

There is one process, or as many as `torchrun` or `accelerate launch` started.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import gather_object

from ..manifests.errors import SettingsError

Precision = Literal["float32", "bfloat16", "float16"]

__all__ = [
    "Accelerator",
    "Precision",
    "PrecisionChoice",
    "accelerated",
    "all_of",
    "choose_precision",
    "max_of",
    "sum_of",
]

PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]

_MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


def choose_precision(choice: PrecisionChoice, device: str) -> Precision:
    """Return the precision of a training: by default bfloat16 on a GPU that has it, else float32.

    >>> choose_precision("auto", "cpu"), choose_precision("bfloat16", "cpu")
    ('float32', 'bfloat16')
    """
    if choice != "auto":
        return choice
    has_bfloat16 = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_bfloat16 else "float32"


@contextmanager
def accelerated(device: str, precision: Precision) -> Iterator[Accelerator]:
    """Yield the accelerator, which places a model on the device and connects the processes.

    Args:
        device: `cpu`, `cuda` or `cuda:N`; several processes each take a GPU of their own.
        precision: precision in which a prepared model computes.

    Raises:
        SettingsError: `float16` on a CPU, which does not support it.
    """
    is_cpu = device == "cpu"
    if is_cpu and precision == "float16":
        raise SettingsError(
            "--precision float16 with --device cpu: it needs a GPU; give bfloat16 or float32"
        )
    if ":" in device:
        torch.cuda.set_device(device)
    AcceleratorState._reset_state()  # an earlier run in this process may have set another precision
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)  # e.g. the last layer's
    accelerator = Accelerator(
        cpu=is_cpu, mixed_precision=_MIXED[precision], kwargs_handlers=[unused]
    )
    try:
        yield accelerator
        if accelerator.num_processes > 1:
            # One process that ends while others still work would abort them.
            accelerator.wait_for_everyone()
            torch.distributed.destroy_process_group()
    finally:
        if accelerator.num_processes == 1:
            AcceleratorState._reset_state()
            PartialState._reset_state()


def max_of(accelerator: Accelerator, value: int) -> int:
    """Return the largest of all processes' values."""
    if accelerator.num_processes == 1:
        return value
    found = accelerator.gather(torch.tensor([value], device=accelerator.device))
    return int(found.max())


def sum_of(accelerator: Accelerator, value: float) -> float:
    """Return the sum of all processes' values."""
    if accelerator.num_processes == 1:
        return value
    mine = torch.tensor([value], dtype=torch.float64, device=accelerator.device)
    return float(accelerator.gather(mine).sum())


def all_of(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return all processes' values, in the order of their ranks."""
    if accelerator.num_processes == 1:
        return [value]
    return list(gather_object([value]))
