"""Device and precision of a backbone: decided once, with a reason for the log."""

import importlib.util
import os
import re
import shutil
import warnings
from collections.abc import Callable
from typing import Literal

import torch

from ..manifests.errors import SettingsError

PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]


def resolve(
    device: str, precision: PrecisionChoice, *, is_compiled: bool = False
) -> tuple[str, str, str]:
    """Return device and dtype to use on this machine, and the reason for the dtype.

    Raises:
        SettingsError: this machine does not support them.
    """
    device = resolve_device(device)
    if is_compiled:
        check_can_compile(device)
    return device, *resolve_precision(precision, device)


def resolve_device(device: str) -> str:
    """Return `cpu`, `cuda` or `cuda:N` for `auto` or one of these.

    Raises:
        SettingsError: this machine has no such device.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    match = re.fullmatch(r"cpu|cuda(?::([0-9]+))?", device)
    if match is None:
        raise SettingsError(f"--device {device!r}: give auto, cpu, cuda or cuda:N")
    num_devices = torch.cuda.device_count()
    if device != "cpu" and int(match[1] or 0) >= num_devices:
        raise SettingsError(
            f"--device {device!r}: torch finds {num_devices} CUDA devices on this machine; give "
            "--device cpu, or see `vtnpipe doctor`"
        )
    return device


def pinning_of(device: str) -> Callable[[int, int], Callable[[], None]] | None:
    """Return a function that registers memory for fast copies to a GPU; None for a CPU.

    The function takes an address and a number of bytes, and returns a function that undoes it.
    """
    if device == "cpu":
        return None

    def pin(address: int, num_bytes: int) -> Callable[[], None]:
        with torch.cuda.device(device):
            error = torch.cuda.cudart().cudaHostRegister(address, num_bytes, 0)
        if int(error):
            warnings.warn(
                f"{device} does not register memory (error {error}): copies are slower",
                stacklevel=2,
            )
            return lambda: None
        return lambda: torch.cuda.cudart().cudaHostUnregister(address)

    return pin


def num_gpus(device: str) -> int:
    """Return the number of GPUs that `cuda` (all of them) or `cuda:N` (one) denotes."""
    return 1 if ":" in device else torch.cuda.device_count()


def resolve_precision(precision: PrecisionChoice, device: str) -> tuple[str, str]:
    """Return `float32`, `bfloat16` or `float16`, and the reason in words."""
    if precision != "auto":
        return precision, "as given"
    if device != "cpu":
        with torch.cuda.device(device):
            has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if has_bfloat16:
            return "bfloat16", "the GPU has bfloat16"
        return "float16", "the GPU has no bfloat16"
    return cpu_precision()


def cpu_precision() -> tuple[str, str]:
    """Return the fastest dtype of this CPU that preserves the features, and the reason."""
    if not hasattr(torch.cpu, "get_capabilities"):
        return "float32", f"torch {torch.__version__} cannot tell whether the CPU has bfloat16"
    capabilities = torch.cpu.get_capabilities()
    found = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    if found:
        return "bfloat16", f"the CPU has {found[0]}"
    return "float32", "the CPU has no bfloat16 instructions"


def can_compile(device: str) -> bool:
    """Return whether this machine has a compiler for the device."""
    try:
        check_can_compile(device)
    except SettingsError:
        return False
    return True


def check_can_compile(device: str) -> None:
    """Refuse `--compile yes` without a compiler for the device.

    Raises:
        SettingsError: there is none.
    """
    if device != "cpu":
        if importlib.util.find_spec("triton") is None:
            raise SettingsError("--compile yes: needs triton on a GPU; install it, or leave it out")
        return
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if not any(map(shutil.which, compilers)):
        raise SettingsError(
            f"--compile yes: no C++ compiler ({', '.join(compilers)}) on this machine; install "
            "one, or leave it out"
        )
