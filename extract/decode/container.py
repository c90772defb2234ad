"""Containers: open video files by their first bytes, seek to keyframes, yield packets and frames.

Only regular local files are opened. No other module imports PyAV for reading.
"""

import itertools
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter

from ...manifests.atomic import read_through
from ...manifests.failures import VideoError
from .limits import MAX_PIXELS, check_pixels, limited_for_opening
from .truncation import TS_HEAD_BYTES, find_truncation, ts_packet_bytes

# FFmpeg's log lines name no file; our reasons say what matters.
av.logging.set_level(av.logging.PANIC)

MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
SEEKABLE = (MOV, MATROSKA)  # in other containers, FFmpeg seeks by guesses
PLAYLISTS = (b"#extm3u", b"ffconcat", b"<?xml", b"<mpd", b"[playlist]")
EDGE_PIXELS = 65_536
US_PER_SECOND = 1_000_000  # units of a container's duration
DISPLAY_MATRIX = SideData.DISPLAYMATRIX  # kind of side data
# Titles and comments need not be UTF-8, which PyAV tolerates by itself from version 19 on.
ANY_METADATA: dict[str, Any] = (
    {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# Offset in a file, bytes at that offset, and FFmpeg's demuxers for such files.
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


class Keyframe(NamedTuple):
    """Packet at which decoding may begin: packets after it in the file are not presented before it.

    Attributes:
        packet: number of the stream's packets before it in the file.
        pts: timestamp, in the stream's units.
        dts: decoding time, by which MP4/MOV seek.
    """

    packet: int
    pts: int
    dts: int | None


class Window(NamedTuple):
    """Range of a file's packets: from a keyframe or the beginning, up to a number or the end.

    Attributes:
        keyframe: first packet; None for the file's first.
        num_packets: number of packets; None for all.
    """

    keyframe: Keyframe | None = None
    num_packets: int | None = None


WHOLE_FILE = Window()


def check_file(path: str) -> str:
    """Refuse all but regular local files of known containers; return FFmpeg's demuxers for it.

    Raises:
        VideoError: `missing`, `permission`, `refused`, `empty` or `not-a-video`.
    """
    if "://" in path:
        raise VideoError("refused", f"{path}: a URL; only local files are read: download it first")
    try:
        if is_regular := stat.S_ISREG(Path(path).stat().st_mode):  # opening a FIFO would block
            with Path(path).open("rb") as file:
                head = file.read(TS_HEAD_BYTES)
    except PermissionError:
        raise VideoError(
            "permission", f"{path}: no permission to read it; check its mode"
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise VideoError(
            "missing",
            f"{path}: not found or not readable ({why}); restore it, or correct its path",
        ) from None
    if not is_regular:
        raise VideoError("refused", f"{path}: not a regular file; give a video file")
    if not head:
        raise VideoError("empty", f"{path}: 0 bytes; copy it again")
    if head.lstrip(b"\xef\xbb\xbf").lower().startswith(PLAYLISTS):
        raise VideoError(
            "refused", f"{path}: a playlist, not a video; download the video and give that"
        )
    if head.startswith(b"version https://git-lfs"):
        raise VideoError(
            "not-a-video", f"{path}: a Git LFS pointer, not the video; run `git lfs pull`"
        )
    for offset, magic, demuxers in _MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return demuxers
    if ts_packet_bytes(head):
        return "mpegts"
    raise VideoError(
        "not-a-video",
        f"{path}: its first bytes are no known video container's ({head[:8]!r}); leave it out",
    )


def _raise_if_truncated(path: str, demuxers: str) -> None:
    if missing := find_truncation(path, demuxers).num_missing_bytes:
        raise VideoError(
            "truncated",
            f"{path}: {missing:,} bytes are missing, before its first frame; copy it again",
        )


def absolute(path: str) -> str:
    """Return the path in a form that no reader can take for an option or a protocol.

    >>> absolute("/videos/concat:a|b.ts"), absolute("-i.mp4")[:1]
    ('/videos/concat:a|b.ts', '/')
    """
    return str(Path(path).absolute())  # not resolved: `..` after a symbolic link stays


@contextmanager
def open_best_stream(
    path: str, max_pixels: int = MAX_PIXELS, **options: str
) -> Iterator[tuple[Any, Any]]:
    """Open a file with PyAV, after checks; yield (container, best video stream).

    The stream decodes in one thread.

    Args:
        path: path of the file.
        max_pixels: pixel limit of a frame.
        options: further options of FFmpeg's demuxer.

    Raises:
        VideoError: the file cannot be opened, or has no video stream or no decoder for it.
    """
    demuxers = check_file(path)
    options |= {"format_whitelist": demuxers, "protocol_whitelist": "file"}
    try:
        with limited_for_opening(path):
            container = av.open(absolute(path), options=options, **ANY_METADATA)
    except MemoryError:
        raise VideoError(
            "too-large",
            f"{path}: exceeds the memory limit when opened; copy it again, or leave it out",
        ) from None
    except (av.error.FFmpegError, ValueError) as error:
        _raise_if_truncated(path, demuxers)
        raise VideoError("damaged", f"{path}: cannot be opened ({error}); copy it again") from None
    with container:
        stream: Any = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            _raise_if_truncated(path, demuxers)
        if stream is None:
            raise VideoError("no-video-stream", f"{path}: has no video stream; leave it out")
        if stream.codec_context is None:
            raise VideoError(
                "unsupported-codec", f"{path}: no decoder for its video stream; convert it"
            )
        check_pixels(path, stream.codec_context.width, stream.codec_context.height, max_pixels)
        size = Path(path).stat().st_size
        if (
            container.format.name == MOV and stream.frames > size
        ):  # FFmpeg would allocate a list of them
            raise VideoError(
                "damaged",
                f"{path}: its header claims {stream.frames:,} frames in {size:,} bytes; copy it "
                "again, or leave it out",
            )
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        # FFmpeg counts also the edges that some decoders put around a frame.
        stream.codec_context.options = {"max_pixels": str(2 * max_pixels + EDGE_PIXELS)}
        yield container, stream


def rate_of(stream: Any) -> float:
    """Return frames per second as FFmpeg guesses them; 25 if it cannot."""
    return float(stream.guessed_rate or 25)


def time_base_of(stream: Any) -> Fraction:
    """Return seconds per unit of a stream's timestamps; PyAV has None, or a class of its own."""
    found = stream.time_base or Fraction(1, 1000)
    return Fraction(found.numerator, found.denominator)


@contextmanager
def open_window(
    path: str, window: Window, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[Any, Any, Iterator[Any]]]:
    """Open a file at a window; yield (container, best video stream, packets).

    The first packet is the window's keyframe, found by a seek if that lands on it, else by reading
    from the file's beginning.

    Raises:
        VideoError: as `open_best_stream`.
    """
    keyframe = window.keyframe
    if keyframe is not None:
        with open_best_stream(path, max_pixels) as (container, stream):
            found = _seek(container, stream, keyframe)
            if found is not None:
                yield container, stream, _limited(found, window)
                return
    with open_best_stream(path, max_pixels) as (container, stream):
        every = packets(container, stream)
        if keyframe is not None:
            every = itertools.dropwhile(lambda packet: not _is_at(packet, keyframe), every)
        yield container, stream, _limited(every, window)


def _seek(container: Any, stream: Any, keyframe: Keyframe) -> Iterator[Any] | None:
    """Return the packets from a keyframe on, if a seek lands on it or shortly before it."""
    if container.format.name not in SEEKABLE:
        return None
    is_mov = container.format.name == MOV
    to = keyframe.dts if is_mov and keyframe.dts is not None else keyframe.pts
    try:
        container.seek(to, stream=stream)
    except av.error.FFmpegError:
        return None
    following = packets(container, stream)
    for packet in following:
        if _is_at(packet, keyframe):
            return itertools.chain([packet], following)
        if packet.pts is None or (packet.is_keyframe and packet.pts > keyframe.pts):
            return None
    return None


def _is_at(packet: Any, keyframe: Keyframe) -> bool:
    return bool(packet.is_keyframe and packet.size and packet.pts == keyframe.pts)


def _limited(every: Iterator[Any], window: Window) -> Iterator[Any]:
    """Return the window's packets, without the empty packet that ends a stream."""
    return itertools.islice((packet for packet in every if packet.size), window.num_packets)


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """Yield the stream's packets; an error in the file ends them.

    Raises:
        OSError: the disk failed.
    """
    while True:
        try:
            yield from container.demux(stream)
            return
        except av.error.FFmpegError:
            read_through(Path(container.name))  # FFmpeg reports both as an input/output error
            return
        except IndexError:
            continue  # a packet of a stream that begins in mid-file, which PyAV does not know


def decode(stream: Any, packet: Any) -> tuple[list[Any], str]:
    """Return the frames that the decoder outputs for a packet, and its error or "".

    A packet of None flushes the decoder at the end.
    """
    try:
        return stream.codec_context.decode(packet), ""
    except MemoryError:
        name = stream.container.name
        raise VideoError(
            "too-large", f"{name}: a frame exceeds the memory limit; leave it out"
        ) from None
    except av.error.FFmpegError as error:
        return [], error.strerror or str(error)


class RgbConverter:
    """Converts the decoded frames of a file to RGB; keeps FFmpeg's scaler from frame to frame.

    Args:
        path: path of the file, for messages.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._reformatter = VideoReformatter()

    def __call__(self, frame: Any) -> npt.NDArray[np.uint8]:
        """Return a frame as [H, W, 3] uint8.

        Raises:
            VideoError: `too-large`; the scaler fails only for want of memory.
        """
        try:
            # By default, the scaler would start a pool of threads for every frame.
            converted = self._reformatter.reformat(frame, format="rgb24", threads=1)
            rgb: Any = converted.to_ndarray()
        except (MemoryError, av.error.FFmpegError):
            raise VideoError(
                "too-large",
                f"{self._path}: a frame of {frame.width}x{frame.height} exceeds the memory limit; "
                "leave the file out",
            ) from None
        image: npt.NDArray[np.uint8] = rgb
        return image
