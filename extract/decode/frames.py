"""The frames of one video, exactly: every presented frame, once, upright, with its index and its
time.

decord reads a file where it is known to be right, and is checked while it reads; everything else
goes through PyAV, packet by packet. Either way frames come one at a time, so memory does not grow
with the video.
"""

import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ...manifests.atomic import FileState, file_state
from ...manifests.errors import Reason, VideoError
from ...manifests.plan import Cut
from ..choices import Decoder
from .container import Window, decode, image_of, open_window
from .cuts import window_around, window_of
from .decord_reader import DecordFaultError, decord_refusal, read_decord
from .probe import HOLE, NOT_UNIQUE, VideoInfo, probe
from .sampling import EVERY_FRAME, Sampling, select


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


def read_frames(
    path: str,
    *,
    start: float | None = None,
    end: float | None = None,
    sampling: Sampling = EVERY_FRAME,
    cut: Cut | None = None,
    frames: Sequence[int] | None = None,
    decoder: Decoder = "auto",
    on_probe: Callable[[int], None] = lambda num_frames: None,
    on_progress: Callable[[], None] = lambda: None,
) -> Generator[Frame | Restart, None, Outcome]:
    """Yields the wanted ones of the presented frames with start <= time < end, and returns how it
    ended.

    Frames come in the decoder's order, which is that of their timestamps but in some damaged files;
    whoever gathers them sorts by index. Broken packets are skipped, and counted.

    Args:
        path: a video file.
        start: first second of the span; None for the beginning.
        end: the second before which it stops; None for the end.
        sampling: which of the span's frames.
        cut: a part of them, of which alone the packets are read.
        frames: ranks of those that are wanted instead, increasing; `cut` holds them, if there is
            one.
        decoder: `auto` takes decord where it is known to be right.
        on_probe: called once, before the first frame, with how many are wanted.
        on_progress: called often while the file is read without giving frames.

    Raises:
        VideoError: no frame can be had of it.
    """
    if cut is None:
        info, window_frame, part = _probe_once(path, on_progress), 0, None
    else:
        window, window_frame = window_of(cut), cut.window_frame
        info = probe(path, window, origin_pts=cut.origin_pts, on_progress=on_progress)
        part = range(cut.first_frame - window_frame, cut.stop_frame - window_frame)
        if info.times[part.start : part.start + 1].tolist() != [cut.start]:
            remedy = "give --redo-changed" if frames is None else "give the command again"
            raise VideoError("damaged", f"{path}: has changed since it was looked at; {remedy}")
    is_whole = start is None and end is None and cut is None and frames is None
    refusal = _refusal_of_decord(info, decoder, is_whole=is_whole, is_part=cut is not None)
    if info.num_presented == 0:
        reason: Reason = "truncated" if info.num_beyond_end else "no-frames"
        raise VideoError(reason, f"{path}: its video stream has no frames; leave it out")
    if frames is None:
        wanted = select(info.times, sampling, start=start, end=end, part=part)
    else:
        wanted = np.asarray(frames, dtype=np.int64) - window_frame
        if wanted[-1] >= info.num_presented:
            raise VideoError(
                "damaged", f"{path}: has changed since it was looked at; give the command again"
            )
    if not len(wanted):
        until = "…" if end is None else f"{end:g}"
        raise VideoError(
            "truncated" if info.num_beyond_end else "no-frames",
            f"{path}: none of its {info.num_presented} frames, the last at "
            f"{info.times[-1]:.3f} s, is in [{start or 0:g}, {until}) s; correct start and "
            "end, or leave it out",
        )
    on_probe(len(wanted))
    if decoder == "decord" or (decoder == "auto" and not refusal):
        try:
            for index, image in read_decord(info, wanted, on_progress):
                yield Frame(image, index, float(info.times[index]))
            return Outcome(status="ok", decoder="decord")
        except DecordFaultError as fault:
            if decoder == "decord":
                raise VideoError(
                    "damaged", f"{path}: decord: {fault}; try --decoder auto"
                ) from None
            refusal = f"decord: {fault}"
            yield Restart()
    if cut is None:
        window, _ = window_around(info, int(wanted[0]), int(wanted[-1]) + 1)
    else:
        start = cut.start
    if frames is not None:  # what the file does not hold beyond them is not missing
        end = float(info.times[wanted[-1]])
    reading = _Reading(info, window, wanted, window_frame, start, end)
    return (yield from _read_pyav(reading, on_progress, decoder_reason=refusal))


def _refusal_of_decord(info: VideoInfo, decoder: Decoder, *, is_whole: bool, is_part: bool) -> str:
    """Why `auto` does not take decord; empty where it does, and for another decoder.

    Raises:
        VideoError: decord is asked for, and would get the file wrong without a word.
    """
    if decoder != "decord":
        return decord_refusal(info, is_whole=is_whole) if decoder == "auto" else ""
    refusal = decord_refusal(info, is_whole=not is_part)
    if refusal:
        raise VideoError(
            "refused", f"{info.path}: decord would get it wrong ({refusal}); give --decoder auto"
        )
    return ""


_last_probed: dict[tuple[str, FileState], VideoInfo] = {}


def _probe_once(path: str, on_progress: Callable[[], None]) -> VideoInfo:
    """Probes a whole file, but not again for the next span of the same one."""
    key = (path, file_state(path))
    if key not in _last_probed:  # of a file that is not there, this says what is wrong
        info = probe(path, on_progress=on_progress)
        _last_probed.clear()
        _last_probed[key] = info
    return _last_probed[key]


class _Reading(NamedTuple):
    """What PyAV is to read: wanted frames [S] by their place in `info`, out of a window."""

    info: VideoInfo
    window: Window
    wanted: npt.NDArray[np.int64]
    first_frame: int  # rank in the file of the first frame in `info`
    start: float | None
    end: float | None


def _read_pyav(
    reading: _Reading, on_progress: Callable[[], None], *, decoder_reason: str
) -> Generator[Frame, None, Outcome]:
    """Packet by packet; errors are skipped, and what is missing at the end is counted."""
    info, wanted = reading.info, reading.wanted
    is_ranked = not info.count_reason
    is_missing = np.zeros(info.num_presented, dtype=bool)
    is_missing[wanted] = True
    num_decoded, num_errors, num_concealed, first_error = 0, 0, 0, ""
    with open_window(info.path, reading.window) as (_, stream, every):
        for packet in itertools.chain(every, [None]):
            on_progress()
            frames, error = decode(stream, packet)
            if error and packet is not None and not packet.is_discard:
                num_errors += 1
                first_error = first_error or error
            for frame in frames:
                position = _rank(info, frame.pts) if is_ranked else num_decoded
                num_decoded += 1
                if not 0 <= position < len(is_missing) or not is_missing[position]:
                    continue
                is_missing[position] = False
                num_concealed += bool(frame.is_corrupt)
                image = info.orientation.apply(image_of(frame, info.path))
                time = _time(info, position, frame.pts)
                yield Frame(image, reading.first_frame + position, time)
            if not is_ranked and wanted[-1] < num_decoded < info.num_presented:
                break
    # Where frames are counted, a packet need not be a frame (VP9's hidden ones): only errors tell.
    num_missing = int(is_missing.sum())
    num_rows = len(wanted) - num_missing
    num_lost = num_missing if is_ranked else min(num_errors, num_missing)
    if not is_ranked:  # frames that no packet stood for: some packet could not be told from others
        num_lost += max(0, num_decoded - info.num_presented)
    num_beyond_end = 0
    if info.num_beyond_end and (reading.end is None or reading.end > info.times[-1]):
        num_beyond_end = max(1, info.num_beyond_end_in(reading.start, reading.end))
        num_lost += num_beyond_end
    if num_rows == 0:
        detail = f" ({first_error})" if first_error else ""
        raise VideoError(
            "truncated" if info.num_beyond_end else "damaged",
            f"{info.path}: none of its {len(wanted)} frames could be decoded{detail}; copy it "
            "again, or leave it out",
        )
    if not num_lost and not num_concealed:
        return Outcome(status="ok", decoder="pyav", decoder_reason=decoder_reason)
    faults = [
        f"{num_lost} of {num_rows + num_lost} frames could not be decoded" if num_lost else "",
        f"{num_concealed} have parts that the decoder made up" if num_concealed else "",
        first_error,
    ]
    return Outcome(
        status="partial",
        reason="truncated" if num_beyond_end and HOLE not in info.oddities else "damaged",
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
    if info.count_reason == NOT_UNIQUE and pts is not None:
        return float(info.seconds(np.array([pts]))[0])
    return float(info.times[position])
