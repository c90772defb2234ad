"""NVIDIA's driver without PyTorch: GPU memory that two processes share, in a CUDA context.

Functions as in cuda.h of the CUDA toolkit. Nothing is loaded before it is needed.
"""

import ctypes
import weakref
from functools import cache
from typing import Any

PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


class CudaError(Exception):
    """A call of the driver failed."""


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


@cache
def driver() -> ctypes.CDLL:
    """Return the driver's library.

    Raises:
        CudaError: there is none.
    """
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise CudaError("there is no NVIDIA driver on this machine") from None


def check(error: int, what: str) -> None:
    """Raise a CudaError if a call of the driver returned an error."""
    if error:
        raise CudaError(f"{what} failed with CUDA error {error}; see `nvidia-smi`")


class DeviceMemory:
    """Memory of the GPU of the present context; tensors of PyTorch can be made of it.

    It is freed when nothing refers to it any more; tensors do.

    Args:
        num_bytes: its size.
        handle: handle of memory that another process has allocated; None to allocate it.

    Raises:
        CudaError: the driver refuses.
    """

    def __init__(self, num_bytes: int, handle: str | None = None) -> None:
        address = ctypes.c_uint64()
        if handle is None:
            error = driver().cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(num_bytes))
            check(error, f"allocating {num_bytes / 2**20:.0f} MiB for frames")
        else:
            shared = _IpcHandle.from_buffer_copy(bytes.fromhex(handle))
            error = driver().cuIpcOpenMemHandle_v2(ctypes.byref(address), shared, PEER_ACCESS)
            check(error, "opening memory of another process")
        self.num_bytes = num_bytes
        self._address = address.value
        if handle is None:
            weakref.finalize(self, driver().cuMemFree_v2, address)

    @property
    def handle(self) -> str:
        """Handle with which another process opens it, hexadecimal.

        Raises:
            CudaError: the driver refuses.
        """
        shared = _IpcHandle()
        address = ctypes.c_uint64(self._address)
        check(driver().cuIpcGetMemHandle(ctypes.byref(shared), address), "sharing memory")
        return bytes(shared).hex()

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Description for PyTorch, as an array [num_bytes] uint8."""
        return {
            "shape": (self.num_bytes,),
            "typestr": "|u1",
            "data": (self._address, False),
            "version": 3,
        }
