"""What a video file is, before any frame of it is used: one pass over its packets, and its first
frame.

The pass gives the presented frames' timestamps, how frames are to be indexed, how they must be
turned, where decoding may begin, and what keeps decord from the file.
"""

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...manifests.errors import VideoError
from .container import (
    MATROSKA,
    MOV,
    US_PER_SECOND,
    WHOLE,
    Keyframe,
    Window,
    check_file,
    decode,
    open_best_stream,
    open_window,
    rate_of,
    time_base_of,
)
from .keyframes import starts_afresh
from .orientation import UPRIGHT, Orientation, orientation_of
from .timeline import Timeline
from .truncation import Completeness, completeness

TOLD_BY_HEADER = (MOV, MATROSKA, "avi", "flv")  # how many frames there are, or how long they last
HOLE, NOT_UNIQUE = "the file has a hole", "timestamps are not unique"
MAX_BEYOND_END = 1_000_000  # whatever a header claims


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo(Timeline):
    """What one pass over a file's packets, or over a window of them, tells.

    Attributes:
        path: the file.
        codec: FFmpeg's name of it.
        width: of a frame as coded, before it is turned; pixels.
        height: likewise.
        beyond_end_dts: decoding times [num_beyond_end] int64 of the frames beyond the file's end.
        orientation: how to turn a coded frame upright.
        oddities: what keeps decord from this file.
    """

    path: str
    codec: str
    width: int
    height: int
    beyond_end_dts: npt.NDArray[np.int64]
    orientation: Orientation
    oddities: tuple[str, ...]

    def num_beyond_end_in(self, start: float | None, end: float | None) -> int:
        """How many samples beyond the end lie in a span, by their decoding times, a few frames
        early.
        """
        if not len(self.presented_pts):
            return self.num_beyond_end
        times = self.seconds(self.beyond_end_dts)
        return int(((times >= (start or 0.0)) & (times < (np.inf if end is None else end))).sum())


def probe(
    path: str,
    window: Window = WHOLE,
    *,
    origin_pts: int | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> VideoInfo:
    """Reads the best stream's packets, and decodes up to the first frame.

    Args:
        path: a video file.
        window: which packets.
        origin_pts: timestamp of the file's first presented frame, for a window.
        on_progress: called for each packet.

    Raises:
        VideoError: the file can't be read, or its frames are encrypted.
    """
    pts, every_pts = array("q"), array("q")
    oddities: dict[str, None] = {}  # an ordered set
    keyframes: list[Keyframe] = []
    fresh: list[int] = []
    num_presented, num_packets, latest_pts, first_frame = 0, 0, None, None
    before_pts = -math.inf if window.keyframe is None else window.keyframe.pts
    with open_window(path, window) as (container, stream, every):
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
                        if starts_afresh(*coded_as, bytes(packet)):
                            fresh.append(num_packets - 1)
                if packet.pts < before_pts:
                    continue  # shown before the window begins
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
            lacks = completeness(path, check_file(path))
            if lacks.has_hole:
                oddities[HOLE] = None
            num_read = first_packet + num_packets
            beyond_end = _beyond_end(path, lacks, container, stream, num_read, last_pts)
        is_ranked = not count_reason and len(every_pts) == num_packets
        may_begin = is_ranked and window == WHOLE
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
            fresh_keyframes=frozenset(fresh if may_begin else ()),
            num_beyond_end=len(beyond_end),
            beyond_end_dts=np.array(beyond_end, dtype=np.int64),
            time_base=time_base_of(stream),
            rate=rate_of(stream),
            count_reason=count_reason,
            orientation=UPRIGHT if first_frame is None else orientation_of(first_frame),
            oddities=tuple(oddities),
        )


def _beyond_end(
    path: str,
    lacks: Completeness,
    container: Any,
    stream: Any,
    num_packets: int,
    last_pts: int | None,
) -> list[int]:
    """Decoding times of the frames that a file should hold after those that it does: of MP4/MOV, by
    the index; of others that are cut short, by how long they say to be; of those with a hole, one.
    """
    num_lost = int(lacks.has_hole)
    if container.format.name == MOV and stream.frames and num_packets:  # else it has fragments
        entries = stream.index_entries
        beyond = [entry.timestamp for entry in entries[num_packets:] if not entry.is_discard]
        if beyond or stream.frames == len(entries):
            return beyond
        # An edit list leaves samples out of the index, and so does one that FFmpeg can't believe.
        with open_best_stream(path, ignore_editlist="1") as (_, whole):
            num_lost = stream.frames - len(whole.index_entries)
    rate, unit = rate_of(stream), float(time_base_of(stream))
    first = stream.start_time or 0
    last = first if last_pts is None else last_pts
    if lacks.num_missing_bytes:
        seconds = (container.duration or 0) / US_PER_SECOND - (last - first) * unit
        by_header = max(stream.frames - num_packets, round(seconds * rate) - 1)
        # Where the header tells, the end may lack nothing but bytes that no frame needs.
        num_lost = max(num_lost, by_header if container.format.name in TOLD_BY_HEADER else 1)
        num_lost = min(num_lost, MAX_BEYOND_END)
    return [last + round((number + 1) / rate / unit) for number in range(num_lost)]
