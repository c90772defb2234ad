"""Probe of a video file: one pass over its packets, and its first frame.

The pass gives the presented frames' timestamps, how frames are indexed, how they are turned
upright, where decoding may begin, and what rules decord out for the file.
"""

import math
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ...manifests.failures import VideoError
from .bitstream import FrameParser, is_clean_keyframe
from .container import (
    MATROSKA,
    MOV,
    SEEKABLE,
    US_PER_SECOND,
    check_file,
    open_best_stream,
    rate_of,
    time_base_of,
)
from .frame_format import UPRIGHT, Orientation, orientation_of
from .limits import MAX_PIXELS
from .packets import WHOLE_FILE, Keyframe, Window, decode, open_window
from .truncation import Truncation, find_truncation

# Their headers tell the number of frames, or the duration.
TOLD_BY_HEADER = (MOV, MATROSKA, "avi", "flv", "ivf")
COUNTED_BY_HEADER = ("avi", "ivf")  # even if the file has a hole
HOLE, NOT_UNIQUE = "the file has a hole", "timestamps are not unique"
JUMPS = "its clock jumps, as in joined recordings: the times continue behind a jump"
HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics (ITU-T H.273, table 3)
FLAGGED_BEFORE_JUMP = 4  # packets, of which the parser holds some back
MAX_BEYOND_END = 1_000_000  # frames, whatever a header claims


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
        """Seconds of the presented frames [P], strictly increasing.

        Without timestamps, they are derived from `rate`; frames of the same timestamp share the
        time up to the next one.
        """
        if not len(self.presented_pts):
            return np.arange(self.num_presented) / self.rate
        times = self.seconds(self.presented_pts)
        return spread(times, 1 / self.rate) if self.count_reason == NOT_UNIQUE else times

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


def spread(times: npt.NDArray[np.float64], last_step: float) -> npt.NDArray[np.float64]:
    """Spread equal times evenly up to the next one, or over the last step.

    >>> spread(np.array([0.0, 1.0, 1.0, 2.0, 2.0]), 1.0).tolist()
    [0.0, 1.0, 1.5, 2.0, 2.5]
    """
    values, first, counts = np.unique(times, return_index=True, return_counts=True)
    steps = np.append(np.diff(values), last_step)
    ranks = np.arange(len(times)) - np.repeat(first, counts)
    return np.asarray(times + ranks * np.repeat(steps / counts, counts), dtype=np.float64)


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
        corrupt_pts: timestamps [K] int64 of presented packets that the demuxer found damaged.
        num_corrupt: their number, those without a timestamp included.
        demuxer_error: error that ended the file before its end, or "".
        notes: what a user should know of a sound file.
        max_pixels: pixel limit of a frame.
        first_frame: first frame that the packets decode to, a PyAV frame; None if there is none.
    """

    path: str
    codec: str
    width: int
    height: int
    beyond_end_dts: npt.NDArray[np.int64]
    orientation: Orientation
    oddities: tuple[str, ...]
    corrupt_pts: npt.NDArray[np.int64]
    num_corrupt: int
    demuxer_error: str
    notes: tuple[str, ...]
    max_pixels: int
    first_frame: Any

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
    corrupt: list[tuple[int, int | None]] = []  # number and timestamp
    num_jumps = 0
    num_presented, num_packets, latest_pts, first_frame = 0, 0, None, None
    before_pts = -math.inf if window.keyframe is None else window.keyframe.pts
    with open_window(path, window, max_pixels) as (container, stream, every):
        coded_as = (stream.codec_context.name, stream.codec_context.extradata)
        parser = FrameParser(*coded_as)
        for packet in every:
            on_progress()
            if first_frame is None:
                first_frame = next(iter(decode(stream, packet)[0]), None)
            if packet.has_sidedata("encryption_info"):
                raise VideoError("encrypted", f"{path}: its frames are encrypted; decrypt it first")
            num_packets += 1
            shows_frame = parser.shows_frame(packet)
            if every.num_jumps > num_jumps:
                num_jumps = every.num_jumps
                # Where recordings are joined, FFmpeg flags a sound packet, too.
                corrupt = [one for one in corrupt if one[0] <= num_packets - FLAGGED_BEFORE_JUMP]
            if packet.pts is not None:
                every_pts.append(packet.pts)
                if latest_pts is None or packet.pts > latest_pts:
                    latest_pts = packet.pts
                    if packet.is_keyframe and shows_frame and not packet.is_discard:
                        keyframes.append(Keyframe(num_packets - 1, packet.pts, packet.dts))
                        if is_clean_keyframe(*coded_as, bytes(packet)):
                            clean.append(num_packets - 1)
                if packet.pts < before_pts:
                    continue  # presented before the window begins
            if packet.is_discard:
                oddities["a packet is discarded"] = None
                continue
            if not shows_frame:
                continue
            if packet.is_corrupt:
                corrupt.append((num_packets, packet.pts))
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
        if corrupt:
            oddities["a packet is corrupt"] = None
        if num_jumps:
            oddities["the clock jumps"] = None
        beyond_end, demuxer_error = [], ""
        if is_to_end:
            demuxer_error = every.error
            truncation = find_truncation(path, check_file(path))
            if truncation.has_hole:
                oddities[HOLE] = None
            if demuxer_error:
                oddities["the demuxer fails"] = None
            num_read = first_packet + num_packets
            beyond_end = _beyond_end(
                path, truncation, container, stream, num_read, last_pts, max_pixels
            )
        is_ranked = not count_reason and len(every_pts) == num_packets
        may_seek = not (num_jumps and container.format.name in SEEKABLE)
        may_begin = is_ranked and may_seek and window == WHOLE_FILE
        curve = 0 if first_frame is None else int(first_frame.color_trc)
        notes = [JUMPS] if num_jumps else []
        if curve in HDR:
            notes.append(f"HDR ({HDR[curve]}), converted to RGB without tone mapping")
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
            corrupt_pts=np.array([pts for _, pts in corrupt if pts is not None], dtype=np.int64),
            num_corrupt=len(corrupt),
            demuxer_error=demuxer_error,
            notes=tuple(notes),
            max_pixels=max_pixels,
            first_frame=first_frame,
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
    if num_lost and container.format.name in COUNTED_BY_HEADER:
        num_lost = max(num_lost, stream.frames - num_packets)
    if container.format.name == MOV and stream.frames:  # else it has fragments
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
    if truncation.num_missing_bytes or truncation.is_header_alone:
        seconds = (container.duration or 0) / US_PER_SECOND - (last - first) * unit
        by_header = max(stream.frames - num_packets, round(seconds * rate) - 1)
        # If the header tells, the missing bytes at the end may belong to no frame.
        num_lost = max(num_lost, by_header if container.format.name in TOLD_BY_HEADER else 1)
        num_lost = min(num_lost, MAX_BEYOND_END)
    return [last + round((number + 1) / rate / unit) for number in range(num_lost)]
