"""The frames of one video, exactly: every presented frame, once, upright, with its index and its
time.

decord reads a file where it is known to be right, and is checked while it reads; everything else
goes through PyAV, packet by packet. Either way frames come one at a time, so memory does not grow
with the video.
"""

import importlib.util
import re
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..manifests.errors import Reason, VideoError, first_line
from .choices import Decoder
from .probe import (
    MATROSKA,
    MIN_DECORD_WIDTH,
    MOV,
    VideoInfo,
    decode,
    open_best_stream,
    packets,
    probe,
)


class Frame(NamedTuple):
    """One upright frame: image [H, W, 3] uint8 RGB, rank among the presented frames, seconds from
    the first.
    """

    image: npt.NDArray[np.uint8]
    frame_index: int
    time: float

    def __repr__(self) -> str:
        height, width, _ = self.image.shape
        return f"Frame({self.frame_index}, {self.time:.3f} s, {width}x{height})"


class Restart(NamedTuple):
    """decord gave out wrong or too few frames: drop this video's frames so far, they all come
    again.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How reading a video ended.

    Attributes:
        status: `ok`; `partial` where presented frames are missing or concealed; `failed` without
            any frame.
        reason: why it is not `ok`.
        message: the same for a person, with counts.
        num_lost_frames: presented frames that could not be decoded.
        decoder: `decord` or `pyav`.
        decoder_reason: why `auto` did not take decord.
    """

    status: Literal["ok", "partial", "failed"]
    reason: Reason | Literal[""] = ""
    message: str = ""
    num_lost_frames: int = 0
    decoder: str = ""
    decoder_reason: str = ""


class _DecordFaultError(Exception):
    """decord broke a rule while it read."""


def read_frames(
    path: str,
    *,
    start: float | None = None,
    end: float | None = None,
    decoder: Decoder = "auto",
    on_probe: Callable[[int], None] = lambda num_frames: None,
    on_progress: Callable[[], None] = lambda: None,
) -> Generator[Frame | Restart, None, Outcome]:
    """Yields the presented frames with start <= time < end, and returns how it ended.

    Frames come in the decoder's order, which is that of their timestamps but in some damaged files;
    whoever gathers them sorts by index. Broken packets are skipped, and counted.

    Args:
        path: a video file.
        start: first second wanted; None for the beginning.
        end: the second before which to stop; None for the end.
        decoder: `auto` takes decord where it is known to be right.
        on_probe: called once, before the first frame, with how many are wanted.
        on_progress: called often while the file is read without giving frames.

    Raises:
        VideoError: no frame can be had of it.
    """
    info = probe(path, on_progress=on_progress)
    first, stop = np.searchsorted(info.times, [start or 0.0, np.inf if end is None else end])
    wanted = range(int(first), int(stop))
    is_whole = start is None and end is None
    refusal = decord_refusal(info, is_whole=is_whole) if decoder == "auto" else ""
    if info.num_presented == 0:
        raise VideoError("no-frames", f"{path}: its video stream has no frames")
    if not wanted:
        until = "…" if end is None else f"{end:g}"
        raise VideoError(
            "truncated" if info.num_beyond_end else "no-frames",
            f"{path}: none of its {info.num_presented} frames, the last at "
            f"{info.times[-1]:.3f} s, is in [{start or 0:g}, {until}) s",
        )
    on_probe(len(wanted))
    if decoder == "decord" or (decoder == "auto" and not refusal):
        try:
            yield from _read_decord(info, wanted)
            return Outcome(status="ok", decoder="decord")
        except _DecordFaultError as fault:
            if decoder == "decord":
                raise VideoError(
                    "damaged", f"{path}: decord: {fault}; try --decoder auto"
                ) from None
            refusal = f"decord: {fault}"
            yield Restart(refusal)
    return (
        yield from _read_pyav(
            info, wanted, on_progress, start=start, end=end, decoder_reason=refusal
        )
    )


def decord_refusal(info: VideoInfo, *, is_whole: bool) -> str:
    """The first rule that keeps decord from a file, tried on hundreds of odd ones; empty where it
    may try.
    """
    rules = (
        (info.container not in (MOV, MATROSKA), f"container {info.container}"),
        (not is_whole, "a span is wanted"),
        (info.width < MIN_DECORD_WIDTH, f"{info.width} pixels wide"),
        (bool(info.width % 2 or info.height % 2), "an odd size: its chroma comes out otherwise"),
        (info.count_reason != "", info.count_reason),
        (bool(info.oddities), ", ".join(info.oddities)),
        (info.num_beyond_end > 0, "the file ends before its index does"),
        (info.orientation.is_mirrored, "the display matrix mirrors"),
        (importlib.util.find_spec("decord") is None, "decord is not installed"),
    )
    return next((reason for is_broken, reason in rules if is_broken), "")


def _read_decord(info: VideoInfo, wanted: range) -> Iterator[Frame]:
    """Front to back with one thread, never by index: random access returns neighbouring frames on
    some files.
    """
    decord = _import_decord()
    times = info.times
    try:
        reader = decord.VideoReader(info.path, ctx=decord.cpu(0), num_threads=1)
        stated = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    except (RuntimeError, AssertionError, decord.DECORDError) as error:
        raise _DecordFaultError(f"cannot open it ({_decord_says(error)})") from None
    if len(reader) != info.num_presented:
        raise _DecordFaultError(f"counts {len(reader)} frames, not {info.num_presented}")
    tolerance = np.maximum(1e-3, 2e-7 * times)
    if (np.abs(stated - stated[0] - times) > tolerance).any():
        raise _DecordFaultError("its timestamps are not the packets'")
    for index in range(info.num_presented):
        try:
            image = reader.next().asnumpy()
        except (StopIteration, RuntimeError, decord.DECORDError):
            # Which frame it is, and what decord says, depends on how far its own thread has run.
            raise _DecordFaultError("fails before its end") from None
        if image.ndim != 3 or image.shape[2] != 3:
            raise _DecordFaultError(f"frame {index} has shape {image.shape}")
        if index in wanted:
            yield Frame(image, index, float(times[index]))


def _import_decord() -> Any:
    """Imports decord without the CUDA libraries that it would load beside: 0.8 GB of memory in
    every process.
    """
    if "decord" not in sys.modules:
        nvidia = sys.modules.get("nvidia")
        sys.modules["nvidia"] = None  # type: ignore[assignment]  # find_spec then finds none
        try:
            import decord
        except ImportError as error:
            raise _DecordFaultError(f"not installed ({error})") from None
        finally:
            del sys.modules["nvidia"]
            if nvidia is not None:
                sys.modules["nvidia"] = nvidia
        decord.logging.set_level(decord.logging.QUIET)
    return sys.modules["decord"]


def _decord_says(error: BaseException) -> str:
    """An error's first line without decord's clock and source line: two runs say the same."""
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", first_line(error))[:200]


def _read_pyav(
    info: VideoInfo,
    wanted: range,
    on_progress: Callable[[], None],
    *,
    start: float | None,
    end: float | None,
    decoder_reason: str,
) -> Generator[Frame, None, Outcome]:
    """Packet by packet; errors are skipped, and what is missing at the end is counted."""
    is_ranked = not info.count_reason
    seen = np.zeros(info.num_presented, dtype=bool)
    num_decoded, num_errors, num_concealed, first_error = 0, 0, 0, ""
    with open_best_stream(info.path) as (container, stream):
        for packet in packets(container, stream):
            on_progress()
            frames, error = decode(packet)
            if error and packet.size > 0 and not packet.is_discard:
                num_errors += 1
                first_error = first_error or error
            for frame in frames:
                position = _rank(info, frame.pts) if is_ranked else num_decoded
                num_decoded += 1
                if position not in wanted or seen[position]:
                    continue
                seen[position] = True
                num_concealed += bool(frame.is_corrupt)
                image = info.orientation.apply(frame.to_ndarray(format="rgb24"))
                yield Frame(image, position, _time(info, position, frame.pts))
            if end is not None and seen[wanted.stop - 1]:
                break
    num_rows = int(seen.sum())
    # Where frames are counted, a packet need not be a frame (VP9's hidden ones): only errors tell.
    num_missing = len(wanted) - num_rows
    num_lost = num_missing if is_ranked else min(num_errors, num_missing)
    num_beyond_end = 0
    if info.num_beyond_end and (end is None or end > info.times[-1]):
        num_beyond_end = max(1, info.num_beyond_end_in(start, end))
        num_lost += num_beyond_end
    if num_rows == 0:
        detail = f" ({first_error})" if first_error else ""
        raise VideoError(
            "damaged", f"{info.path}: none of its {len(wanted)} frames could be decoded{detail}"
        )
    if not num_lost and not num_concealed:
        return Outcome(status="ok", decoder="pyav", decoder_reason=decoder_reason)
    faults = [
        f"{num_lost} of {num_rows + num_lost} frames could not be decoded" if num_lost else "",
        f"{num_concealed} are concealed" if num_concealed else "",
        first_error,
    ]
    return Outcome(
        status="partial",
        reason="truncated" if num_beyond_end else "damaged",
        message=f"{info.path}: {'; '.join(filter(None, faults))}",
        num_lost_frames=num_lost,
        decoder="pyav",
        decoder_reason=decoder_reason,
    )


def _rank(info: VideoInfo, pts: int | None) -> int:
    """Rank of a timestamp among the presented ones; -1 for one that is not among them."""
    if pts is None:
        return -1
    rank = int(np.searchsorted(info.presented_pts, pts))
    return rank if rank < info.num_presented and info.presented_pts[rank] == pts else -1


def _time(info: VideoInfo, position: int, pts: int | None) -> float:
    """Seconds of the frame at `position`: its own timestamp, or what its place in the order says
    without one.
    """
    if info.count_reason == "timestamps are not unique" and pts is not None:
        return float(info.seconds(np.array([pts]))[0])
    return float(info.times[position])
