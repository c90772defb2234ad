"""Containers: open video files by their first bytes, with the demuxer that those bytes call for.

Only regular local files are opened. No module but this and packets.py imports PyAV for reading.
"""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec.hwaccel import HWAccel
from av.sidedata.sidedata import Type as SideData

from ...manifests.failures import VideoError
from .limits import MAX_PIXELS, check_pixels, limited_for_opening
from .truncation import (
    HEAD_BYTES,
    find_truncation,
    has_ps_packets,
    is_encrypted_matroska,
    top_boxes,
    ts_layout,
)

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

# Boxes with which MP4, QuickTime and segments of fragmented MP4 begin.
MOV_FIRST_BOXES = tuple(
    name.encode()
    for name in "ftyp moov mdat wide free skip pnot uuid styp sidx moof emsg prft".split()
)
RAW = "h264,hevc,vvc,mpegvideo,m4v"  # demuxers of streams without a container

# Offset in a file, bytes at that offset, and FFmpeg's demuxers for such files.
_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    *((4, box, "mov") for box in MOV_FIRST_BOXES),
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
    (0, b"\x00\x00\x01", f"{RAW},mpeg"),
    (0, b"\x00\x00\x00\x01", RAW),
)


def check_file(path: str) -> str:
    """Refuse all but regular local files of known containers; return FFmpeg's demuxers for it.

    Raises:
        VideoError: `missing`, `permission`, `refused`, `empty` or `not-a-video`.
    """
    if "://" in path:
        raise VideoError(
            "refused",
            f"{path}: a URL; only local files are read: download it first, or extract it with "
            "--allow-remote",
        )
    try:
        if is_regular := stat.S_ISREG(Path(path).stat().st_mode):  # opening a FIFO would block
            with Path(path).open("rb") as file:
                head = file.read(HEAD_BYTES)
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
    if ts_layout(head):
        return "mpegts"
    if head.lstrip(b"\0").startswith(b"\x01") and head.startswith(bytes(3)):
        return RAW  # zero bytes may stand before a start code
    if has_ps_packets(head):
        return "mpeg"
    raise VideoError(
        "not-a-video",
        f"{path}: its first bytes are no known video container's ({head[:8]!r}); leave it out",
    )


def _raise_if_truncated(path: str, demuxers: str) -> None:
    if demuxers == "mov" and b"moof" in (boxes := top_boxes(path)) and b"moov" not in boxes:
        raise VideoError(
            "truncated",
            f"{path}: a segment of a fragmented MP4 without the header; give it with its init "
            "segment before it, in one file",
        )
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
    path: str, max_pixels: int = MAX_PIXELS, *, gpu: int | None = None, **options: str
) -> Iterator[tuple[Any, Any]]:
    """Open a file with PyAV, after checks; yield (container, best video stream).

    The stream decodes in one thread.

    Args:
        path: path of the file.
        max_pixels: pixel limit of a frame.
        gpu: index of the GPU whose engines decode, in this thread's CUDA context; None for the CPU.
        options: further options of FFmpeg's demuxer.

    Raises:
        VideoError: the file cannot be opened, or has no video stream or no decoder for it.
    """
    demuxers = check_file(path)
    options |= {"format_whitelist": demuxers, "protocol_whitelist": "file"}
    try:
        with limited_for_opening(path):
            container = av.open(
                absolute(path), options=options, hwaccel=_hardware(gpu), **ANY_METADATA
            )
    except MemoryError:
        raise VideoError(
            "too-large",
            f"{path}: exceeds the memory limit when opened; copy it again, or leave it out",
        ) from None
    except RuntimeError as error:  # the engines do not decode its codec
        raise VideoError("unsupported-codec", f"{path}: {error}") from None
    except (av.error.FFmpegError, ValueError) as error:
        _raise_if_truncated(path, demuxers)
        raise VideoError("damaged", f"{path}: cannot be opened ({error}); copy it again") from None
    with container:
        stream = _best_video_stream(container)
        if stream is None or stream.codec_context is None:
            _raise_if_truncated(path, demuxers)
        if stream is None:
            raise VideoError("no-video-stream", f"{path}: has no video stream; leave it out")
        if stream.codec_context is None:
            raise VideoError(
                "unsupported-codec", f"{path}: no decoder for its video stream; convert it"
            )
        if container.format.name == MATROSKA and is_encrypted_matroska(path):
            raise VideoError("encrypted", f"{path}: its frames are encrypted; decrypt it first")
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


def _hardware(gpu: int | None) -> HWAccel | None:
    """Return what makes FFmpeg decode on a GPU, and leave the frames there."""
    if gpu is None:
        return None
    # In the context that PyTorch has made current; by default, PyAV would ask for one with other
    # flags, which FFmpeg refuses.
    options: dict[str, object] = {"primary_ctx": "0", "current_ctx": "1"}
    return HWAccel(
        "cuda", device=gpu, allow_software_fallback=False, is_hw_owned=True, options=options
    )


def _best_video_stream(container: Any) -> Any:
    """Return the stream that players show; None if there is none but a cover picture."""
    best = container.streams.best("video")
    if best is None or not best.disposition & av.stream.Disposition.attached_pic:
        return best
    others = container.streams.video
    return next(
        (one for one in others if not one.disposition & av.stream.Disposition.attached_pic), None
    )


def rate_of(stream: Any) -> float:
    """Return frames per second as FFmpeg guesses them; 25 if it cannot."""
    return float(stream.guessed_rate or 25)


def time_base_of(stream: Any) -> Fraction:
    """Return seconds per unit of a stream's timestamps; PyAV has None, or a class of its own."""
    found = stream.time_base or Fraction(1, 1000)
    return Fraction(found.numerator, found.denominator)
