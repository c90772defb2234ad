"""Decoder process: opens video files in isolation, so that a bad file costs only itself.

`launch.py` starts it with CONNECTION LIFELINE FRAMES MEMORY_BYTES MAX_PIXELS REMOTE as arguments:
three file descriptors, two limits, and what may be fetched. It sends `ready`, then answers each
request and sends `end`: a `decode` request with `selected` and `chunk`s, other requests with one
`answer`. `alive` in between shows that a long file is being read. `extract/nvdec_process.py` is the
same for a GPU's engines, with several connections; for a file that the CPU must decode it sends
`refused` in place of `end`.
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

from ...manifests.atomic import FileState, file_state
from ...manifests.failures import VideoError
from ...manifests.image_sequences import split_rate, with_rate
from .cuts import cut_video
from .frame_format import FrameFormat
from .frames import (
    Frame,
    FrameSource,
    Outcome,
    SoftwareFrames,
    probe_any,
    read_frames,
    select_frames,
)
from .limits import apply_memory_limit, check_pixels
from .nvdec import NvdecFaultError
from .probe import VideoInfo
from .protocol import (
    NUM_SLOTS,
    CutRequest,
    DecodeRequest,
    FrameSlots,
    QuickProbeRequest,
    Request,
    SharedFrames,
    frames_per_chunk,
    from_message,
    receive,
    send,
)
from .quick_probe import quick_probe
from .remote import Remote, fetched, is_url

ALIVE_SECONDS = 1.0


class Server:
    """Answers the requests of one connection.

    Args:
        connection: connection to the worker.
        slots: memory for frames, shared with the worker.
        max_pixels: pixel limit of a frame.
        remote: what may be fetched.
        source_of: returns what decodes a file; by default the CPU.
    """

    def __init__(
        self,
        connection: Connection,
        slots: FrameSlots,
        max_pixels: int,
        remote: Remote | None = None,
        source_of: Callable[[VideoInfo, DecodeRequest], FrameSource] | None = None,
    ) -> None:
        self.connection = connection
        self.slots = slots
        self.max_pixels = max_pixels
        self._remote = remote or Remote()
        self._source_of = source_of or _software
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
            try:
                outcome = self._answer(self.requests.popleft())
            except NvdecFaultError as fault:
                self.send(kind="refused", reason=str(fault))
                continue
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
            info = probe_any(path, max_pixels=self.max_pixels, on_progress=self.show_progress)
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
            if is_url(path):
                return self._answer_remote(request)
            if isinstance(request, DecodeRequest):
                return self._decode(request)
            self._answer_question(request)
            return Outcome(status="ok")
        except VideoError as error:
            return Outcome(status="failed", reason=error.reason, message=str(error))
        except MemoryError:
            message = f"{path}: exceeds the memory limit of the decoder process; leave it out"
            return Outcome(status="failed", reason="too-large", message=message)
        except (NvdecFaultError, EOFError, ConnectionError):
            raise  # the CPU has to decode it, or the parent is gone
        except OSError as error:
            message = f"cannot read {path} ({error}); check the disk, then rerun the command"
            return Outcome(status="failed", reason="missing", message=message)
        except Exception as error:  # a bug here costs a video, not the run
            if self._source_of is not _software:
                raise  # errors of CUDA stay: the process has to end
            where = traceback.extract_tb(error.__traceback__)[-1]
            message = (
                f"{path}: {type(error).__name__}: {error} ({Path(where.filename).name}:"
                f"{where.lineno}); this is a bug in vtnpipe, please report it"
            )
            return Outcome(status="failed", reason="crashed", message=message)

    def _answer_remote(self, request: Request) -> Outcome:
        """Fetch a file and answer one request about it; messages name its URL."""
        url, rate = split_rate(request.path)
        with fetched(url, self._remote, self.show_progress) as path:
            local = path if rate is None else with_rate(path, rate)
            try:
                outcome = self._answer(request._replace(path=local))
            except NvdecFaultError as fault:
                raise NvdecFaultError(str(fault).replace(path, url)) from None
        return dataclasses.replace(outcome, message=outcome.message.replace(path, url))

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
            source=self._source_of(selection.info, request),
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
        info = probe_any(request.path, max_pixels=self.max_pixels, on_progress=self.show_progress)
        if isinstance(request, CutRequest):
            _, offsets, sampling, start, end, max_preroll = request
            cuts = cut_video(info, offsets, sampling, start=start, end=end, max_preroll=max_preroll)
            self.send(kind="answer", value=cuts)
        else:
            self.send(kind="answer", value=info.to_json())


def _software(info: VideoInfo, request: DecodeRequest) -> FrameSource:
    return SoftwareFrames(info, as_planes=request.as_planes)


class _ChunkWriter:
    """Collects frames of one format in a slot and sends them as chunks."""

    def __init__(self, server: Server, path: str) -> None:
        self._server = server
        self._path = path
        self._slot = -1
        self._format: FrameFormat | None = None
        self._num_frames = 0  # of a chunk
        self._indices: list[int] = []
        self._times: list[float] = []

    def add(self, frame: Frame) -> None:
        if self._format != frame.format or len(self._indices) == self._num_frames:
            self.flush()
            layout = frame.format
            check_pixels(self._path, layout.width, layout.height, self._server.max_pixels)
            self._slot = self._server.take_slot()
            self._format = layout
            self._num_frames = frames_per_chunk(layout.num_bytes, self._server.max_pixels)
        self._server.slots.write(self._slot, len(self._indices), frame)
        self._indices.append(frame.frame_index)
        self._times.append(frame.time)

    def flush(self) -> None:
        """Send the frames collected so far."""
        if self._indices:
            self._server.slots.flush()
            self._server.send(
                kind="chunk",
                slot=self._slot,
                format=self._format,
                frame_index=self._indices,
                timestamps=self._times,
            )
        self._slot, self._format, self._indices, self._times = -1, None, [], []

    def drop(self) -> None:
        """Free the slot without sending it, for a video that failed."""
        if self._slot >= 0:
            self._server.free_slots.append(self._slot)


def exit_with_parent(lifeline: int) -> None:
    """End this process when the other end of a pipe closes, however the parent ends."""

    def wait() -> None:
        os.read(lifeline, 1)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=wait, daemon=True).start()


def main() -> None:
    """Serve requests until the parent is gone."""
    *numbers, remote = sys.argv[1:]
    connection_fd, lifeline_fd, frames_fd, memory_bytes, max_pixels = map(int, numbers)
    exit_with_parent(lifeline_fd)
    apply_memory_limit(memory_bytes)
    frames = SharedFrames(max_pixels, frames_fd)
    try:
        Server(Connection(connection_fd), frames, max_pixels, Remote.from_json(remote)).serve()
    except (EOFError, ConnectionError):
        return
