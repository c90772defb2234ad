"""Where a backbone runs and in which precision: decided once, with a reason for the log."""

import importlib.util
import os
import re
import shutil

import torch

from ..manifests.errors import SettingsError
from .choices import Precision


def resolve(
    device: str, precision: Precision, *, is_compiled: bool = False
) -> tuple[str, str, str]:
    """Device and dtype to run in on this machine, and the reason for the dtype.

    Raises:
        SettingsError: this machine can't.
    """
    device = resolve_device(device)
    if is_compiled:
        check_can_compile(device)
    return device, *resolve_precision(precision, device)


def resolve_device(device: str) -> str:
    """`cpu`, `cuda` or `cuda:N` for `auto` or one of these.

    Raises:
        SettingsError: this machine has no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", device)
    if match is None:
        raise SettingsError(f"--device {device!r}: give auto, cpu, cuda or cuda:N")
    num_gpus = torch.cuda.device_count()
    if device != "cpu" and int(match[1] or 0) >= num_gpus:
        raise SettingsError(
            f"--device {device!r}: this machine has {num_gpus} CUDA devices that torch can use; "
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
        with torch.cuda.device(device):
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if has_bfloat16:
            return "bfloat16", "the GPU has bfloat16"
        return "float16", "the GPU has no bfloat16"
    return cpu_precision()


def check_can_compile(device: str) -> None:
    """Refuses `--compile` where torch has nothing to compile with.

    Raises:
        SettingsError: it hasn't.
    """
    if device != "cpu":
        if importlib.util.find_spec("triton") is None:
            raise SettingsError("--compile: on a GPU it needs triton; install it, or leave it out")
        return
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, compilers)):
        raise SettingsError(
            f"--compile: no C++ compiler ({', '.join(compilers)}) on this machine; install one, or "
            "leave it out"
        )


def cpu_precision() -> tuple[str, str]:
    """The fastest dtype of this CPU that keeps the features, and why."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return "float32", f"torch {torch.__version__} can't say whether the CPU has bfloat16"
    capabilities = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    if found:
        return "bfloat16", f"the CPU has {found[0]}"
    return "float32", "the CPU has no bfloat16 instructions"
