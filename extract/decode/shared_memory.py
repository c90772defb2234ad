"""What a stage-one worker and its decoding child share: a ring of slots in memory, and a line of
messages.

The ring is an anonymous file in memory: without a name nothing is left when a process is killed,
and /dev/shm's size does not matter. A slot holds one chunk of frames [n, H, W, 3] uint8; its pages
exist once they are used. Messages are JSON: a process that decodes hostile files is never trusted
with a pickle.
"""

import json
import mmap
import os
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_SLOTS = 4  # how far a child may decode ahead
CHUNK_BYTES = 16 * 2**20
CHUNK_FRAMES = 32

Message = dict[str, Any]


class Ring:
    """The slots, as arrays over shared memory.

    Attributes:
        slot_bytes: of a slot: any frame that may be decoded fits.
    """

    def __init__(self, max_pixels: int, descriptor: int | None = None) -> None:
        """Maps the ring behind a file descriptor, or makes one."""
        self.slot_bytes = 3 * max_pixels
        size = NUM_SLOTS * self.slot_bytes
        if descriptor is None:
            descriptor = os.memfd_create("vtnpipe-frames")
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, size)

    def frames(self, slot: int, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
        """The first frames of a slot, [n, H, W, 3], as a view.

        Args:
            slot: which one.
            shape: (n, H, W).
        """
        array = np.frombuffer(
            self._memory, np.uint8, count=3 * int(np.prod(shape)), offset=slot * self.slot_bytes
        )
        return array.reshape(*shape, 3)


def frames_per_chunk(height: int, width: int, slot_bytes: int = CHUNK_BYTES) -> int:
    """How many frames of a size are handed over at once, in a slot: at least one.

    >>> frames_per_chunk(240, 320), frames_per_chunk(1080, 1920)
    (32, 2)
    """
    most_bytes = min(CHUNK_BYTES, slot_bytes)
    return max(1, min(CHUNK_FRAMES, most_bytes // (3 * height * width)))


def send(connection: Connection, message: Message) -> None:
    """Sends one message; raises OSError when the other side is gone."""
    connection.send_bytes(json.dumps(message).encode())


def receive(connection: Connection) -> Message:
    """Waits for one message; raises EOFError or OSError when the other side is gone."""
    message: Message = json.loads(connection.recv_bytes())
    return message
