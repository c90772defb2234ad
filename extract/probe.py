"""What a video file is, before any frame of it is used: one pass over its packets, and its first
frame.

Only regular local files are opened, by their first bytes and not by their name. The pass gives the
presented frames' timestamps, how frames are to be indexed, how they must be turned, and whether
decord may read the file.
"""

import os
import stat
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from ..manifests.errors import VideoError
from .orientation import UPRIGHT, Orientation, orientation_of

av.logging.set_level(
    av.logging.PANIC
)  # FFmpeg's lines name no file; what matters is in our reasons

MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
MIN_DECORD_WIDTH = 64
HEAD_BYTES = 400  # enough for two packets of MPEG-TS
MAX_PIXELS = 40_000_000  # 8K is 33 million

# First bytes → (FFmpeg's demuxers that may open such a file). Offsets other than 0 come first in
# the pair.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    *((4, box, "mov") for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp")),
    (0, b"\x1aE\xdf\xa3", "matroska"),
    (8, b"AVI ", "avi"),
    (0, b"FLV", "flv"),
    (0, b"GIF8", "gif"),
    (0, b"OggS", "ogg"),
    (0, b"DKIF", "ivf"),
    (0, b"YUV4MPEG2", "yuv4mpegpipe"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"\x06\x0e\x2b\x34", "mxf"),
    (0, b".RMF", "rm"),
    (0, b"\x00\x00\x01\xba", "mpeg"),
    (0, b"\x00\x00\x01", "h264,hevc,vvc,mpegvideo,m4v,mpeg"),
    (0, b"\x00\x00\x00\x01", "h264,hevc,vvc,mpegvideo,m4v"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoInfo:
    """What one pass over a file's packets tells.

    Attributes:
        path: the file.
        container: FFmpeg's name of it.
        codec: FFmpeg's name of it.
        width: of a frame as coded, before it is turned; pixels.
        height: likewise.
        presented_pts: [P] int64, sorted: the timestamps of the best stream's packets that are not
            discarded, in `time_base` units. Empty where timestamps are missing.
        num_presented: how many packets are presented.
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
    beyond_end_dts: npt.NDArray[np.int64]
    time_base: Fraction
    rate: float
    count_reason: str
    orientation: Orientation
    oddities: tuple[str, ...]

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """[P] seconds of the presented frames, in order, from 0; made up from `rate` without
        timestamps.
        """
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
        since_first = pts - self.presented_pts[0]
        units = since_first * self.time_base.numerator
        return np.asarray(units / self.time_base.denominator, dtype=np.float64)


def check_file(path: str) -> str:
    """Refuses what is no regular local file of a known container; returns the demuxers that may
    open it.

    Raises:
        VideoError: `missing`, `permission`, `refused`, `empty` or `not-a-video`.
    """
    if "://" in path:
        raise VideoError("refused", f"{path}: a URL; only local files are read: download it first")
    try:
        if is_regular := stat.S_ISREG(Path(path).stat().st_mode):  # a fifo would never open
            with Path(path).open("rb") as file:
                head = file.read(HEAD_BYTES)
    except PermissionError:
        raise VideoError("permission", f"{path}: may not be read; check its mode") from None
    except (OSError, ValueError) as error:
        raise VideoError("missing", f"{path}: no such file ({error})") from None
    if not is_regular:
        raise VideoError("refused", f"{path}: not a regular file; only files are read")
    if not head:
        raise VideoError("empty", f"{path}: 0 bytes; copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise VideoError(
            "not-a-video", f"{path}: a Git LFS pointer, not the video; run `git lfs pull`"
        )
    for offset, magic, demuxers in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return demuxers
    for start, packet_bytes in ((0, 188), (4, 192)):
        if len(head) > start + packet_bytes and head[start] == head[start + packet_bytes] == 0x47:
            return "mpegts"
    raise VideoError(
        "not-a-video",
        f"{path}: begins like no known video container ({head[:8]!r}); remove its row",
    )


@contextmanager
def open_best_stream(path: str) -> Iterator[tuple[Any, Any]]:
    """Opens a checked file with PyAV; yields (container, best video stream), with one decoding
    thread.

    Raises:
        VideoError: the file can't be opened, or has no video stream or no decoder for it.
    """
    options = {"format_whitelist": check_file(path), "protocol_whitelist": "file"}
    try:
        container = av.open(os.path.abspath(path), metadata_errors="ignore", options=options)  # noqa: PTH100
    except MemoryError:
        raise VideoError("too-large", f"{path}: passes the memory limit when opened") from None
    except (av.error.FFmpegError, ValueError) as error:
        raise VideoError("damaged", f"{path}: cannot be opened ({error})") from None
    with container:
        stream = container.streams.best("video")
        if stream is None:
            raise VideoError("no-video-stream", f"{path}: has no video stream")
        if stream.codec_context is None:
            raise VideoError("unsupported-codec", f"{path}: no decoder for its video stream")
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield container, stream


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets, then the empty one that flushes the decoder; a read error ends the
    file.
    """
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return


def decode(packet: Any) -> tuple[list[Any], str]:
    """The frames that the decoder gives out for a packet, and its error, empty without one."""
    try:
        return packet.decode(), ""
    except MemoryError:
        name = packet.stream.container.name
        raise VideoError("too-large", f"{name}: a frame passes the memory limit") from None
    except av.error.FFmpegError as error:
        return [], error.strerror or str(error)


def probe(path: str, *, on_progress: Callable[[], None] = lambda: None) -> VideoInfo:
    """Reads all packets of the best stream, and decodes up to the first frame.

    Args:
        path: a video file.
        on_progress: called for each packet.

    Raises:
        VideoError: the file can't be read, or its frames are encrypted.
    """
    pts = array("q")
    oddities: dict[str, None] = {}  # an ordered set
    num_presented, first_frame = 0, None
    with open_best_stream(path) as (container, stream):
        for packet in packets(container, stream):
            on_progress()
            if first_frame is None:
                first_frame = next(iter(decode(packet)[0]), None)
            if packet.size == 0:
                continue
            if packet.has_sidedata("encryption_info"):
                raise VideoError("encrypted", f"{path}: its frames are encrypted; decrypt it first")
            if packet.is_discard:
                oddities["a packet is discarded"] = None
                continue
            if packet.is_corrupt:
                oddities["a packet is corrupt"] = None
            num_presented += 1
            if packet.pts is not None:
                pts.append(packet.pts)
        is_mov = container.format.name == MOV
        entries = [e.timestamp for e in stream.index_entries if is_mov and not e.is_discard]
        presented = np.sort(np.array(pts, dtype=np.int64))
        if len(presented) and presented[0] < 0:
            oddities["a timestamp is negative"] = None
        if len(presented) < num_presented:
            count_reason = "timestamps are missing"
        elif container.format.name == "avi":
            count_reason = "AVI carries no presentation times"
        else:
            count_reason = "" if (np.diff(presented) > 0).all() else "timestamps are not unique"
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > MAX_PIXELS:
            size = f"frames of {width}x{height} pass the limit of {MAX_PIXELS:,} pixels"
            raise VideoError("too-large", f"{path}: {size}")
        return VideoInfo(
            path=path,
            container=container.format.name,
            codec=stream.codec_context.name,
            width=width,
            height=height,
            presented_pts=presented if len(presented) == num_presented else presented[:0],
            num_presented=num_presented,
            beyond_end_dts=np.array(entries[num_presented:], dtype=np.int64),
            time_base=stream.time_base or Fraction(1, 1000),
            rate=float(stream.guessed_rate or 25),
            count_reason=count_reason,
            orientation=UPRIGHT if first_frame is None else orientation_of(first_frame),
            oddities=tuple(oddities),
        )
