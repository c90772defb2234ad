"""Decoder process: opens video files in isolation, so that a bad file costs only itself.

`pool.py` starts it with CONNECTION FRAMES LIFELINE MEMORY_BYTES MAX_PIXELS (three file descriptors
and two limits) as arguments. It sends `ready`, then answers each request and sends `end`: a
`decode` request with `selected` and `chunk`s, other requests with one `answer`. `alive` in between
shows that a long file is being read.
"""

import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path

from ...manifests.atomic import FileState, file_state
from ...manifests.failures import VideoError
from .cuts import cut_video
from .frames import Frame, Outcome, read_frames, select_frames
from .limits import apply_memory_limit, check_pixels
from .probe import VideoInfo, probe
from .protocol import (
    NUM_SLOTS,
    CutRequest,
    DecodeRequest,
    QuickProbeRequest,
    Request,
    SharedFrames,
    frames_per_chunk,
    from_message,
    receive,
    send,
)
from .quick_probe import quick_probe

ALIVE_SECONDS = 1.0


class _Worker:
    """State of the process: connection, waiting requests, free slots, the last probed file."""

    def __init__(self, connection: Connection, frames: SharedFrames, max_pixels: int) -> None:
        self.connection = connection
        self.frames = frames
        self.max_pixels = max_pixels
        self.requests: deque[Request] = deque()
        self.free_slots = deque(range(NUM_SLOTS))
        self.waited_seconds = 0.0
        self._last_sent = 0.0
        self._last_probe: tuple[tuple[str, FileState], VideoInfo] | None = None

    def serve(self) -> None:
        """Answer requests until the parent is gone."""
        self.send(kind="ready")
        while True:
            while not self.requests:
                self._wait()
            start, self.waited_seconds = time.perf_counter(), 0.0
            outcome = self._answer(self.requests.popleft())
            seconds = time.perf_counter() - start - self.waited_seconds
            outcome = dataclasses.replace(outcome, decode_seconds=seconds)
            self.send(kind="end", outcome=dataclasses.asdict(outcome))

    def send(self, **message: object) -> None:
        """Send a message to the parent."""
        send(self.connection, message)
        self._last_sent = time.monotonic()

    def show_progress(self) -> None:
        """Tell the parent, now and then, that reading goes on."""
        if time.monotonic() - self._last_sent > ALIVE_SECONDS:
            self.send(kind="alive")

    def take_slot(self) -> int:
        """Wait for and return a free slot."""
        while not self.free_slots:
            self._wait()
        return self.free_slots.popleft()

    def probe_whole(self, path: str) -> VideoInfo:
        """Probe a whole file, but not again for the next span of the same file."""
        key = (path, file_state(path))
        if self._last_probe is None or self._last_probe[0] != key:
            info = probe(path, max_pixels=self.max_pixels, on_progress=self.show_progress)
            self._last_probe = key, info
        return self._last_probe[1]

    def _wait(self) -> None:
        start = time.perf_counter()
        message = receive(self.connection)
        self.waited_seconds += time.perf_counter() - start
        if "slot" in message:
            self.free_slots.append(message["slot"])
        else:
            self.requests.append(from_message(message))

    def _answer(self, request: Request) -> Outcome:
        """Answer one request; errors become its outcome."""
        path = request.path
        try:
            if isinstance(request, DecodeRequest):
                return self._decode(request)
            self._answer_question(request)
            return Outcome(status="ok")
        except VideoError as error:
            return Outcome(status="failed", reason=error.reason, message=str(error))
        except MemoryError:
            message = f"{path}: exceeds the memory limit of the decoder process; leave it out"
            return Outcome(status="failed", reason="too-large", message=message)
        except (EOFError, ConnectionError):
            raise  # the parent is gone
        except OSError as error:
            message = f"cannot read {path} ({error}); check the disk, then rerun the command"
            return Outcome(status="failed", reason="missing", message=message)
        except Exception as error:  # noqa: BLE001  # a bug here costs a video, not the run
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = (
                f"{path}: {type(error).__name__}: {error} ({Path(where.filename).name}:"
                f"{where.lineno}); this is a bug in vtnpipe, please report it"
            )
            return Outcome(status="failed", reason="crashed", message=message)

    def _decode(self, request: DecodeRequest) -> Outcome:
        selection = select_frames(
            request.path,
            start=request.start,
            end=request.end,
            sampling=request.sampling,
            cut=request.cut,
            frames=request.frames,
            probe_whole=self.probe_whole,
            max_pixels=self.max_pixels,
            on_progress=self.show_progress,
        )
        self.send(kind="selected", num_frames=len(selection.wanted))
        frames = read_frames(
            selection,
            request.decoder,
            decoder_reason=request.decoder_reason,
            on_progress=self.show_progress,
        )
        writer = _ChunkWriter(self, request.path)
        try:
            while True:
                writer.add(next(frames))
                self.show_progress()
        except StopIteration as end:
            writer.flush()
            outcome: Outcome = end.value
            return outcome
        except Exception:
            writer.drop()
            raise

    def _answer_question(self, request: Request) -> None:
        if isinstance(request, QuickProbeRequest):
            found = quick_probe(
                request.path,
                with_orientation=request.with_orientation,
                max_pixels=self.max_pixels,
            )
            self.send(kind="answer", value=found)
            return
        info = probe(request.path, max_pixels=self.max_pixels, on_progress=self.show_progress)
        if isinstance(request, CutRequest):
            _, offsets, sampling, start, end, max_preroll = request
            cuts = cut_video(info, offsets, sampling, start=start, end=end, max_preroll=max_preroll)
            self.send(kind="answer", value=cuts)
        else:
            self.send(kind="answer", value=info.to_json())


class _ChunkWriter:
    """Collects frames of one size in a slot and sends them as chunks."""

    def __init__(self, worker: _Worker, path: str) -> None:
        self._worker = worker
        self._path = path
        self._slot = -1
        self._shape = (0, 0, 0)
        self._indices: list[int] = []
        self._times: list[float] = []

    def add(self, frame: Frame) -> None:
        height, width, _ = frame.image.shape
        check_pixels(self._path, width, height, self._worker.max_pixels)
        if self._shape[1:] != (height, width) or len(self._indices) == self._shape[0]:
            self.flush()
            self._slot = self._worker.take_slot()
            length = frames_per_chunk(height, width, self._worker.frames.slot_bytes)
            self._shape = (length, height, width)
        self._worker.frames.frames(self._slot, self._shape)[len(self._indices)] = frame.image
        self._indices.append(frame.frame_index)
        self._times.append(frame.time)

    def flush(self) -> None:
        """Send the frames collected so far."""
        if self._indices:
            self._worker.send(
                kind="chunk",
                slot=self._slot,
                shape=(len(self._indices), *self._shape[1:]),
                frame_index=self._indices,
                timestamps=self._times,
            )
        self._shape, self._indices, self._times = (0, 0, 0), [], []

    def drop(self) -> None:
        """Free the slot without sending it, for a video that failed."""
        if self._indices:
            self._worker.free_slots.append(self._slot)


def _exit_with_parent(lifeline: int) -> None:
    """End this process when the other end of the lifeline closes, however the parent ends."""
    os.read(lifeline, 1)
    os._exit(1)


def main() -> None:
    """Serve requests until the parent is gone."""
    connection_fd, frames_fd, lifeline_fd, memory_bytes, max_pixels = map(int, sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    apply_memory_limit(memory_bytes)
    threading.Thread(target=_exit_with_parent, args=(lifeline_fd,), daemon=True).start()
    frames = SharedFrames(max_pixels, frames_fd)
    try:
        _Worker(Connection(connection_fd), frames, max_pixels).serve()
    except (EOFError, ConnectionError):
        return
