"""Decoder process of a GPU's video engines (NVDEC): frames stay in the GPU's memory.

A thread for each connection serves requests as `decode/process.py` does, with frames that FFmpeg
leaves on the GPU: threads of one process share the engines well, processes do not. Frames pass
through slots of memory that the worker owns. The rules for files and the checks of what the engines
give are in `decode/nvdec.py` and `decode/frames.py`.

There is no limit of memory as in other decoder processes: CUDA maps what would exceed it. Planning
has opened the files before, under one.

With the device `cpu` the frames are decoded by the CPU, in the same process and by the same rules,
for tests.
"""

import os
import resource
import sys
import threading
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from .decode.cuda_driver import CudaError, DeviceMemory
from .decode.frame_format import FrameFormat, Plane, PlaneReader, planar_format
from .decode.frames import Frame, FrameSource, SoftwareFrames
from .decode.launch import Child, Link
from .decode.limits import Limits
from .decode.nvdec import NvdecFaultError, read_engines
from .decode.probe import VideoInfo
from .decode.process import Server, exit_with_parent
from .decode.protocol import NUM_SLOTS, DecodeRequest, FrameSlots, SharedFrames
from .decode.remote import Remote

NUM_THREADS = 8  # enough for the engines of an H200
SLOT_BYTES = 32 * 2**20  # a frame of 3840 x 2160 pixels of 10 bits fits


class DeviceSlots:
    """Slots of a GPU's memory; a `FrameSlots`.

    Args:
        memory: [NUM_SLOTS, SLOT_BYTES] uint8.
    """

    def __init__(self, memory: Tensor) -> None:
        self._memory = memory
        self._written: torch.cuda.Event | None = None

    def data(self, slot: int, num_frames: int, num_bytes: int) -> Tensor:
        """See `FrameSlots`."""
        return self._memory[slot, : num_frames * num_bytes].view(num_frames, num_bytes)

    def write(self, slot: int, number: int, frame: Frame) -> None:
        """See `FrameSlots`."""
        memory, offset = self.data(slot, number + 1, frame.format.num_bytes)[number], 0
        for plane in frame.planes:
            part = memory[offset : offset + plane.nbytes]
            part.view(plane.dtype).view(plane.shape).copy_(plane)
            offset += plane.nbytes

    def flush(self) -> None:
        """See `FrameSlots`."""
        # FFmpeg uses a frame's memory again in the same stream, behind the copy.
        if self._memory.is_cuda:
            if self._written is None:
                self._written = torch.cuda.Event(blocking=True)
            self._written.record(torch.cuda.current_stream(self._memory.device))
            self._written.synchronize()

    def is_pinned(self, num_bytes: int) -> bool:
        """See `FrameSlots`."""
        return False


class HardwareFrames:
    """Frames that the engines decode; a `FrameSource`.

    Args:
        info: probe of the file.
        gpu: index of the GPU.
    """

    def __init__(self, info: VideoInfo, gpu: int | None) -> None:
        self.gpu = gpu
        self._orientation = info.orientation
        self._read_software = PlaneReader(info.orientation)

    def read(self, frame: Any) -> tuple[FrameFormat, Sequence[Tensor]]:
        """See `FrameSource`: luma [H, W] and chroma [2, H / 2, W / 2], as tensors."""
        if frame.format.name != "cuda":
            raise NvdecFaultError(f"gives frames of the format {frame.format.name}")
        luma, chroma = (from_dlpack(plane.__dlpack__()) for plane in frame.planes)
        return format_and_planes(frame, luma, chroma, self._orientation)

    def equals(self, frame: Any, expected: Any) -> bool:
        """See `FrameSource`."""
        layout, planes = self.read(frame)
        found = self._read_software(expected)
        if found is None or found[0] != layout:
            return False
        luma, *chroma = found[1]
        pairs = zip(planes, (luma, np.stack(chroma)), strict=True)
        return all(_is_equal(ours, theirs) for ours, theirs in pairs)


def format_and_planes(
    frame: Any, luma: Tensor, chroma: Tensor, orientation: Any
) -> tuple[FrameFormat, tuple[Tensor, Tensor]]:
    """Return the format of a frame, and its planes as `FrameFormat` has them.

    Args:
        frame: PyAV frame, for its size and colors.
        luma: [H, W], NV12 (uint8) or P010 (uint16, whose upper 10 bits are used).
        chroma: [H / 2, W / 2, 2] of the same dtype.
        orientation: how frames are turned upright.

    Raises:
        NvdecFaultError: the planes are others, or too large.
    """
    num_bits = 8 if luma.dtype == torch.uint8 else 10
    layout = planar_format(frame, "yuv420p" if num_bits == 8 else "yuv420p10le", orientation)
    if layout is None:
        raise NvdecFaultError(f"gives frames of color space {int(frame.colorspace)}")
    shapes = (layout.height, layout.width), (*layout.chroma_size, 2)
    if (luma.shape, chroma.shape) != shapes:
        raise NvdecFaultError(f"gives planes {list(luma.shape)} and {list(chroma.shape)}")
    if layout.num_bytes > SLOT_BYTES:
        raise NvdecFaultError(f"frames of {layout.width}x{layout.height} are too large")
    if num_bits == 10:
        luma, chroma = ((one.view(torch.int16) >> 6) & 0x3FF for one in (luma, chroma))
    return layout, (luma, chroma.permute(2, 0, 1))


def _is_equal(ours: Tensor, theirs: Plane) -> bool:
    other = theirs if ours.dtype == torch.uint8 else theirs.view(np.int16)
    return torch.equal(ours.cpu(), torch.from_numpy(np.ascontiguousarray(other)))


class NvdecLauncher:
    """Starts the process of a GPU's engines, with memory for its frames that the worker owns.

    Args:
        device: the worker's device, `cuda` or `cuda:N`; `cpu` to decode there.
        num_threads: number of threads.
        module: module whose `main` the process runs.

    Raises:
        NvdecFaultError: the GPU has no engines that can be used.
    """

    def __init__(self, device: str, num_threads: int = NUM_THREADS, module: str = __name__) -> None:
        self.num_threads = num_threads
        self._module = module
        self._gpu: int | None = None
        if device == "cpu":
            return
        with torch.cuda.device(device):
            self._gpu = torch.cuda.current_device()
        if obstacle := read_engines(self._gpu).obstacle:
            raise NvdecFaultError(obstacle)

    def launch(self, limits: Limits) -> list[Link]:
        """Start the process; return its connections.

        Raises:
            NvdecFaultError: the memory cannot be allocated or shared.
        """
        slots: list[FrameSlots] = []
        if self._gpu is None:
            shared = [SharedFrames(limits.max_pixels) for _ in range(self.num_threads)]
            inherited = [one.descriptor for one in shared]
            arguments = ("cpu", ",".join(map(str, inherited)), *limits.arguments)
            slots += shared
        else:
            # New, as chunks of a lost process may be in use.
            memory, handle = self._allocate(self._gpu)
            inherited, arguments = [], (f"{self._gpu}", handle, *limits.arguments)
            slots += slots_of(memory, self.num_threads, self._gpu)
        child = Child(self._module, self.num_threads, arguments, inherited)
        return [Link(child, *one) for one in zip(child.connections, slots, strict=True)]

    def _allocate(self, gpu: int) -> tuple[DeviceMemory, str]:
        """Return memory for the frames of all threads, and its handle."""
        with torch.cuda.device(gpu):
            _use_context(gpu)
            try:
                memory = DeviceMemory(self.num_threads * NUM_SLOTS * SLOT_BYTES)
                return memory, memory.handle
            except (CudaError, RuntimeError) as error:
                raise NvdecFaultError(str(error)) from None


def slots_of(memory: DeviceMemory, num_threads: int, gpu: int) -> list[DeviceSlots]:
    """Return the slots of each thread."""
    tensor = torch.as_tensor(memory, device=f"cuda:{gpu}")
    return [DeviceSlots(one) for one in tensor.view(num_threads, NUM_SLOTS, SLOT_BYTES)]


def main() -> None:
    """Serve requests until the parent is gone."""
    connections, lifeline, device, memory, max_pixels, remote = sys.argv[1:]
    exit_with_parent(int(lifeline))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    descriptors = [int(one) for one in connections.split(",")]
    slots: list[FrameSlots] = []
    gpu: int | None = None
    if device == "cpu":
        slots += [SharedFrames(int(max_pixels), int(one)) for one in memory.split(",")]
    else:
        gpu = int(device)
        _use_context(gpu)
        shared = DeviceMemory(len(descriptors) * NUM_SLOTS * SLOT_BYTES, memory)
        slots += slots_of(shared, len(descriptors), gpu)
    threads = [
        threading.Thread(
            target=_serve, args=(descriptor, *one, int(max_pixels), Remote.from_json(remote), gpu)
        )
        for descriptor, *one in zip(descriptors, slots, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(
    descriptor: int, slots: FrameSlots, max_pixels: int, remote: Remote, gpu: int | None
) -> None:
    """Serve the requests of one connection."""

    def source_of(info: VideoInfo, request: DecodeRequest) -> FrameSource:
        return SoftwareFrames(info, as_planes=True) if gpu is None else HardwareFrames(info, gpu)

    try:
        if gpu is not None:
            _use_context(gpu)
        Server(Connection(descriptor), slots, max_pixels, remote, source_of).serve()
    except (EOFError, ConnectionError):
        return
    except BaseException:  # noqa: BLE001  # errors of CUDA stay, for all threads
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _use_context(gpu: int) -> None:
    """Make PyTorch's context of a GPU the present one of this thread."""
    torch.cuda.set_device(gpu)
    torch.zeros(1, device=f"cuda:{gpu}")  # a kernel: memory alone may come from a cache
    torch.cuda.synchronize(gpu)
