"""Quick probe of a video, for planning: its number of frames and format, without reading it.

The index of MP4 and MOV tells which samples are presented. For other containers the number of
frames is estimated, and the probe tells from what.
"""

import itertools
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ...manifests.failures import VideoError
from ...manifests.image_sequences import is_image_sequence
from .container import MOV, US_PER_SECOND, open_best_stream, rate_of
from .frame_format import orientation_of
from .images import probe_images
from .limits import MAX_PIXELS
from .packets import WHOLE_FILE, PacketReader, decode

ASSUMED_BYTES_PER_FRAME = 4000  # for files that store neither number nor duration
MAX_PACKETS_TO_FIRST_FRAME = 100

Source = Literal["index", "header", "duration", "size"]


class QuickProbe(NamedTuple):
    """Format and length of a file.

    Attributes:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
        width: width of a coded frame; pixels.
        height: height of a coded frame; pixels.
        fps: frames per second over the whole file if its frames are counted, else FFmpeg's guess.
        num_frames: number of presented frames.
        seconds: duration.
        source: origin of `num_frames`; exact if it is the index.
        orientation: how frames are turned, in words; empty if not asked for.
        pixel_format: FFmpeg's name of the format of decoded frames; "" if it is not known.
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
    pixel_format: str = ""

    @property
    def is_counted(self) -> bool:
        """Whether `num_frames` is exact."""
        return self.source == "index"


def quick_probe(
    path: str, *, with_orientation: bool = False, max_pixels: int = MAX_PIXELS
) -> QuickProbe:
    """Probe a file without reading its packets.

    Args:
        path: path of the file.
        with_orientation: decode the first frame, which alone tells the orientation.
        max_pixels: pixel limit of a frame.

    Raises:
        VideoError: the file cannot be opened, or has no video stream.
    """
    if is_image_sequence(path):
        info = probe_images(path, WHOLE_FILE, max_pixels)
        return QuickProbe(
            container=info.container,
            codec=info.codec,
            width=info.width,
            height=info.height,
            fps=info.rate,
            num_frames=info.num_presented,
            seconds=info.num_presented / info.rate,
            source="index",
            orientation=str(info.orientation) if with_orientation else "",
        )
    with open_best_stream(path, max_pixels) as (container, stream):
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
        return QuickProbe(
            container=container.format.name,
            codec=codec.name,
            width=codec.width,
            height=codec.height,
            fps=fps,
            num_frames=num_frames,
            seconds=seconds or num_frames / fps,
            source=source,
            orientation=_orientation(container, stream) if with_orientation else "",
            pixel_format=codec.pix_fmt or "",
        )


def estimated(num_bytes: int) -> QuickProbe:
    """Return a probe of a file of which nothing but its size is known; its codec is ""."""
    num_frames = max(1, num_bytes // ASSUMED_BYTES_PER_FRAME)
    return QuickProbe("", "", 0, 0, 25.0, num_frames, num_frames / 25, "size")


def _count(container: Any, stream: Any, by_duration: float, path: str) -> tuple[int, Source]:
    """Return the number of presented frames and its source.

    It is at least one, and at most the file's size in bytes, whatever the header claims.
    """
    size = Path(path).stat().st_size
    if container.format.name == MOV and stream.frames:
        entries = stream.index_entries
        if len(entries) >= stream.frames:  # else each fragment has an index of its own
            return max(1, sum(not entry.is_discard for entry in entries)), "index"
    if stream.frames > 1:
        return max(1, min(stream.frames, size)), "header"
    if by_duration > 0:
        return max(1, round(min(by_duration, size))), "duration"
    return max(1, size // ASSUMED_BYTES_PER_FRAME), "size"


def _orientation(container: Any, stream: Any) -> str:
    first = itertools.islice(PacketReader(container, stream), MAX_PACKETS_TO_FIRST_FRAME)
    for packet in itertools.chain(first, [None]):
        frames, _ = decode(stream, packet)
        if frames:
            return str(orientation_of(frames[0]))
    raise VideoError(
        "no-frames", f"{container.name}: its first packets decode to no frame; copy it again"
    )
