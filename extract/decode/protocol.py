"""Protocol between a worker and its decoder processes: requests, events, messages, shared frames.

Frames pass through an anonymous file in memory (memfd), divided into slots: it leaves nothing
behind when a process is killed, and does not depend on the size of /dev/shm. Those that a GPU
decodes pass through slots in its memory, see `extract/nvdec_process.py`. Messages are JSON, since a
process that decodes hostile files is never trusted with a pickle.
"""

import json
import mmap
import os
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ...manifests.plan import Cut
from .cuts import PREROLL_IF_CHEAP
from .frame_format import FrameFormat, write_planes
from .frames import Decoder, Frame, Outcome
from .probe import Timeline
from .quick_probe import QuickProbe
from .sampling import EVERY_FRAME, Sampling

NUM_SLOTS = 4  # chunks that a process may decode ahead
CHUNK_BYTES = 16 * 2**20
CHUNK_FRAMES = 32

Message = dict[str, Any]


class DecodeRequest(NamedTuple):
    """Request for the frames of a file, of a span of it in seconds, or of a part of that.

    Attributes:
        frames: increasing frame indices, in place of the sampling.
        decoder_reason: why this is a second try; empty for a first one.
        as_planes: whether frames are sent as planes rather than RGB, if they are 4:2:0.
    """

    path: str
    start: float | None = None
    end: float | None = None
    sampling: Sampling = EVERY_FRAME
    cut: Cut | None = None
    decoder: Decoder | Literal["nvdec"] = "auto"
    frames: list[int] | None = None
    decoder_reason: str = ""
    as_planes: bool = False


class QuickProbeRequest(NamedTuple):
    """Request for a `QuickProbe` of a file."""

    path: str
    with_orientation: bool = False


class CutRequest(NamedTuple):
    """Request for the parts, a list of `Cut`, of a file or of a span of it; see `cut_video`."""

    path: str
    offsets: list[int]
    sampling: Sampling = EVERY_FRAME
    start: float | None = None
    end: float | None = None
    max_preroll: float = PREROLL_IF_CHEAP


class TimelineRequest(NamedTuple):
    """Request for the `Timeline` of a file."""

    path: str


Question = QuickProbeRequest | CutRequest | TimelineRequest
Request = DecodeRequest | Question
_REQUESTS: dict[str, type[Request]] = {
    "decode": DecodeRequest,
    "quick-probe": QuickProbeRequest,
    "cut": CutRequest,
    "timeline": TimelineRequest,
}
_NAMES = {request: name for name, request in _REQUESTS.items()}


class Restarted(NamedTuple):
    """First event of a group of requests that starts again; what it has sent before is void."""


class Selected(NamedTuple):
    """First event of a video: the number of frames that are wanted."""

    num_frames: int


@dataclass(eq=False)
class Chunk:
    """Some frames of a video, in shared memory.

    They are valid until the next event is taken, unless `hold` has been called.

    Attributes:
        data: [n, num_bytes] uint8, see `FrameFormat`; a tensor if a GPU has decoded them.
        format: format of each frame.
        frame_index: index of each frame.
        timestamps: seconds of each frame.
        is_pinned: whether the memory is registered with a GPU.
        release: gives the memory back to the decoder process.
    """

    data: Any
    format: FrameFormat
    frame_index: list[int]
    timestamps: list[float]
    is_pinned: bool = False
    release: Callable[[], None] = lambda: None

    @property
    def images(self) -> npt.NDArray[np.uint8]:
        """Frames in RGB as images [n, H, W, 3]."""
        assert self.format.is_rgb
        images: npt.NDArray[np.uint8] = self.data
        return images.reshape(-1, self.format.height, self.format.width, 3)

    def hold(self) -> Callable[[], None]:
        """Keep the frames valid until the function that is returned is called.

        Only one chunk may be held at a time: a decoder process needs slots for the next ones.
        """
        release, self.release = self.release, lambda: None
        return release


DecodeEvent = Selected | Chunk | Outcome  # a video's last event is its Outcome


def to_message(request: Request) -> Message:
    """Return a request as JSON values."""
    message = {"request": _NAMES[type(request)], **request._asdict()}
    if isinstance(request, DecodeRequest | CutRequest):
        message["sampling"] = asdict(request.sampling)
    return message


def from_message(message: Message) -> Request:
    """Return the request of a message."""
    values = dict(message)
    kind = _REQUESTS[values.pop("request")]
    if "sampling" in values:
        values["sampling"] = Sampling(**values["sampling"])
    if values.get("cut") is not None:
        values["cut"] = Cut.from_json(values["cut"])
    return kind(**values)


_ANSWERS: dict[type[Question], Callable[[Any], Any]] = {
    QuickProbeRequest: lambda value: QuickProbe(*value),
    CutRequest: lambda value: [Cut.from_json(one) for one in value],
    TimelineRequest: Timeline.from_json,
}


def to_answer(question: Question, value: Any) -> Any:
    """Return the answer to a question from its JSON values."""
    return _ANSWERS[type(question)](value)


def send(connection: Connection, message: Message) -> None:
    """Send one message; raises OSError if the other side is gone."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Message:
    """Wait for one message; raises EOFError or OSError if the other side is gone."""
    message: Message = json.loads(connection.recv_bytes())
    return message


class FrameSlots(Protocol):
    """Slots of memory that two processes share; each holds one chunk of frames."""

    def data(self, slot: int, num_frames: int, num_bytes: int) -> Any:
        """Return the first frames of a slot, [num_frames, num_bytes] uint8, as a view."""

    def write(self, slot: int, number: int, frame: Frame) -> None:
        """Copy a frame to its place in a slot; it may be there only after `flush`."""

    def flush(self) -> None:
        """Wait until all frames are in their places."""

    def is_pinned(self, num_bytes: int) -> bool:
        """Return whether a chunk of a number of bytes is in pinned memory of the CPU."""


class SharedFrames:
    """Slots of the CPU's memory; a `FrameSlots`.

    Pages exist only once they are used, or pinned.

    Attributes:
        slot_bytes: size of a slot; any frame within the pixel limit fits, with 3 bytes per pixel.
        descriptor: file descriptor of the memory.
    """

    def __init__(
        self,
        max_pixels: int,
        descriptor: int | None = None,
        *,
        pin: Callable[[int, int], Callable[[], None]] | None = None,
    ) -> None:
        """Map the memory behind a file descriptor, or create it.

        Args:
            max_pixels: pixel limit of a frame.
            descriptor: file descriptor; None for new memory.
            pin: registers memory with a GPU: address and number of bytes → a function that undoes
                it, which is called when no array uses the memory any more.
        """
        self.slot_bytes = slot_bytes(max_pixels)
        size = NUM_SLOTS * self.slot_bytes
        if descriptor is None:
            descriptor = os.memfd_create("vtnpipe-frames")
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self._memory = mmap.mmap(descriptor, size)
        self._pinned_bytes = 0
        if pin is not None:  # a larger frame than CHUNK_BYTES, alone in its slot, is not worth it
            self._pinned_bytes = min(CHUNK_BYTES, self.slot_bytes)
            address = np.frombuffer(self._memory, np.uint8).ctypes.data
            for slot in range(NUM_SLOTS):
                unpin = pin(address + slot * self.slot_bytes, self._pinned_bytes)
                weakref.finalize(self._memory, unpin)

    def is_pinned(self, num_bytes: int) -> bool:
        """See `FrameSlots`."""
        return num_bytes <= self._pinned_bytes

    def data(self, slot: int, num_frames: int, num_bytes: int) -> npt.NDArray[np.uint8]:
        """See `FrameSlots`."""
        array = np.frombuffer(
            self._memory, np.uint8, count=num_frames * num_bytes, offset=slot * self.slot_bytes
        )
        return array.reshape(num_frames, num_bytes)

    def write(self, slot: int, number: int, frame: Frame) -> None:
        """See `FrameSlots`."""
        write_planes(frame.planes, self.data(slot, number + 1, frame.format.num_bytes)[number])

    def flush(self) -> None:
        """See `FrameSlots`."""


def slot_bytes(max_pixels: int) -> int:
    """Return the size of a slot of the CPU's memory, whole pages."""
    return -(-3 * max_pixels // mmap.PAGESIZE) * mmap.PAGESIZE


def frames_per_chunk(num_bytes: int, max_pixels: int) -> int:
    """Return the number of frames of a size that one chunk holds, at least one.

    It does not depend on who decodes them.

    >>> frames_per_chunk(3 * 240 * 320, 10**7), frames_per_chunk(3 * 1080 * 1920, 10**7)
    (32, 2)
    """
    return max(1, min(CHUNK_FRAMES, min(CHUNK_BYTES, slot_bytes(max_pixels)) // num_bytes))
