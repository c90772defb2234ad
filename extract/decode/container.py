"""Opening video files: by their first bytes, with the demuxers that those allow, at a keyframe
if need be; packets and frames come out with their errors.

Only regular local files are opened. This is the only file that imports PyAV to read.
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

from ...manifests.atomic import read_through
from ...manifests.errors import VideoError
from .limits import check_pixels, limits, opening
from .truncation import TS_HEAD_BYTES, completeness, ts_packet_bytes

av.logging.set_level(
    av.logging.PANIC
)  # FFmpeg's lines name no file; what matters is in our reasons

MOV, MATROSKA = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"
SEEKABLE = (MOV, MATROSKA)  # others are found by guesses into the file, or not at all
PLAYLISTS = (b"#extm3u", b"ffconcat", b"<?xml", b"<mpd", b"[playlist]")
EDGE_PIXELS = 65_536
US_PER_SECOND = 1_000_000  # of a container's duration
DISPLAY_MATRIX = SideData.DISPLAYMATRIX  # of a frame's side data
# Titles and comments need not be UTF-8; PyAV takes them as they are by itself from 19 on.
ANY_METADATA: dict[str, Any] = (
    {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
)

# Where in a file, which bytes, and FFmpeg's demuxers that may open a file that has them there.
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
    """A packet from which decoding may begin: what follows it in the file is not shown before it.

    Attributes:
        packet: how many packets of the stream come before it in the file.
        pts: its timestamp, in the stream's units.
        dts: its decoding time, by which MP4/MOV are searched.
    """

    packet: int
    pts: int
    dts: int | None


class Window(NamedTuple):
    """A stretch of a file's packets: from a keyframe, or from the beginning, to a count or the end.

    Attributes:
        keyframe: the first packet; None for the file's first.
        num_packets: how many; None for all.
    """

    keyframe: Keyframe | None = None
    num_packets: int | None = None


WHOLE = Window()


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
                head = file.read(TS_HEAD_BYTES)
    except PermissionError:
        raise VideoError("permission", f"{path}: may not be read; check its mode") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise VideoError(
            "missing",
            f"{path}: is not there, or can't be read ({why}); put it there, or correct its path",
        ) from None
    if not is_regular:
        raise VideoError("refused", f"{path}: not a regular file; give a regular one")
    if not head:
        raise VideoError("empty", f"{path}: 0 bytes; copy it again")
    if head.lstrip(b"\xef\xbb\xbf").lower().startswith(PLAYLISTS):
        raise VideoError(
            "refused", f"{path}: a playlist, not a video; download what it names, and give that"
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
        f"{path}: begins like no known video container ({head[:8]!r}); leave it out",
    )


def _raise_if_cut_short(path: str, demuxers: str) -> None:
    if missing := completeness(path, demuxers).num_missing_bytes:
        raise VideoError(
            "truncated",
            f"{path}: ends {missing:,} bytes too early, before its first frame; copy it again",
        )


def absolute(path: str) -> str:
    """The path as one that no reader can take for an option or a protocol.

    >>> absolute("/videos/concat:a|b.ts"), absolute("-i.mp4")[:1]
    ('/videos/concat:a|b.ts', '/')
    """
    return str(Path(path).absolute())  # `..` behind a symbolic link is what the system makes of it


@contextmanager
def open_best_stream(path: str, **options: str) -> Iterator[tuple[Any, Any]]:
    """Opens a checked file with PyAV; yields (container, best video stream), with one decoding
    thread.

    Args:
        path: a video file.
        options: more of FFmpeg's for its demuxer.

    Raises:
        VideoError: the file can't be opened, or has no video stream or no decoder for it.
    """
    demuxers = check_file(path)
    options |= {"format_whitelist": demuxers, "protocol_whitelist": "file"}
    try:
        with opening(path):
            container = av.open(absolute(path), options=options, **ANY_METADATA)
    except MemoryError:
        raise VideoError(
            "too-large",
            f"{path}: passes the memory limit when opened; copy it again, or leave it out",
        ) from None
    except (av.error.FFmpegError, ValueError) as error:
        _raise_if_cut_short(path, demuxers)
        raise VideoError("damaged", f"{path}: cannot be opened ({error}); copy it again") from None
    with container:
        stream: Any = container.streams.best("video")
        if stream is None or stream.codec_context is None:
            _raise_if_cut_short(path, demuxers)
        if stream is None:
            raise VideoError("no-video-stream", f"{path}: has no video stream; leave it out")
        if stream.codec_context is None:
            raise VideoError(
                "unsupported-codec", f"{path}: no decoder for its video stream; convert it"
            )
        check_pixels(path, stream.codec_context.width, stream.codec_context.height)
        size = Path(path).stat().st_size
        if container.format.name == MOV and stream.frames > size:  # a list of them would be made
            raise VideoError(
                "damaged",
                f"{path}: its header claims {stream.frames:,} frames in {size:,} bytes; copy it "
                "again, or leave it out",
            )
        stream.codec_context.thread_count = 1
        stream.codec_context.thread_type = "NONE"
        # FFmpeg counts the edges, too, that some decoders put around a frame.
        stream.codec_context.options = {"max_pixels": str(2 * limits().max_pixels + EDGE_PIXELS)}
        yield container, stream


def rate_of(stream: Any) -> float:
    """Frames a second, as FFmpeg guesses; 25 where it can't."""
    return float(stream.guessed_rate or 25)


def time_base_of(stream: Any) -> Fraction:
    """Seconds a unit of a stream's timestamps; PyAV has None, or a class of its own."""
    found = stream.time_base or Fraction(1, 1000)
    return Fraction(found.numerator, found.denominator)


@contextmanager
def open_window(path: str, window: Window) -> Iterator[tuple[Any, Any, Iterator[Any]]]:
    """Opens a checked file at a window; yields (container, best video stream, its packets).

    The first packet is the window's keyframe, found by a seek where that lands on it, else by
    reading on from the file's beginning.

    Raises:
        VideoError: as `open_best_stream` does, or the keyframe is not in the file.
    """
    keyframe = window.keyframe
    if keyframe is not None:
        with open_best_stream(path) as (container, stream):
            found = _seek(container, stream, keyframe)
            if found is not None:
                yield container, stream, _limited(found, window)
                return
    with open_best_stream(path) as (container, stream):
        every = packets(container, stream)
        if keyframe is not None:
            every = itertools.dropwhile(lambda packet: not _is_at(packet, keyframe), every)
        yield container, stream, _limited(every, window)


def _seek(container: Any, stream: Any, keyframe: Keyframe) -> Iterator[Any] | None:
    """The packets from a keyframe on, if a seek lands on it or shortly before it."""
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
    """The window's packets: of the stream's own, without the empty one that ends them."""
    return itertools.islice((packet for packet in every if packet.size), window.num_packets)


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The stream's packets; an error in the file ends it.

    Raises:
        OSError: the error is the disk's.
    """
    while True:
        try:
            yield from container.demux(stream)
            return
        except av.error.FFmpegError:
            read_through(Path(container.name))  # FFmpeg calls both an input/output error
            return
        except IndexError:
            continue  # PyAV does not know streams that begin in mid-file: one packet of such a one


def decode(stream: Any, packet: Any) -> tuple[list[Any], str]:
    """The frames that the decoder gives out for a packet, or at the end for None; and its error,
    empty without one.
    """
    try:
        return stream.codec_context.decode(packet), ""
    except MemoryError:
        name = stream.container.name
        raise VideoError(
            "too-large", f"{name}: a frame passes the memory limit; leave it out"
        ) from None
    except av.error.FFmpegError as error:
        return [], error.strerror or str(error)


def image_of(frame: Any, path: str) -> npt.NDArray[np.uint8]:
    """A decoded frame as RGB, [H, W, 3].

    Raises:
        VideoError: there is no memory for that; FFmpeg's scaler has no other reason to fail.
    """
    try:
        image: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    except (MemoryError, av.error.FFmpegError):
        size = f"{frame.width}x{frame.height}"
        raise VideoError(
            "too-large", f"{path}: a frame of {size} passes the memory limit; leave the file out"
        ) from None
    return image
