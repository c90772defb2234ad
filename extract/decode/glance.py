"""A first look at a video, for planning: how much work it is, without reading it.

MP4 and MOV say in their index which samples are presented. Of other containers the number of frames
is estimated, and the look says from what.
"""

import itertools
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...manifests.errors import VideoError
from .container import MOV, US_PER_SECOND, decode, open_best_stream, packets, rate_of
from .orientation import orientation_of

ASSUMED_BYTES_PER_FRAME = 4000  # of a file that says neither how many nor how long
MAX_PACKETS_TO_FIRST_FRAME = 100

Source = Literal["index", "header", "duration", "size"]


class Glance(NamedTuple):
    """What a look at a file tells.

    Attributes:
        container: FFmpeg's name of it.
        codec: FFmpeg's name of it.
        width: of a frame as coded; pixels.
        height: likewise.
        fps: over the whole file where its frames are counted, else as FFmpeg guesses it.
        num_frames: presented ones.
        seconds: that they last.
        source: what `num_frames` is from; exact where it is the index.
        orientation: how frames are turned; empty where that was not asked for.
    """

    container: str
    codec: str
    width: int
    height: int
    fps: float
    num_frames: int
    seconds: float
    source: Source
    orientation: str = ""

    @property
    def is_counted(self) -> bool:
        """Whether `num_frames` is exact."""
        return self.source == "index"


def glance(path: str, *, with_orientation: bool = False) -> Glance:
    """Looks at a file.

    Args:
        path: a video file.
        with_orientation: decode the first frame, which alone tells it.

    Raises:
        VideoError: it can't be opened, or has no video stream.
    """
    with open_best_stream(path) as (container, stream):
        fps = rate_of(stream)
        seconds = 0.0
        if stream.duration:
            seconds = float(stream.duration * stream.time_base)
        elif container.duration:
            seconds = container.duration / US_PER_SECOND
        num_frames, source = _count(container, stream, fps * seconds, path)
        if source == "index" and seconds > 0:
            fps = num_frames / seconds
        codec = stream.codec_context
        return Glance(
            container=container.format.name,
            codec=codec.name,
            width=codec.width,
            height=codec.height,
            fps=fps,
            num_frames=num_frames,
            seconds=seconds or num_frames / fps,
            source=source,
            orientation=_orientation(container, stream) if with_orientation else "",
        )


def _count(container: Any, stream: Any, by_duration: float, path: str) -> tuple[int, Source]:
    """How many frames are presented, and what says so; at least one, and no more than the file has
    bytes, whatever its header claims.
    """
    size = Path(path).stat().st_size
    if container.format.name == MOV and stream.frames:
        entries = stream.index_entries
        if len(entries) >= stream.frames:  # else it is in fragments, each with an index of its own
            return max(1, sum(not entry.is_discard for entry in entries)), "index"
    if stream.frames > 1:
        return max(1, min(stream.frames, size)), "header"
    if by_duration > 0:
        return max(1, round(min(by_duration, size))), "duration"
    return max(1, size // ASSUMED_BYTES_PER_FRAME), "size"


def _orientation(container: Any, stream: Any) -> str:
    first = itertools.islice(packets(container, stream), MAX_PACKETS_TO_FIRST_FRAME)
    for packet in itertools.chain(first, [None]):
        frames, _ = decode(stream, packet)
        if frames:
            return orientation_of(frames[0]).words
    raise VideoError(
        "no-frames", f"{container.name}: its first packets give no frame; copy it again"
    )
