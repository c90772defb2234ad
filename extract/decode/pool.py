"""Video files are opened in child processes: requests in, chunks of uint8 frames or answers out, in
the order of the requests.

A child that dies or hangs costs the video at hand one more try, and then only that video; other
videos and the worker process, which holds the backbone, never notice. Children live on between
tasks, and end with the worker.
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
from dataclasses import replace
from multiprocessing.connection import Connection
from types import TracebackType

from ...manifests.errors import StoppedError
from .frames import Outcome
from .limits import Limits
from .protocol import (
    Chunk,
    Decode,
    Event,
    Probed,
    Request,
    Restarted,
    to_answer,
    to_message,
)
from .shared_memory import Message, Ring, receive, send

QUEUED_ROWS = 2  # that a child has at a time: it opens the next while the last are fetched
MAX_TRIES = 2
START_SECONDS = 120.0  # until a child is ready
MAX_STARTS = 3  # of a child that something kills before it is ready


_START = (
    # The parent's own search path: `-m` would put the current folder first, whatever lies there.
    "import sys; sys.path[:] = {path!r}; from vtnpipe.extract.decode.process import main; main()"
)


class _NotStartedError(Exception):
    """A child ended before it was ready; the arguments are its exit code and its last words."""


class _GoneError(Exception):
    """The child died or stalled; the argument is the reason code and what happened."""


class _Child:
    """One decoding process, with the numbers of the rows that it has been sent, in order."""

    def __init__(self, limits: Limits) -> None:
        self.ring = Ring(limits.max_pixels)
        self.rows: deque[int] = deque()
        ours, theirs = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        inherited = (theirs.fileno(), self.ring.descriptor, lifeline)
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
            receive(self.connection)  # `ready`: from here on, it is a video that a death is due to
        except (EOFError, OSError):
            code = self.process.wait()
            self._errors.seek(0)
            last = self._errors.read()[-2000:].decode(errors="replace").strip()
            self.kill()
            raise _NotStartedError(code, last) from None

    def next_message(self, stall_seconds: float) -> Message:
        """Waits for the child's next message.

        Raises:
            _GoneError: it died, or sent nothing for so long.
        """
        try:
            if not self.connection.poll(stall_seconds):
                raise _GoneError(
                    "stalled",
                    f"no progress for {stall_seconds:g} s; leave it out, or raise extract's "
                    "--stall-seconds if the disk is slow",
                )
            return receive(self.connection)
        except (EOFError, OSError):
            code = self.process.wait()
            raise _GoneError(
                "crashed", f"the decoding process ended with code {code}; leave it out"
            ) from None

    def send(self, message: Message) -> None:
        """Sends a message; that the child is gone shows when it is next waited for."""
        with contextlib.suppress(ConnectionError):
            send(self.connection, message)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self._lifeline)
        os.close(self.ring.descriptor)
        self._errors.close()


class DecodingChildren:
    """A few decoding processes, started when they are first needed.

    Args:
        num_children: how many.
        limits: of each one.
    """

    def __init__(self, num_children: int = 1, limits: Limits | None = None) -> None:
        self._children: list[_Child | None] = [None] * num_children
        self._finalizer = weakref.finalize(self, _end_all, self._children)  # also at exit
        self._limits = limits or Limits()
        self.busy_seconds = 0.0  # of the children, added up, without waiting for room

    def __enter__(self) -> "DecodingChildren":
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
        """Process numbers of the children that were started."""
        return [child.process.pid for child in self._children if child is not None]

    def close(self) -> None:
        """Ends the children; they start again when they are needed."""
        _end_all(self._children)

    def run(self, requests: Sequence[Request]) -> Generator[tuple[int, Event]]:
        """Sends out the first requests, and returns what yields (row, event) of each one in turn; a
        row's last event is its `Outcome`.

        Row r is answered by child r modulo their number, ahead of its turn as far as its ring has
        room: so the order of events does not depend on timing.
        """
        for row in range(min(len(requests), QUEUED_ROWS * len(self._children))):
            self._request(row, requests[row])
        return self._run(requests)

    def _run(self, requests: Sequence[Request]) -> Generator[tuple[int, Event]]:
        stride = len(self._children)
        is_finished = False
        try:
            for row in range(len(requests)):
                for event in self._row(row, requests):
                    yield row, event
                if row + QUEUED_ROWS * stride < len(requests):
                    later = row + QUEUED_ROWS * stride
                    self._request(later, requests[later])
            is_finished = True
        finally:
            if not is_finished:  # what the children still send belongs to nobody
                self.close()

    def _row(self, row: int, requests: Sequence[Request]) -> Iterator[Event]:
        """The events of one row, with another try if its child is lost; by PyAV, where decord may
        go.
        """
        number = row % len(self._children)
        request = requests[row]
        lost = ""
        for attempt in range(1, MAX_TRIES + 1):
            child = self._child(number)
            try:
                for event in self._events(child, request):
                    if isinstance(event, Outcome) and lost and not event.decoder_reason:
                        event = replace(event, decoder_reason=lost)
                    yield event
                child.rows.popleft()
                return
            except _GoneError as gone:
                reason, what = gone.args
                lost = f"{reason} with the first try: {what}"
            waiting = list(child.rows)[1:]
            self._end(number)
            if attempt < MAX_TRIES:
                if isinstance(request, Decode) and request.decoder == "auto":
                    request = request._replace(decoder="pyav")
                self._request(row, request)
                for again in waiting:
                    self._request(again, requests[again])
                yield Restarted()
        for again in waiting:
            self._request(again, requests[again])
        yield Outcome(status="failed", reason=reason, message=f"{request.path}: {what}")

    def _events(self, child: _Child, request: Request) -> Iterator[Event]:
        while True:
            message = child.next_message(self._limits.stall_seconds)
            kind = message.pop("kind")
            if kind == "chunk":
                slot = message["slot"]
                images = child.ring.frames(slot, tuple(message["shape"]))
                yield Chunk(images, message["frame_index"], message["timestamps"])
                child.send({"slot": slot})
            elif kind == "probe":
                yield Probed(message["num_frames"])
            elif kind == "restart":
                yield Restarted()
            elif kind == "answer":
                yield to_answer(request, message["value"])
            elif kind == "end":
                self.busy_seconds += message["seconds"]
                yield Outcome(**message["outcome"])
                return

    def _child(self, number: int) -> _Child:
        child = self._children[number]
        if child is None:
            child = self._children[number] = _start(self._limits)
        return child

    def _request(self, row: int, request: Request) -> None:
        child = self._child(row % len(self._children))
        child.rows.append(row)
        child.send(to_message(request))

    def _end(self, number: int) -> None:
        child, self._children[number] = self._children[number], None
        if child is not None:
            child.kill()


def _start(limits: Limits) -> _Child:
    """A child that is ready.

    Raises:
        StoppedError: it does not start.
    """
    for attempt in range(1, MAX_STARTS + 1):
        try:
            return _Child(limits)
        except _NotStartedError as error:
            code, last = error.args
            if code >= 0 or attempt == MAX_STARTS:  # it ended by itself, or is killed each time
                raise StoppedError(
                    f"the decoding process does not start (code {code}): {last}; see `vtnpipe "
                    "doctor`"
                ) from None
    raise AssertionError


def _end_all(children: list[_Child | None]) -> None:
    """Kills what is alive of a list of children, and leaves it empty of them."""
    for number, child in enumerate(children):
        children[number] = None
        if child is not None:
            child.kill()
