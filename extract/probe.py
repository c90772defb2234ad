"""What a video file is, before any frame of it is used: one pass over its packets, and its first
frame.

The pass gives the presented frames' timestamps, how frames are to be indexed, how they must be
turned, where decoding may begin, and what keeps decord from the file.
"""

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from ..manifests.errors import VideoError
from .container import MAX_PIXELS, MOV, WHOLE, Keyframe, Window, decode, open_window
from .keyframes import starts_afresh
from .orientation import UPRIGHT, Orientation, orientation_of


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """What one pass over a file's packets, or over a window of them, tells.

    Attributes:
        path: the file.
        container: FFmpeg's name of it.
        codec: FFmpeg's name of it.
        width: of a frame as coded, before it is turned; pixels.
        height: likewise.
        presented_pts: [P] int64, sorted: the timestamps of the best stream's packets that are not
            discarded, in `time_base` units; of a window, those from its keyframe's on. Empty where
            timestamps are missing.
        num_presented: how many packets are presented.
        origin_pts: timestamp of the file's first presented frame.
        packet_pts: [M] int64: of all packets in the file's order; empty as above.
        keyframes: where decoding may begin, in order; none where frames are counted, or of a
            window.
        fresh_keyframes: numbers of the packets of those that need nothing from before them.
        beyond_end_dts: [M] int64: decoding times of the samples in the file's index that its bytes
            do not reach.
        time_base: seconds per unit.
        rate: frames per second as FFmpeg guesses it, for files without timestamps.
        count_reason: why frames are indexed by counting them; empty where they are ranked by
            timestamp.
        orientation: how to turn a coded frame upright.
        oddities: what keeps decord from this file.
    """

    path: str
    container: str
    codec: str
    width: int
    height: int
    presented_pts: npt.NDArray[np.int64]
    num_presented: int
    origin_pts: int
    packet_pts: npt.NDArray[np.int64]
    keyframes: tuple[Keyframe, ...]
    fresh_keyframes: frozenset[int]
    beyond_end_dts: npt.NDArray[np.int64]
    time_base: Fraction
    rate: float
    count_reason: str
    orientation: Orientation
    oddities: tuple[str, ...]

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """[P] seconds of the presented frames, in order; made up from `rate` without timestamps."""
        if not len(self.presented_pts):
            return np.arange(self.num_presented) / self.rate
        return self.seconds(self.presented_pts)

    @property
    def num_beyond_end(self) -> int:
        """How many samples are beyond the file's end."""
        return len(self.beyond_end_dts)

    def num_beyond_end_in(self, start: float | None, end: float | None) -> int:
        """How many of them lie in a span, by their decoding times, a few frames early."""
        if not len(self.presented_pts):
            return self.num_beyond_end
        times = self.seconds(self.beyond_end_dts)
        return int(((times >= (start or 0.0)) & (times < (np.inf if end is None else end))).sum())

    def seconds(self, pts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Timestamps [P] in seconds since the first presented frame."""
        since_first = pts - self.origin_pts
        units = since_first * self.time_base.numerator
        return np.asarray(units / self.time_base.denominator, dtype=np.float64)


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
        beyond_end = _beyond_end(container, stream, first_packet + num_packets) if is_to_end else []
        presented = np.sort(np.array(pts, dtype=np.int64))
        if len(presented) and presented[0] < 0:
            oddities["a timestamp is negative"] = None
        if len(presented) < num_presented:
            count_reason = "timestamps are missing"
            presented = presented[:0]
        elif container.format.name == "avi":
            count_reason = "AVI carries no presentation times"
        else:
            count_reason = "" if (np.diff(presented) > 0).all() else "timestamps are not unique"
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            size = f"frames of {width}x{height} pass the limit of {MAX_PIXELS:,} pixels"
            raise VideoError("too-large", f"{path}: {size}")
        is_ranked = not count_reason and len(every_pts) == num_packets
        return VideoInfo(
            path=path,
            container=container.format.name,
            codec=stream.codec_context.name,
            width=width,
            height=height,
            presented_pts=presented,
            num_presented=num_presented,
            origin_pts=origin_pts if origin_pts is not None else int(presented[:1].sum()),
            packet_pts=np.array(every_pts if is_ranked else [], dtype=np.int64),
            keyframes=tuple(keyframes) if is_ranked and window == WHOLE else (),
            fresh_keyframes=frozenset(fresh),
            beyond_end_dts=np.array(beyond_end, dtype=np.int64),
            time_base=stream.time_base or Fraction(1, 1000),
            rate=float(stream.guessed_rate or 25),
            count_reason=count_reason,
            orientation=UPRIGHT if first_frame is None else orientation_of(first_frame),
            oddities=tuple(oddities),
        )


def _beyond_end(container: Any, stream: Any, num_packets: int) -> list[int]:
    """Decoding times of the samples in an MP4/MOV's index after those that the file holds."""
    if container.format.name != MOV:
        return []
    entries = stream.index_entries
    return [entry.timestamp for entry in entries[num_packets:] if not entry.is_discard]
