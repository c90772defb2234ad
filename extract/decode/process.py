"""The decoding child: a process of its own that opens video files, so that a bad one costs no more
than itself.

Started by `children.py` with CONNECTION RING LIFELINE MEMORY_BYTES MAX_PIXELS (three file
descriptors and two limits) as arguments. It says `ready`, then answers requests, each with an `end`
at last: `decode` with `probe`, `chunk`s and perhaps `restart`; `glance`, `cut` and `survey` with
one `answer`. `alive` in between says that a long file is being read.
"""

import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...manifests.errors import VideoError
from .cuts import cut_video
from .frames import Frame, Outcome, Restart, read_frames
from .glance import glance
from .limits import Limits, check_pixels, keep
from .probe import probe
from .protocol import CutUp, Decode, Look, Request, Survey, from_message
from .shared_memory import NUM_SLOTS, Ring, frames_per_chunk, receive, send

ALIVE_SECONDS = 1.0


class _Link:
    """The child's end: requests that wait, slots that are free."""

    def __init__(self, connection: Connection, ring: Ring) -> None:
        self.connection = connection
        self.ring = ring
        self.requests: deque[Request] = deque()
        self.free = deque(range(NUM_SLOTS))
        self.waited_seconds = 0.0
        self._last_sent = 0.0

    def wait(self) -> None:
        start = time.perf_counter()
        message = receive(self.connection)
        self.waited_seconds += time.perf_counter() - start
        if "slot" in message:
            self.free.append(message["slot"])
        else:
            self.requests.append(from_message(message))

    def take_slot(self) -> int:
        while not self.free:
            self.wait()
        return self.free.popleft()

    def send(self, **message: object) -> None:
        send(self.connection, message)
        self._last_sent = time.monotonic()

    def tick(self) -> None:
        """Says that reading goes on, once in a while."""
        if time.monotonic() - self._last_sent > ALIVE_SECONDS:
            self.send(kind="alive")


class _Chunk:
    """Frames of one size on their way into one slot."""

    def __init__(self, link: _Link, path: str) -> None:
        self._link = link
        self._path = path
        self._slot = -1
        self._shape = (0, 0, 0)
        self._indices: list[int] = []
        self._times: list[float] = []

    def add(self, frame: Frame) -> None:
        height, width, _ = frame.image.shape
        check_pixels(self._path, width, height)
        if self._shape[1:] != (height, width) or len(self._indices) == self._shape[0]:
            self.flush()
            self._slot = self._link.take_slot()
            self._shape = (
                frames_per_chunk(height, width, self._link.ring.slot_bytes),
                height,
                width,
            )
        self._link.ring.frames(self._slot, self._shape)[len(self._indices)] = frame.image
        self._indices.append(frame.frame_index)
        self._times.append(frame.time)

    def flush(self) -> None:
        if self._indices:
            shape = (len(self._indices), *self._shape[1:])
            self._link.send(
                kind="chunk",
                slot=self._slot,
                shape=shape,
                frame_index=self._indices,
                timestamps=self._times,
            )
        self._shape, self._indices, self._times = (0, 0, 0), [], []

    def drop(self) -> None:
        """Gives the slot back unsent, where the video failed."""
        if self._indices:
            self._link.free.append(self._slot)


def _decode(link: _Link, request: Decode) -> Outcome:
    chunk = _Chunk(link, request.path)
    frames = read_frames(
        **request._asdict(),
        on_probe=lambda num_frames: link.send(kind="probe", num_frames=num_frames),
        on_progress=link.tick,
    )
    try:
        while True:
            item = next(frames)
            if isinstance(item, Restart):
                chunk.flush()
                link.send(kind="restart")
            else:
                chunk.add(item)
            link.tick()
    except StopIteration as end:
        chunk.flush()
        outcome: Outcome = end.value
        return outcome
    except Exception:
        chunk.drop()
        raise


def _look(link: _Link, request: Look) -> Outcome:
    link.send(kind="answer", value=glance(**request._asdict()))
    return Outcome(status="ok")


def _cut_up(link: _Link, request: CutUp) -> Outcome:
    path, offsets, sampling, start, end = request
    info = probe(path, on_progress=link.tick)
    link.send(kind="answer", value=cut_video(info, offsets, sampling, start=start, end=end))
    return Outcome(status="ok")


def _survey(link: _Link, request: Survey) -> Outcome:
    link.send(kind="answer", value=probe(request.path, on_progress=link.tick).to_json())
    return Outcome(status="ok")


_ANSWERS: dict[type[Request], Callable[[_Link, Any], Outcome]] = {
    Decode: _decode,
    Look: _look,
    CutUp: _cut_up,
    Survey: _survey,
}


def _answer(link: _Link, request: Request) -> Outcome:
    path = request.path
    try:
        return _ANSWERS[type(request)](link, request)
    except VideoError as error:
        return Outcome(status="failed", reason=error.reason, message=str(error))
    except MemoryError:
        message = f"{path}: passes the memory limit of the decoding process; leave it out"
        return Outcome(status="failed", reason="too-large", message=message)
    except (EOFError, ConnectionError):
        raise  # the parent is gone
    except OSError as error:
        message = f"{path}: can't be read ({error}); check the disk, then give the command again"
        return Outcome(status="failed", reason="missing", message=message)
    except Exception as error:  # noqa: BLE001  # a bug here costs a video, not the run
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = (
            f"{path}: {type(error).__name__}: {error} ({Path(where.filename).name}:"
            f"{where.lineno}); this is a bug in vtnpipe, please report it"
        )
        return Outcome(status="failed", reason="crashed", message=message)


def _end_with_parent(lifeline: int) -> None:
    """Ends this process when the lifeline's other end closes, however the parent ends."""
    os.read(lifeline, 1)
    os._exit(1)


def main() -> None:
    """Serves requests until the parent is gone."""
    connection_fd, ring_fd, lifeline_fd, memory_bytes, max_pixels = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    keep(Limits(memory_bytes=memory_bytes, max_pixels=max_pixels))
    threading.Thread(target=_end_with_parent, args=(lifeline_fd,), daemon=True).start()
    link = _Link(Connection(connection_fd), Ring(max_pixels, ring_fd))
    try:
        link.send(kind="ready")
        while True:
            while not link.requests:
                link.wait()
            start, link.waited_seconds = time.perf_counter(), 0.0
            outcome = _answer(link, link.requests.popleft())
            seconds = time.perf_counter() - start - link.waited_seconds
            link.send(kind="end", seconds=seconds, outcome=dataclasses.asdict(outcome))
    except (EOFError, ConnectionError):
        return
