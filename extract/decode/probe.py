"""Probe of a video file: one pass over its packets, and its first frame.

The pass gives the presented frames' timestamps, how frames are indexed, how they are turned
upright, where decoding may begin, and what rules decord out for the file.
"""

import math
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...manifests.failures import VideoError
from .container import (
    DISPLAY_MATRIX,
    MATROSKA,
    MOV,
    US_PER_SECOND,
    WHOLE_FILE,
    Keyframe,
    Window,
    check_file,
    decode,
    open_best_stream,
    open_window,
    rate_of,
    time_base_of,
)
from .limits import MAX_PIXELS
from .truncation import Truncation, find_truncation

TOLD_BY_HEADER = (MOV, MATROSKA, "avi", "flv")  # their headers tell the number of frames
HOLE, NOT_UNIQUE = "the file has a hole", "timestamps are not unique"
MAX_BEYOND_END = 1_000_000  # frames, whatever a header claims
# Codecs whose keyframes replace everything that a later frame may refer to.
_ALWAYS_CLEAN = frozenset("vp8 vp9 mjpeg prores dnxhd ffv1 rawvideo".split())


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """Timestamps and keyframes of a file, or of a window of it: all that finding a frame takes.

    Attributes:
        container: FFmpeg's name of the container.
        presented_pts: [P] int64, sorted: timestamps of the best stream's packets that are not
            discarded, in `time_base` units; of a window, those from its keyframe on. Empty if
            timestamps are missing.
        num_presented: number of presented packets.
        origin_pts: timestamp of the file's first presented frame.
        packet_pts: [M] int64: timestamps of all packets in file order; empty as above.
        keyframes: keyframes at which decoding may begin, in order; empty for a window, or if frames
            are counted.
        clean_keyframes: packet numbers of the keyframes that need nothing from before them.
        num_beyond_end: number of frames that should follow the end of the file.
        time_base: seconds per unit.
        rate: frames per second as FFmpeg guesses it, for files without timestamps.
        count_reason: why frames are indexed by counting; empty if indexed by timestamp.
    """

    container: str
    presented_pts: npt.NDArray[np.int64]
    num_presented: int
    origin_pts: int
    packet_pts: npt.NDArray[np.int64]
    keyframes: tuple[Keyframe, ...]
    clean_keyframes: frozenset[int]
    num_beyond_end: int
    time_base: Fraction
    rate: float
    count_reason: str

    @cached_property
    def times(self) -> npt.NDArray[np.float64]:
        """Seconds of the presented frames [P], in order; derived from `rate` without timestamps."""
        if not len(self.presented_pts):
            return np.arange(self.num_presented) / self.rate
        return self.seconds(self.presented_pts)

    def seconds(self, pts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Convert timestamps [P] to seconds since the first presented frame."""
        since_first = pts - self.origin_pts
        units = since_first * self.time_base.numerator
        return np.asarray(units / self.time_base.denominator, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Return the attributes of this class, without a subclass's, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(Timeline)}
        for name in ("presented_pts", "packet_pts"):
            values[name] = values[name].tolist()
        return values | {
            "clean_keyframes": sorted(self.clean_keyframes),
            "time_base": [self.time_base.numerator, self.time_base.denominator],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Timeline":
        """Create a timeline from the values of `to_json`; arrays may be lists."""
        return Timeline(
            **{
                **values,
                "presented_pts": np.asarray(values["presented_pts"], dtype=np.int64),
                "packet_pts": np.asarray(values["packet_pts"], dtype=np.int64),
                "keyframes": tuple(Keyframe(*one) for one in values["keyframes"]),
                "clean_keyframes": frozenset(values["clean_keyframes"]),
                "time_base": Fraction(*values["time_base"]),
            }
        )


class Orientation(NamedTuple):
    """Steps that turn a coded frame upright: transpose first, then flip."""

    transpose: bool
    flip_horizontal: bool
    flip_vertical: bool

    @property
    def is_mirrored(self) -> bool:
        """Whether it is no pure rotation (a transposition is itself a mirroring)."""
        return sum(self) % 2 == 1

    def __str__(self) -> str:
        if self.is_mirrored:
            return "mirrored"
        if self.transpose:
            return "turned by 90°" if self.flip_vertical else "turned by 270°"
        return "turned by 180°" if self.flip_vertical else "upright"

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn an image [H, W, 3]; a view, [W, H, 3] if it is transposed."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


UPRIGHT = Orientation(False, False, False)


def orientation_of(frame: Any) -> Orientation:
    """Return the orientation in the display matrix of a PyAV frame; upright if it has none.

    The matrix (a, b, u, c, d, v, x, y, w) maps (column p, row q) to (a p + c q, b p + d q), see
    FFmpeg's libavutil/display.h. Angles are rounded to multiples of 90°.
    """
    data = frame.side_data.get(DISPLAY_MATRIX)
    if data is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(data, dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo(Timeline):
    """Result of a probe: the timeline, and what reading frames needs besides.

    Attributes:
        path: path of the file.
        codec: FFmpeg's name of the codec.
        width: width of a coded frame, before it is turned; pixels.
        height: height of a coded frame; pixels.
        beyond_end_dts: decoding times [num_beyond_end] int64 of the frames beyond the end.
        orientation: how to turn a coded frame upright.
        oddities: facts that rule decord out for this file.
        max_pixels: pixel limit of a frame.
    """

    path: str
    codec: str
    width: int
    height: int
    beyond_end_dts: npt.NDArray[np.int64]
    orientation: Orientation
    oddities: tuple[str, ...]
    max_pixels: int

    def num_beyond_end_in(self, start: float | None, end: float | None) -> int:
        """Return the number of frames beyond the end in a span, by their decoding times."""
        if not len(self.presented_pts):
            return self.num_beyond_end
        times = self.seconds(self.beyond_end_dts)
        return int(((times >= (start or 0.0)) & (times < (np.inf if end is None else end))).sum())


def probe(
    path: str,
    window: Window = WHOLE_FILE,
    *,
    origin_pts: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[], None] = lambda: None,
) -> VideoInfo:
    """Read the best stream's packets, and decode up to the first frame.

    Args:
        path: path of the file.
        window: packets to read.
        origin_pts: timestamp of the file's first presented frame, for a window.
        max_pixels: pixel limit of a frame.
        on_progress: called for each packet.

    Raises:
        VideoError: the file cannot be read, or its frames are encrypted.
    """
    pts, every_pts = array("q"), array("q")
    oddities: dict[str, None] = {}  # an ordered set
    keyframes: list[Keyframe] = []
    clean: list[int] = []
    num_presented, num_packets, latest_pts, first_frame = 0, 0, None, None
    before_pts = -math.inf if window.keyframe is None else window.keyframe.pts
    with open_window(path, window, max_pixels) as (container, stream, every):
        coded_as = (stream.codec_context.name, stream.codec_context.extradata)
        for packet in every:
            on_progress()
            if first_frame is None:
                first_frame = next(iter(decode(stream, packet)[0]), None)
            if packet.has_sidedata("encryption_info"):
                raise VideoError("encrypted", f"{path}: its frames are encrypted; decrypt it first")
            num_packets += 1
            if packet.pts is not None:
                every_pts.append(packet.pts)
                if latest_pts is None or packet.pts > latest_pts:
                    latest_pts = packet.pts
                    if packet.is_keyframe and not packet.is_discard:
                        keyframes.append(Keyframe(num_packets - 1, packet.pts, packet.dts))
                        if is_clean_keyframe(*coded_as, bytes(packet)):
                            clean.append(num_packets - 1)
                if packet.pts < before_pts:
                    continue  # presented before the window begins
            if packet.is_discard:
                oddities["a packet is discarded"] = None
                continue
            if packet.is_corrupt:
                oddities["a packet is corrupt"] = None
            num_presented += 1
            if packet.pts is not None:
                pts.append(packet.pts)
        if first_frame is None:
            first_frame = next(iter(decode(stream, None)[0]), None)
        is_to_end = window.num_packets is None
        first_packet = 0 if window.keyframe is None else window.keyframe.packet
        presented = np.sort(np.array(pts, dtype=np.int64))
        if len(presented) and presented[0] < 0:
            oddities["a timestamp is negative"] = None
        if len(presented) < num_presented:
            count_reason = "timestamps are missing"
            presented = presented[:0]
        elif container.format.name == "avi":
            count_reason = "AVI carries no presentation times"
        else:
            count_reason = "" if (np.diff(presented) > 0).all() else NOT_UNIQUE
        last_pts = int(presented[-1]) if len(presented) else None
        beyond_end = []
        if is_to_end:
            truncation = find_truncation(path, check_file(path))
            if truncation.has_hole:
                oddities[HOLE] = None
            num_read = first_packet + num_packets
            beyond_end = _beyond_end(
                path, truncation, container, stream, num_read, last_pts, max_pixels
            )
        is_ranked = not count_reason and len(every_pts) == num_packets
        may_begin = is_ranked and window == WHOLE_FILE
        return VideoInfo(
            path=path,
            container=container.format.name,
            codec=stream.codec_context.name,
            width=stream.codec_context.width,
            height=stream.codec_context.height,
            presented_pts=presented,
            num_presented=num_presented,
            origin_pts=origin_pts if origin_pts is not None else int(presented[:1].sum()),
            packet_pts=np.array(every_pts if is_ranked else [], dtype=np.int64),
            keyframes=tuple(keyframes) if may_begin else (),
            clean_keyframes=frozenset(clean if may_begin else ()),
            num_beyond_end=len(beyond_end),
            beyond_end_dts=np.array(beyond_end, dtype=np.int64),
            time_base=time_base_of(stream),
            rate=rate_of(stream),
            count_reason=count_reason,
            orientation=UPRIGHT if first_frame is None else orientation_of(first_frame),
            oddities=tuple(oddities),
            max_pixels=max_pixels,
        )


def _beyond_end(
    path: str,
    truncation: Truncation,
    container: Any,
    stream: Any,
    num_packets: int,
    last_pts: int | None,
    max_pixels: int,
) -> list[int]:
    """Return decoding times of the frames that should follow the end of a file.

    For MP4/MOV the index tells them; for other truncated files, the duration in the header; a file
    with a hole has at least one.
    """
    num_lost = int(truncation.has_hole)
    if container.format.name == MOV and stream.frames and num_packets:  # else it has fragments
        entries = stream.index_entries
        beyond = [entry.timestamp for entry in entries[num_packets:] if not entry.is_discard]
        if beyond or stream.frames == len(entries):
            return beyond
        # An edit list leaves samples out of the index, and so does one that FFmpeg finds invalid.
        with open_best_stream(path, max_pixels, ignore_editlist="1") as (_, whole):
            num_lost = stream.frames - len(whole.index_entries)
    rate, unit = rate_of(stream), float(time_base_of(stream))
    first = stream.start_time or 0
    last = first if last_pts is None else last_pts
    if truncation.num_missing_bytes:
        seconds = (container.duration or 0) / US_PER_SECOND - (last - first) * unit
        by_header = max(stream.frames - num_packets, round(seconds * rate) - 1)
        # If the header tells, the missing bytes at the end may belong to no frame.
        num_lost = max(num_lost, by_header if container.format.name in TOLD_BY_HEADER else 1)
        num_lost = min(num_lost, MAX_BEYOND_END)
    return [last + round((number + 1) / rate / unit) for number in range(num_lost)]


def is_clean_keyframe(codec: str, extradata: bytes | None, packet: bytes) -> bool:
    """Return whether decoding that begins at a keyframe equals decoding from the start.

    In H.264 and HEVC that is an IDR picture (ITU-T H.264, table 7-1; H.265, table 7-1). Frames
    after other keyframes may refer to earlier ones, or recover slowly.

    Args:
        codec: FFmpeg's name of the codec.
        extradata: extradata of the stream.
        packet: bytes of the keyframe.
    """
    if codec in _ALWAYS_CLEAN:
        return True
    if codec == "h264":
        kinds = (first & 31 for first in _nal_bytes(packet, _length_size(extradata, 4)))
        return next((kind for kind in kinds if 1 <= kind <= 5), 0) == 5
    if codec == "hevc":
        kinds = (first >> 1 & 63 for first in _nal_bytes(packet, _length_size(extradata, 21)))
        return next((kind for kind in kinds if kind < 32), 0) in (19, 20)
    return False


def _length_size(extradata: bytes | None, offset: int) -> int:
    """Return the bytes of a NAL unit's length, as in MP4 and Matroska; 0 for start codes."""
    if not extradata or len(extradata) <= offset or extradata[0] != 1:
        return 0
    return (extradata[offset] & 3) + 1


def _nal_bytes(packet: bytes, length_size: int) -> Iterator[int]:
    """Yield the first byte of each NAL unit of a packet."""
    place = 0
    if length_size:
        while place + length_size < len(packet):
            length = int.from_bytes(packet[place : place + length_size], "big")
            yield packet[place + length_size]
            place += length_size + length
        return
    while (place := packet.find(b"\x00\x00\x01", place)) >= 0 and place + 3 < len(packet):
        yield packet[place + 3]
        place += 3
