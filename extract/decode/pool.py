"""Decoder pool: sends requests to decoder processes and yields frames or answers, in order.

If a process dies or hangs, its video is tried once more and then fails; other videos and the worker
process with the backbone are not affected. Processes are kept between tasks and end with the
worker.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from ...manifests.errors import StoppedError
from ...manifests.failures import VideoError
from .frames import Outcome
from .limits import Limits
from .protocol import (
    Chunk,
    DecodeEvent,
    DecodeRequest,
    Message,
    Question,
    Request,
    Selected,
    SharedFrames,
    receive,
    send,
    to_answer,
    to_message,
)

QUEUED_REQUESTS = 2  # per process: the next file is opened while the last frames are fetched
START_SECONDS = 120.0  # until a process is ready
MAX_STARTS = 3  # of a process that is killed before it is ready

_START = (
    # With the parent's own search path: `-m` would put the current folder first.
    "import sys; sys.path[:] = {path!r}; from vtnpipe.extract.decode.process import main; main()"
)


class DecodeAgain(Exception):  # noqa: N818  # a request to the caller, not an error
    """Frames of a video were handed over, but the video must be decoded again, another way.

    Whoever took its frames discards them and calls `decode` again, with `request` in place of the
    request of that number: the same with another decoder, or an `Outcome` that decides it.
    """

    def __init__(self, number: int, request: DecodeRequest | Outcome) -> None:
        super().__init__(number, request)
        self.number = number
        self.request = request


class _NotStartedError(Exception):
    """A process ended before it was ready; the arguments are its exit code and last output."""


class _LostError(Exception):
    """A process died, stalled or gave up; the arguments are the reason code and a description."""


class _Process:
    """One decoder process, with the numbers of the requests sent to it, in order."""

    def __init__(self, limits: Limits) -> None:
        self.frames = SharedFrames(limits.max_pixels)
        self.numbers: deque[int] = deque()
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        inherited = (theirs.fileno(), self.frames.descriptor, lifeline)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `kill`
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _START.format(path=sys.path)),
                *map(str, (*inherited, limits.memory_bytes, limits.max_pixels)),
            ],
            pass_fds=inherited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )
        self.connection = Connection(ours.detach())
        theirs.close()
        os.close(lifeline)
        try:
            if not self.connection.poll(START_SECONDS):
                self.process.kill()
            receive(self.connection)  # `ready`: from here on, a death is due to a video
        except (EOFError, OSError):
            code = self.process.wait()
            self._errors.seek(0)
            last = self._errors.read()[-2000:].decode(errors="replace").strip()
            self.kill()
            raise _NotStartedError(code, last) from None

    def next_message(self, stall_seconds: float) -> Message:
        """Wait for the next message.

        Raises:
            _LostError: the process died, or sent nothing for `stall_seconds`.
        """
        try:
            if not self.connection.poll(stall_seconds):
                raise _LostError(
                    "stalled",
                    f"no progress for {stall_seconds:g} s; leave it out, or raise extract's "
                    "--stall-seconds if the disk is slow",
                )
            return receive(self.connection)
        except (EOFError, OSError):
            code = self.process.wait()
            raise _LostError(
                "crashed", f"the decoder process ended with code {code}; leave it out"
            ) from None

    def send(self, message: Message) -> None:
        """Send a message; a dead process shows when its next message is waited for."""
        with contextlib.suppress(ConnectionError):
            send(self.connection, message)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self._lifeline)
        os.close(self.frames.descriptor)
        self._errors.close()


class DecoderPool:
    """Decoder processes, started when first needed.

    Args:
        num_processes: number of processes.
        limits: limits of each process.

    Attributes:
        busy_seconds: time that the processes spent decoding, added up.
    """

    def __init__(self, num_processes: int = 1, limits: Limits | None = None) -> None:
        self._processes: list[_Process | None] = [None] * num_processes
        self._finalizer = weakref.finalize(self, _kill_all, self._processes)  # also at exit
        self._limits = limits or Limits()
        self.busy_seconds = 0.0

    def __enter__(self) -> "DecoderPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the processes that have started."""
        return [one.process.pid for one in self._processes if one is not None]

    def close(self) -> None:
        """Kill the processes; they start again when needed."""
        _kill_all(self._processes)

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Any]]:
        """Yield (number, answer) of each question, in order; a VideoError is an answer, too."""
        answer: Any = None
        for number, event in self._run(questions):
            if not isinstance(event, Outcome):
                answer = event
            elif event.status == "ok":
                yield number, answer
            else:
                yield number, VideoError(event.reason or "damaged", event.message)

    def decode(
        self, requests: Sequence[DecodeRequest | Outcome]
    ) -> Generator[tuple[int, DecodeEvent]]:
        """Send the first requests, and return a generator of (number, event).

        Requests are answered in order, request r by process r modulo their number, ahead of its
        turn as far as there are slots: the order of events does not depend on timing.

        Args:
            requests: what to decode; an `Outcome` stands for a video that is decided already.

        Raises:
            DecodeAgain: frames that were handed over are void; see there.
        """
        return self._run(requests)

    def decode_repeating(
        self, requests: Sequence[DecodeRequest | Outcome]
    ) -> Iterator[tuple[int, DecodeEvent]]:
        """Yield the events of `decode`; a video that must be decoded again sends its frames again.

        For callers that index frames by frame_index. `Selected` begins each try: frames that the
        request sent before are void, as are all frames of a failed video.
        """
        remaining = list(requests)
        first = 0
        while True:
            try:
                for number, event in self.decode(remaining[first:]):
                    yield first + number, event
                return
            except DecodeAgain as again:
                first += again.number
                remaining[first] = again.request

    def _run(self, requests: Sequence[Request | Outcome]) -> Generator[tuple[int, Any]]:
        for number in range(min(len(requests), QUEUED_REQUESTS * len(self._processes))):
            self._request(number, requests[number])
        return self._events_of_all(requests)

    def _events_of_all(self, requests: Sequence[Request | Outcome]) -> Generator[tuple[int, Any]]:
        ahead = QUEUED_REQUESTS * len(self._processes)
        is_finished = False
        try:
            for number in range(len(requests)):
                for event in self._events_of_one(number, requests):
                    yield number, event
                if number + ahead < len(requests):
                    self._request(number + ahead, requests[number + ahead])
            is_finished = True
        finally:
            if not is_finished:  # discards what the processes still send
                self.close()

    def _events_of_one(self, number: int, requests: Sequence[Request | Outcome]) -> Iterator[Any]:
        """Yield the events of one request, after another try if its process is lost.

        Raises:
            DecodeAgain: frames that were handed over are void.
        """
        request = requests[number]
        if isinstance(request, Outcome):
            yield request
            return
        may_retry = not (isinstance(request, DecodeRequest) and request.decoder_reason)
        has_frames = False
        while True:
            process = self._process(number)
            outcome = None
            try:
                for event in self._events(process, request):
                    if isinstance(event, Outcome):
                        outcome = event
                    else:
                        has_frames |= isinstance(event, Chunk)
                        yield event
                process.numbers.popleft()
            except _LostError as lost:
                reason, description = lost.args
                waiting = list(process.numbers)[1:]
                self._kill(number)
                if may_retry:
                    may_retry = False
                    request = _retried(request, f"{reason} at the first try: {description}")
                    if has_frames:
                        assert isinstance(request, DecodeRequest)
                        raise DecodeAgain(number, request) from None
                    self._request(number, request)
                else:
                    message = f"{request.path}: {description}"
                    outcome = Outcome(status="failed", reason=reason, message=message)
                for later in waiting:
                    self._request(later, requests[later])
            if outcome is not None:
                if has_frames and outcome.status == "failed":
                    raise DecodeAgain(number, outcome)
                yield outcome
                return

    def _events(self, process: _Process, request: Request) -> Iterator[Any]:
        """Yield what a process sends for its first request, the outcome last."""
        while True:
            message = process.next_message(self._limits.stall_seconds)
            kind = message["kind"]
            if kind == "chunk":
                slot = message["slot"]
                images = process.frames.frames(slot, tuple(message["shape"]))
                yield Chunk(images, message["frame_index"], message["timestamps"])
                process.send({"slot": slot})
            elif kind == "selected":
                yield Selected(message["num_frames"])
            elif kind == "answer":
                assert not isinstance(request, DecodeRequest)
                yield to_answer(request, message["value"])
            elif kind == "retry":
                raise _LostError("damaged", message["reason"])
            elif kind == "end":
                self.busy_seconds += message["seconds"]
                yield Outcome(**message["outcome"])
                return

    def _process(self, number: int) -> _Process:
        """Return the process that answers a request, started if need be."""
        index = number % len(self._processes)
        process = self._processes[index]
        if process is None:
            process = self._processes[index] = _start(self._limits)
        return process

    def _request(self, number: int, request: Request | Outcome) -> None:
        if not isinstance(request, Outcome):
            process = self._process(number)
            process.numbers.append(number)
            process.send(to_message(request))

    def _kill(self, number: int) -> None:
        index = number % len(self._processes)
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            process.kill()


def _retried(request: Request, reason: str) -> Request:
    """Return the request of a second try: by PyAV, if the decoder may be chosen."""
    if not isinstance(request, DecodeRequest):
        return request
    decoder = "pyav" if request.decoder == "auto" else request.decoder
    return request._replace(decoder=decoder, decoder_reason=reason)


def _start(limits: Limits) -> _Process:
    """Start a process and wait until it is ready.

    Raises:
        StoppedError: it does not start.
    """
    for attempt in range(1, MAX_STARTS + 1):
        try:
            return _Process(limits)
        except _NotStartedError as error:
            code, last = error.args
            if code >= 0 or attempt == MAX_STARTS:  # it ended by itself, or is killed each time
                raise StoppedError(
                    f"the decoder process does not start (code {code}): {last}; see `vtnpipe "
                    "doctor`"
                ) from None
    raise AssertionError


def _kill_all(processes: list[_Process | None]) -> None:
    """Kill the processes of a list, and replace them by None."""
    for index, process in enumerate(processes):
        processes[index] = None
        if process is not None:
            process.kill()
