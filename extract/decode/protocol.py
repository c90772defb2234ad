"""What a decoding child is asked for, and the events that answer it."""

from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...manifests.plan import Cut
from ..choices import Decoder
from .frames import Outcome
from .glance import Glance
from .sampling import EVERY_FRAME, Sampling
from .shared_memory import Message
from .timeline import Timeline


class Decode(NamedTuple):
    """A request for the frames of a file, or of a span of it in seconds, or of a part of that."""

    path: str
    start: float | None = None
    end: float | None = None
    sampling: Sampling = EVERY_FRAME
    cut: Cut | None = None
    decoder: Decoder = "auto"
    frames: list[int] | None = None  # ranks of those wanted, in place of a sampling


class Look(NamedTuple):
    """A request for a `Glance` at a file."""

    path: str
    with_orientation: bool = False


class CutUp(NamedTuple):
    """A request for the parts, a list of `Cut`, of a file or of a span of it in seconds."""

    path: str
    offsets: list[int]  # where they are to begin, counted in wanted frames
    sampling: Sampling = EVERY_FRAME
    start: float | None = None
    end: float | None = None


class Survey(NamedTuple):
    """A request for the `Timeline` of a file."""

    path: str


Request = Decode | Look | CutUp | Survey
_KINDS: dict[str, type[Request]] = {
    "decode": Decode,
    "glance": Look,
    "cut": CutUp,
    "survey": Survey,
}
_WORDS = {kind: word for word, kind in _KINDS.items()}


class Answer(NamedTuple):
    """To a `Look`, a `CutUp` or a `Survey`."""

    value: Any


class Probed(NamedTuple):
    """The video was looked at: how many frames it presents."""

    num_frames: int


class Chunk(NamedTuple):
    """Frames of a video: images [n, H, W, 3] uint8, valid until the next event is asked for."""

    images: npt.NDArray[np.uint8]
    frame_index: list[int]
    timestamps: list[float]  # seconds


class Restarted(NamedTuple):
    """The video begins again: its chunks so far are void."""


Event = Answer | Probed | Chunk | Restarted | Outcome


def to_message(request: Request) -> Message:
    """The request as JSON takes it to the child."""
    message = {"what": _WORDS[type(request)], **request._asdict()}
    if isinstance(request, Decode | CutUp):
        message["sampling"] = asdict(request.sampling)
    return message


def from_message(message: Message) -> Request:
    """The request that a child gets as JSON."""
    values = dict(message)
    kind = _KINDS[values.pop("what")]
    if "sampling" in values:
        values["sampling"] = Sampling(**values["sampling"])
    if values.get("cut") is not None:
        values["cut"] = Cut.from_json(values["cut"])
    return kind(**values)


def to_answer(request: Request, value: Any) -> Answer:
    """What a child's JSON means."""
    if isinstance(request, Look):
        return Answer(Glance(*value))
    if isinstance(request, Survey):
        return Answer(Timeline.from_json(value))
    return Answer(list(map(Cut.from_json, value)))
