"""Where a backbone runs and in which precision: decided once, with a reason for the log."""

import torch

from ..manifests.errors import SettingsError
from .choices import Precision


def resolve_device(device: str) -> str:
    """`cpu`, `cuda` or `cuda:N` for `auto` or one of these.

    Raises:
        SettingsError: this machine has no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise SettingsError(f"device {device!r} is none of auto, cpu, cuda, cuda:N")
    num_gpus = torch.cuda.device_count()
    if kind == "cuda" and int(index or 0) >= num_gpus:
        raise SettingsError(
            f"device {device!r}: this machine has {num_gpus} CUDA devices that torch can use; "
            "give --device cpu, or see `vtnpipe doctor`"
        )
    return device


def resolve_precision(precision: Precision, device: str) -> tuple[str, str]:
    """The dtype to run in, and why.

    Returns:
        (`float32`, `bfloat16` or `float16`, the reason in words).
    """
    if precision != "auto":
        return precision, "asked for"
    if device != "cpu":
        if torch.cuda.is_bf16_supported():
            return "bfloat16", "the GPU has bfloat16"
        return "float16", "the GPU has no bfloat16"
    return cpu_precision()


def cpu_precision() -> tuple[str, str]:
    """The fastest dtype of this CPU that keeps the features, and why."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    found = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    if found:
        return "bfloat16", f"the CPU has {found[0]}"
    return "float32", "the CPU has no bfloat16 instructions"
