"""Decoder pool: sends requests to decoder processes, and yields frames or answers as they come.

Requests come in groups. Whichever process is free takes the next group and works on its requests
one after the other, so all processes are busy as long as there are groups. The events of a group
come in order; those of different groups interleave.

If a process dies or hangs, its group starts again in a new process; the request that it worked on
has one more try, and then fails. Other groups and the worker process with the backbone are not
affected. Processes are kept between calls and end with the worker.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from ...manifests.errors import StoppedError
from ...manifests.failures import Reason, VideoError
from .frames import Outcome
from .limits import KEEP_FREED_MEMORY, Limits
from .protocol import (
    Chunk,
    DecodeEvent,
    DecodeRequest,
    Message,
    Question,
    Request,
    Restarted,
    Selected,
    SharedFrames,
    receive,
    send,
    to_answer,
    to_message,
)

K = TypeVar("K")
Requests = tuple[K, Sequence[Request | Outcome]]  # key and requests of a group

QUEUED_REQUESTS = 2  # of a group: the next file is opened while the last frames are fetched
POLL_SECONDS = 1.0
START_SECONDS = 120.0  # until a process is ready
MAX_STARTS = 3  # of a process that is killed before it is ready

_START = (
    # With the parent's own search path: `-m` would put the current folder first.
    "import sys; sys.path[:] = {path!r}; from vtnpipe.extract.decode.process import main; main()"
)


class _Process:
    """One decoder process."""

    def __init__(
        self, limits: Limits, pin: Callable[[int, int], Callable[[], None]] | None
    ) -> None:
        self.frames = SharedFrames(limits.max_pixels, pin=pin)
        self.is_ready = False
        self.last_heard = time.monotonic()
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
            env={**os.environ, **KEEP_FREED_MEMORY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
        )
        self.connection = Connection(ours.detach())
        theirs.close()
        os.close(lifeline)

    def receive(self) -> Message | None:
        """Return a message that has arrived; None if the process is gone."""
        try:
            message = receive(self.connection)
        except (EOFError, OSError):
            return None
        self.last_heard = time.monotonic()
        return message

    def send(self, message: Message) -> None:
        """Send a message; a dead process shows when its next message is waited for."""
        self.last_heard = time.monotonic()
        with contextlib.suppress(OSError):
            send(self.connection, message)

    def has_ended(self) -> bool:
        """Return whether a process that was ready is gone, without anything to do."""
        return self.is_ready and self.process.poll() is not None

    def exit_code(self) -> int:
        """Return the exit code of a process that is gone or does not answer."""
        try:
            return self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def last_output(self) -> str:
        """Return the end of what the process has written to its standard error."""
        self._errors.seek(0)
        return self._errors.read()[-2000:].decode(errors="replace").strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self._lifeline)
        os.close(self.frames.descriptor)
        self._errors.close()


@dataclass(eq=False)
class _Group(Generic[K]):
    """A group of requests in a process.

    Attributes:
        key: names the group to the caller.
        requests: requests of the group, some of them replaced for a second try.
        index: number of its process.
        process: its process.
        number: number of the request that the process works on.
        num_sent: number of requests sent.
        has_frames: whether frames of that request have arrived.
        is_begun: whether events of the group have been yielded since it began.
        num_starts: number of processes that were started for it and died before they were ready.
        retried: numbers of the requests that had a second try.
        events: (number, event) that have arrived and wait to be yielded.
    """

    key: K
    requests: list[Request | Outcome]
    index: int
    process: _Process
    number: int = 0
    num_sent: int = 0
    has_frames: bool = False
    is_begun: bool = False
    num_starts: int = 1
    retried: set[int] = field(default_factory=set)
    events: deque[tuple[int, Any]] = field(default_factory=deque)

    @property
    def is_done(self) -> bool:
        """Whether the process has nothing more to do for it."""
        return self.number == len(self.requests)

    def send_requests(self) -> None:
        """Send requests ahead of their turn; pass the outcomes of those that are decided."""
        while not self.is_done and isinstance(decided := self.requests[self.number], Outcome):
            self.events.append((self.number, decided))
            self.number += 1
        self.num_sent = max(self.num_sent, self.number)
        while self.num_sent < min(len(self.requests), self.number + QUEUED_REQUESTS):
            request = self.requests[self.num_sent]
            if not isinstance(request, Outcome):
                self.process.send(to_message(request))
            self.num_sent += 1

    def handle(self, message: Message) -> Outcome | None:
        """Take a message; return an outcome that voids frames which the group has got."""
        kind, number = message["kind"], self.number
        if kind == "ready":
            self.process.is_ready = True
        elif kind == "chunk":
            self.has_frames = True
            self.events.append((number, self._chunk(message)))
        elif kind == "selected":
            self.events.append((number, Selected(message["num_frames"])))
        elif kind == "answer":
            request = self.requests[number]
            assert not isinstance(request, DecodeRequest | Outcome)
            self.events.append((number, to_answer(request, message["value"])))
        elif kind == "end":
            outcome = Outcome(**message["outcome"])
            if outcome.status == "failed" and self.has_frames:
                return outcome
            self.events.append((number, outcome))
            self.number += 1
            self.has_frames = False
            self.send_requests()
        return None

    def _chunk(self, message: Message) -> Chunk:
        process, slot, shape = self.process, message["slot"], tuple(message["shape"])
        return Chunk(
            process.frames.frames(slot, shape),
            message["frame_index"],
            message["timestamps"],
            is_pinned=process.frames.is_pinned(shape),
            release=lambda: process.send({"slot": slot}),
        )


class DecoderPool:
    """Decoder processes, started when first needed.

    Several threads may use a pool at the same time: one starts its groups when the one before has
    started all of its own.

    Args:
        num_processes: number of processes.
        limits: limits of each process.
        pin: registers memory of frames with a GPU: address and number of bytes → a function that
            undoes it. None without a GPU.
        should_stop: asked every second while a process is waited for; if it returns True, the wait
            ends with a StoppedError.
    """

    def __init__(
        self,
        num_processes: int = 1,
        limits: Limits | None = None,
        pin: Callable[[int, int], Callable[[], None]] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._should_stop = should_stop
        self._limits = limits or Limits()
        self._pin = pin
        self._processes: list[_Process | None] = [None] * num_processes
        self._idle = deque(reversed(range(num_processes)))
        self._num_idle = os.eventfd(
            num_processes, os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE
        )
        self._turn = threading.Lock()
        self._is_stopped = False
        weakref.finalize(self, os.close, self._num_idle)  # also at exit
        weakref.finalize(self, _kill_all, self._processes)

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

    def start(self) -> None:
        """Start the processes without waiting for them, unless another thread is about to."""
        if self._turn.acquire(blocking=False):
            for index in list(self._idle):
                if self._processes[index] is None:
                    self._start(index)
            self._turn.release()

    def close(self) -> None:
        """Kill the processes; they start again when needed."""
        _kill_all(self._processes)

    def stop(self) -> None:
        """Kill the processes for good; threads that use them get a StoppedError."""
        self._is_stopped = True
        for process in list(self._processes):
            if process is not None:
                process.process.kill()  # whoever uses it cleans up

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[int, Any]]:
        """Yield (number, answer) of each question, in order; a VideoError is an answer, too."""
        answers: dict[int, Any] = {}
        next_number = 0
        for number, event in self._single(questions):
            if not isinstance(event, Outcome):
                answers[number] = event
            elif event.status == "failed":
                answers[number] = VideoError(event.reason or "damaged", event.message)
            if isinstance(event, Outcome):
                while next_number in answers:
                    yield next_number, answers.pop(next_number)
                    next_number += 1

    def decode(self, requests: Sequence[DecodeRequest]) -> Iterator[tuple[int, DecodeEvent]]:
        """Yield (number, event) of each request; the events of different requests interleave.

        `Selected` begins each try of a request: frames that it sent before are void, as are all
        frames of a failed video.
        """
        for number, event in self._single(requests):
            if not isinstance(event, Restarted):
                yield number, event

    def _single(self, requests: Sequence[Request]) -> Iterator[tuple[int, Any]]:
        """Yield (number, event) of requests, each in a group of its own."""
        groups: deque[Requests[int]] = deque((n, [one]) for n, one in enumerate(requests))
        for number, _, event in self.run(groups):
            yield number, event

    def run(self, groups: "deque[Requests[K]]") -> Generator[tuple[K, int, Any]]:
        """Yield (key, number in the group, event) until all groups are done.

        The events of a `DecodeRequest` are `Selected`, `Chunk`s and its `Outcome`; those of a
        question are the answer and an `Outcome`. `Restarted` voids all events of a group.

        Args:
            groups: key and requests of each group, the first one first; an `Outcome` among them
                stands for a video that is decided. Groups are removed when they begin; others may
                be added as long as the last event has not been taken.

        Raises:
            StoppedError: a process does not start, or the pool has been stopped.
        """
        active: list[_Group[K]] = []
        has_turn = False
        try:
            while True:
                if self._is_stopped:
                    raise StoppedError("the decoder pool has been stopped")
                has_turn = self._begin(groups, active, has_turn)
                if not active:
                    return  # `groups` is empty, else one would be active
                self._receive(active, is_waiting=has_turn)
                for group in list(active):
                    if group.events:
                        number, event = group.events.popleft()
                        group.is_begun = not isinstance(event, Restarted)
                        yield group.key, number, event
                        if isinstance(event, Chunk):
                            event.release()
                    if group.is_done and not group.events:
                        active.remove(group)
                        self._return(group.index)
        finally:
            if has_turn:
                self._turn.release()
            for group in active:  # discards what their processes still send
                self._kill(group.index)
                self._return(group.index)

    def _begin(
        self,
        groups: "deque[Requests[K]]",
        active: list[_Group[K]],
        has_turn: bool,
    ) -> bool:
        """Start as many groups as processes are free; return whether to wait for more of them."""
        while groups:
            has_turn = has_turn or self._turn.acquire(blocking=not active)
            if not has_turn:
                return False  # another thread starts its groups; this one still has events
            index = self._take(is_blocking=not active)
            if index is None:
                return True
            process = self._processes[index]
            if process is None or process.has_ended():
                self._kill(index)
                process = self._start(index)
            process.last_heard = time.monotonic()
            key, requests = groups.popleft()
            group = _Group(key, list(requests), index, process)
            group.send_requests()
            active.append(group)
        if has_turn:
            self._turn.release()
        return False

    def _receive(self, active: Sequence[_Group[K]], *, is_waiting: bool) -> None:
        """Take the messages that have arrived; wait for one if there is no event to yield.

        Args:
            active: groups in processes.
            is_waiting: whether to return also when a process becomes free.
        """
        waiting = {one.process.connection: one for one in active if not one.is_done}
        timeout = 0.0
        if not any(one.events for one in active):
            timeout = min(self._deadline(one) for one in waiting.values()) - time.monotonic()
        handles: list[Any] = [*waiting, self._num_idle] if is_waiting else [*waiting]
        until = time.monotonic() + timeout
        while not (ready := wait(handles, max(0.0, min(timeout, POLL_SECONDS)))):
            if (timeout := until - time.monotonic()) <= 0:
                break
            if self._should_stop():
                raise StoppedError("stopped while a video was decoded")
        for connection in ready:
            if connection not in waiting:
                continue
            group = waiting[connection]
            message = group.process.receive()
            if self._is_stopped:
                return
            if message is None:
                code = group.process.exit_code()
                why = f"the decoder process ended with code {code}; leave it out"
                self._lost(group, "crashed", why)
            elif (outcome := group.handle(message)) is not None:
                group.requests[group.number] = outcome
                self._restart(group)
        if ready or any(one.events for one in active):
            return
        for group in waiting.values():
            if self._deadline(group) <= time.monotonic():
                why = (
                    f"no progress for {self._limits.stall_seconds:g} s; leave it out, or raise "
                    "extract's --stall-seconds if the disk is slow"
                )
                self._lost(group, "stalled", why)

    def _deadline(self, group: _Group[K]) -> float:
        """Return the time by which a group's process must send its next message."""
        process = group.process
        seconds = self._limits.stall_seconds if process.is_ready else START_SECONDS
        return process.last_heard + seconds

    def _lost(self, group: _Group[K], reason: Reason, description: str) -> None:
        """Start a group again whose process died or hangs, with another try of its request.

        Raises:
            StoppedError: the process does not start.
        """
        request = group.requests[group.number]
        assert not isinstance(request, Outcome)
        if not group.process.is_ready:
            code = group.process.exit_code()
            # It ended by itself, or is killed each time.
            if code >= 0 or group.num_starts == MAX_STARTS:
                raise StoppedError(
                    f"the decoder process does not start (code {code}): "
                    f"{group.process.last_output()}; see `vtnpipe doctor`"
                )
            group.num_starts += 1
        elif group.number in group.retried:
            group.requests[group.number] = Outcome(
                status="failed", reason=reason, message=f"{request.path}: {description}"
            )
        else:
            group.retried.add(group.number)
            if isinstance(request, DecodeRequest):
                why = f"{reason} at the first try: {description}"
                group.requests[group.number] = request._replace(decoder_reason=why)
        self._restart(group)

    def _restart(self, group: _Group[K]) -> None:
        """Run a group again from its first request, in a new process."""
        self._kill(group.index)
        group.process = self._start(group.index)
        group.events.clear()
        if group.is_begun:
            group.events.append((0, Restarted()))
        group.number, group.num_sent, group.has_frames = 0, 0, False
        group.send_requests()

    def _take(self, *, is_blocking: bool) -> int | None:
        """Return the number of a free process; None if there is none and it may not block."""
        while True:
            try:
                os.eventfd_read(self._num_idle)
                return self._idle.pop()
            except BlockingIOError:
                if not is_blocking:
                    return None
                wait([self._num_idle])

    def _return(self, index: int) -> None:
        """Let others use a process."""
        self._idle.append(index)
        os.eventfd_write(self._num_idle, 1)

    def _start(self, index: int) -> _Process:
        process = self._processes[index] = _Process(self._limits, self._pin)
        return process

    def _kill(self, index: int) -> None:
        process, self._processes[index] = self._processes[index], None
        if process is not None:
            process.kill()


def _kill_all(processes: list[_Process | None]) -> None:
    """Kill the processes of a list, and replace them by None."""
    for index, process in enumerate(processes):
        processes[index] = None
        if process is not None:
            process.kill()
