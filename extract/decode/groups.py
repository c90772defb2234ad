"""Groups of requests in decoder processes, and the links that wait for groups.

Used by `pool.py`, which says what groups are.
"""

import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from .frame_format import FrameFormat
from .frames import Outcome
from .launch import Link
from .protocol import (
    Chunk,
    DecodeRequest,
    Message,
    Request,
    Selected,
    to_answer,
    to_message,
)

K = TypeVar("K")
QUEUED_REQUESTS = 2  # of a group: the next file is opened while the last frames are fetched


class Station:
    """Links of one kind that are free; one thread at a time starts groups on them.

    Args:
        indices: indices of the links.
        is_engine: whether they lead to the engines of a GPU.

    Attributes:
        num_idle: semaphore (eventfd) that counts the free links.
        turn: lock of the thread that starts groups.
    """

    def __init__(self, indices: range, *, is_engine: bool = False) -> None:
        self.indices = indices
        self.is_engine = is_engine
        self.turn = threading.Lock()
        self._idle = deque(reversed(indices))
        self.num_idle = os.eventfd(
            len(indices), os.EFD_CLOEXEC | os.EFD_NONBLOCK | os.EFD_SEMAPHORE
        )
        weakref.finalize(self, os.close, self.num_idle)  # also at exit

    @property
    def idle(self) -> list[int]:
        """Indices of the free links."""
        return list(self._idle)

    def take(self) -> int | None:
        """Return the index of a free link; None if there is none."""
        try:
            os.eventfd_read(self.num_idle)
        except BlockingIOError:
            return None
        return self._idle.pop()

    def give_back(self, index: int) -> None:
        """Let others use a link."""
        self._idle.append(index)
        os.eventfd_write(self.num_idle, 1)


class WaitingGroup(NamedTuple):
    """A group that waits for a link."""

    key: Any
    requests: Sequence[Request | Outcome]
    is_restart: bool = False  # whether events of it have been yielded, which are void


@dataclass(eq=False)
class Group(Generic[K]):
    """A group of requests in a process.

    Attributes:
        key: names the group to the caller.
        requests: requests of the group, some of them replaced for a second try.
        station: where its link belongs.
        index: index of its link.
        link: its connection to a decoder process.
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
    station: Station
    index: int
    link: Link
    number: int = 0
    num_sent: int = 0
    has_frames: bool = False
    is_begun: bool = False
    num_starts: int = 1
    retried: set[int] = field(default_factory=set)
    events: deque[tuple[int, Any]] = field(default_factory=deque)

    @property
    def is_on_engine(self) -> bool:
        """Whether engines of a GPU decode it."""
        return self.station.is_engine

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
        num_ahead = 1 if self.is_on_engine else QUEUED_REQUESTS  # the engines go on with others
        while self.num_sent < min(len(self.requests), self.number + num_ahead):
            request = self.requests[self.num_sent]
            if not isinstance(request, Outcome):
                self.link.send(to_message(request))
            self.num_sent += 1

    def refusal(self, message: Message) -> str | None:
        """Return why the engines leave a file to the CPU; None if they do not.

        The CPU tries all files that fail on them, too.
        """
        if message["kind"] == "refused":
            return str(message["reason"])
        if self.is_on_engine and message["kind"] == "end":
            outcome = Outcome(**message["outcome"])
            return outcome.message if outcome.status == "failed" else None
        return None

    def handle(self, message: Message) -> Outcome | None:
        """Take a message; return an outcome that voids frames which the group has got."""
        kind, number = message["kind"], self.number
        if kind == "ready":
            self.link.child.is_ready = True
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
        link, slot = self.link, message["slot"]
        layout = FrameFormat.from_json(message["format"])
        num_frames = len(message["frame_index"])
        return Chunk(
            link.slots.data(slot, num_frames, layout.num_bytes),
            layout,
            message["frame_index"],
            message["timestamps"],
            is_pinned=link.slots.is_pinned(num_frames * layout.num_bytes),
            release=lambda: link.send({"slot": slot}),
        )

    def discard(self) -> None:
        """Discard the events that wait, and give their memory back."""
        for _, event in self.events:
            if isinstance(event, Chunk):
                event.release()
        self.events.clear()

    def moved_to_cpu(self, reason: str) -> WaitingGroup:
        """Return the group as one for the CPU; `reason`: why the engines did not decode it."""
        requests = [
            for_cpu(one, reason if n == self.number else "beside a file that the CPU decodes")
            for n, one in enumerate(self.requests)
        ]
        return WaitingGroup(self.key, requests, is_restart=self.is_begun)


def for_cpu(request: Request | Outcome, reason: str) -> Request | Outcome:
    """Return a request for the engines as one for the CPU."""
    if isinstance(request, DecodeRequest):
        return request._replace(decoder="pyav", decoder_reason=f"nvdec: {reason}")
    return request
