"""Decoder pool: sends requests to decoder processes, and yields frames or answers as they come.

Requests come in groups. Whichever process is free takes the next group and works on its requests
one after the other, so all processes are busy as long as there are groups. The events of a group
come in order; those of different groups interleave.

If a process dies or hangs, its group starts again in a new process; the request that it worked on
has one more try, and then fails. Other groups and the worker process with the backbone are not
affected. Processes are kept between calls and end with the worker.

Groups of requests with the decoder `nvdec` go to the engines of a GPU: threads of one process. A
group with a file that they do not decode exactly, or whose process dies or hangs, starts again on
the CPU.
"""

import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from types import TracebackType
from typing import Any, Generic, TypeVar

from ...manifests.errors import StoppedError
from ...manifests.failures import Reason, VideoError
from .frames import Outcome
from .groups import Group, Station, WaitingGroup, for_cpu
from .launch import EngineLauncher, Link, launch_decoder
from .limits import Limits
from .nvdec import NvdecFaultError
from .protocol import (
    Chunk,
    DecodeEvent,
    DecodeRequest,
    Question,
    Request,
    Restarted,
)

K = TypeVar("K")
Requests = tuple[K, Sequence[Request | Outcome]]  # key and requests of a group

POLL_SECONDS = 1.0
START_SECONDS = 120.0  # until a process is ready
MAX_STARTS = 3  # of a process that is killed before it is ready
MAX_ENGINE_DEATHS = 3  # afterwards the CPU decodes everything


@dataclass(eq=False)
class _Call(Generic[K]):
    """State of one call of `DecoderPool.run`.

    Attributes:
        waiting: groups that wait at each station.
        active: groups on links.
        turns: stations at which it is this call's turn to start groups.
    """

    waiting: dict[Station, deque[WaitingGroup]]
    active: list[Group[K]] = field(default_factory=list)
    turns: set[Station] = field(default_factory=set)


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
        engines: starts the process of a GPU's engines; None without them.
    """

    def __init__(
        self,
        num_processes: int = 1,
        limits: Limits | None = None,
        pin: Callable[[int, int], Callable[[], None]] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        engines: EngineLauncher | None = None,
    ) -> None:
        self._should_stop = should_stop
        self._limits = limits or Limits()
        self._pin = pin
        self._engines = engines
        num_links = num_processes + (0 if engines is None else engines.num_threads)
        self._links: list[Link | None] = [None] * num_links
        self._cpu = Station(range(num_processes))
        self._engine = Station(range(num_processes, num_links), is_engine=True)
        self._engine_fault = "" if engines is not None else "the worker has no engines"
        self._dead_engines: set[int] = set()  # process ids
        self._launching = threading.Lock()
        self._is_stopped = False
        weakref.finalize(self, _kill_all, self._links)

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
        pids = (one.child.process.pid for one in self._links if one is not None)
        return list(dict.fromkeys(pids))

    def start(self) -> None:
        """Start the processes without waiting for them, unless another thread is about to."""
        for station in (self._cpu, self._engine):
            if station is self._engine and self._engine_fault:
                continue
            if station.turn.acquire(blocking=False):
                try:
                    for index in station.idle:
                        if self._links[index] is None:
                            self._start(index)
                except NvdecFaultError as fault:
                    self._disable_engines(str(fault))
                finally:
                    station.turn.release()

    def close(self) -> None:
        """Kill the processes; they start again when needed."""
        _kill_all(self._links)

    def stop(self) -> None:
        """Kill the processes for good; threads that use them get a StoppedError."""
        self._is_stopped = True
        for link in list(self._links):
            if link is not None:
                link.child.process.kill()  # whoever uses it cleans up

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
                stands for a video that is decided. Groups are removed when they are noted; others,
                which come first, may be added as long as the last event has not been taken.

        Raises:
            StoppedError: a process does not start, or the pool has been stopped.
        """
        call: _Call[K] = _Call({self._cpu: deque(), self._engine: deque()})
        try:
            while True:
                if self._is_stopped:
                    raise StoppedError("the decoder pool has been stopped")
                self._note(groups, call.waiting)
                self._begin(call)
                if not call.active:
                    return  # nothing waits, else one would be active
                self._receive(call)
                for group in list(call.active):
                    if group.events:
                        number, event = group.events.popleft()
                        group.is_begun = not isinstance(event, Restarted)
                        yield group.key, number, event
                        if isinstance(event, Chunk):
                            event.release()
                    if group.is_done and not group.events:
                        call.active.remove(group)
                        group.station.give_back(group.index)
        finally:
            for station in call.turns:
                station.turn.release()
            for group in call.active:  # discards what their processes still send
                self._kill(group)
                group.station.give_back(group.index)

    def _note(
        self, groups: "deque[Requests[K]]", waiting: dict[Station, deque[WaitingGroup]]
    ) -> None:
        """Move groups to where they wait, before those that wait already."""
        added: dict[Station, list[WaitingGroup]] = {station: [] for station in waiting}
        while groups:
            one = WaitingGroup(*groups.popleft())
            is_nvdec = isinstance(first := one.requests[0], DecodeRequest) and (
                first.decoder == "nvdec"
            )
            added[self._engine if is_nvdec else self._cpu].append(one)
        for station, some in added.items():
            waiting[station].extendleft(reversed(some))
        self._move_waiting(waiting)

    def _move_waiting(self, waiting: dict[Station, deque[WaitingGroup]]) -> None:
        """Give the CPU what waits for engines that are of no use."""
        if self._engine_fault:
            fault, queue = self._engine_fault, waiting[self._engine]
            waiting[self._cpu].extendleft(
                one._replace(requests=[for_cpu(request, fault) for request in one.requests])
                for one in reversed(queue)
            )
            queue.clear()

    def _begin(self, call: _Call[K]) -> None:
        """Start as many groups as links are free; wait for one if no group is active."""
        while True:
            for station, queue in call.waiting.items():
                self._begin_at(station, queue, call)
            self._move_waiting(call.waiting)
            stations = [station for station, queue in call.waiting.items() if queue]
            if call.active or not stations:
                return
            held = [station for station in stations if station in call.turns]
            if held:
                wait([station.num_idle for station in held])
            else:  # to wait for a turn while holding another one might never end
                stations[0].turn.acquire()
                call.turns.add(stations[0])

    def _begin_at(self, station: Station, queue: deque[WaitingGroup], call: _Call[K]) -> None:
        """Start as many groups at a station as it has free links."""
        while queue:
            if station not in call.turns:
                if not station.turn.acquire(blocking=False):
                    return  # another thread starts its groups
                call.turns.add(station)
            index = station.take()
            if index is None:
                return
            try:
                call.active.append(self._group(queue[0], station, index))
                queue.popleft()
            except NvdecFaultError as fault:
                station.give_back(index)
                self._disable_engines(str(fault))
                break
        if station in call.turns:
            call.turns.remove(station)
            station.turn.release()

    def _group(self, one: WaitingGroup, station: Station, index: int) -> Group[K]:
        """Start a group on a link."""
        link = self._links[index]
        if link is None or link.has_ended():
            link = self._start(index)
        link.last_heard = time.monotonic()
        group: Group[K] = Group(one.key, list(one.requests), station, index, link)
        group.is_begun = one.is_restart
        if one.is_restart:
            group.events.append((0, Restarted()))
        group.send_requests()
        return group

    def _receive(self, call: _Call[K]) -> None:
        """Take the messages that have arrived; wait for one if there is no event to yield."""
        by_connection = {one.link.connection: one for one in call.active if not one.is_done}
        timeout = 0.0
        if not any(one.events for one in call.active):
            timeout = min(self._deadline(one) for one in by_connection.values()) - time.monotonic()
        handles: list[Any] = [*by_connection, *(station.num_idle for station in call.turns)]
        until = time.monotonic() + timeout
        while not (ready := wait(handles, max(0.0, min(timeout, POLL_SECONDS)))):
            if (timeout := until - time.monotonic()) <= 0:
                break
            if self._should_stop():
                raise StoppedError("stopped while a video was decoded")
        for connection in ready:
            if connection not in by_connection:
                continue
            group = by_connection[connection]
            message = group.link.receive()
            if self._is_stopped:
                return
            if message is None:
                code = group.link.child.exit_code()
                self._lost(call, group, "crashed", f"the decoder process ended with code {code}")
            elif (reason := group.refusal(message)) is not None:
                group.discard()
                self._move_to_cpu(call, group, reason)
            elif (outcome := group.handle(message)) is not None:
                group.requests[group.number] = outcome
                self._restart(group)
        if ready or any(one.events for one in call.active):
            return
        for group in by_connection.values():
            if self._deadline(group) <= time.monotonic():
                why = f"no progress for {self._limits.stall_seconds:g} s"
                self._lost(call, group, "stalled", why)

    def _deadline(self, group: Group[K]) -> float:
        """Return the time by which a group's process must send its next message."""
        seconds = self._limits.stall_seconds if group.link.child.is_ready else START_SECONDS
        return group.link.last_heard + seconds

    def _lost(self, call: _Call[K], group: Group[K], reason: Reason, description: str) -> None:
        """Start a group again whose process died or hangs.

        Engines are left for the CPU; there, its request has another try.

        Raises:
            StoppedError: the process does not start.
        """
        if group.is_on_engine:
            self._move_to_cpu(call, group, self._lost_engine(group, description))
            return
        request, child = group.requests[group.number], group.link.child
        assert not isinstance(request, Outcome)
        if not child.is_ready:
            code = child.exit_code()
            # It ended by itself, or is killed each time.
            if code >= 0 or group.num_starts == MAX_STARTS:
                raise StoppedError(
                    f"the decoder process does not start (code {code}): "
                    f"{child.last_output()}; see `vtnpipe doctor`"
                )
            group.num_starts += 1
        elif group.number in group.retried:
            remedy = {"stalled": ", or raise extract's --stall-seconds if the disk is slow"}
            group.requests[group.number] = Outcome(
                status="failed",
                reason=reason,
                message=f"{request.path}: {description}; leave it out{remedy.get(reason, '')}",
            )
        else:
            group.retried.add(group.number)
            if isinstance(request, DecodeRequest):
                why = f"{reason} at the first try: {description}"
                group.requests[group.number] = request._replace(decoder_reason=why)
        self._restart(group)

    def _lost_engine(self, group: Group[K], description: str) -> str:
        """End the engines' process, which died or hangs; return why, in words.

        It is not started again for ever.
        """
        child = group.link.child
        self._dead_engines.add(child.process.pid)
        if not child.is_ready:
            output = child.last_output().splitlines() or [description]
            self._disable_engines(f"its process does not start: {output[-1]}")
        elif len(self._dead_engines) >= MAX_ENGINE_DEATHS:
            self._disable_engines(f"its process was lost {MAX_ENGINE_DEATHS} times: {description}")
        self._kill(group)
        return description if child.is_ready else self._engine_fault

    def _disable_engines(self, fault: str) -> None:
        """Use the engines no more; the first fault is the one to tell."""
        if not self._engine_fault:
            self._engine_fault = fault
            warnings.warn(f"NVDEC: {fault}; the CPU decodes everything", stacklevel=2)

    def _move_to_cpu(self, call: _Call[K], group: Group[K], reason: str) -> None:
        """Let a group of the engines start again on the CPU, before those that wait there."""
        call.waiting[self._cpu].appendleft(group.moved_to_cpu(reason))
        call.active.remove(group)
        group.station.give_back(group.index)

    def _restart(self, group: Group[K]) -> None:
        """Run a group again from its first request, in a new process."""
        self._kill(group)
        group.link = self._start(group.index)
        group.events.clear()
        if group.is_begun:
            group.events.append((0, Restarted()))
        group.number, group.num_sent, group.has_frames = 0, 0, False
        group.send_requests()

    def _start(self, index: int) -> Link:
        """Start the process of a link; of the engines, that of all their links."""
        before = self._links[index]
        if index in self._cpu.indices:
            if before is not None:
                before.kill()
            link = self._links[index] = launch_decoder(self._limits, self._pin)
            return link
        assert self._engines is not None
        with self._launching:
            before = self._links[index]
            if before is not None and before.child.process.poll() is None:
                return before  # another thread has started it
            if before is not None:
                before.child.kill()
            # Groups that still use the links of a dead process have them themselves.
            links = self._engines.launch(self._limits)
            self._links[self._engine.indices.start : self._engine.indices.stop] = links
        return links[index - self._engine.indices.start]

    def _kill(self, group: Group[K]) -> None:
        """Kill the process of a group."""
        group.link.kill()
        with self._launching:
            if self._links[group.index] is group.link:
                self._links[group.index] = None


def _kill_all(links: list[Link | None]) -> None:
    """Kill the processes of a list, and replace them by None."""
    for index, link in enumerate(links):
        links[index] = None
        if link is not None:
            link.kill()
