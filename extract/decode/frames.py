"""Frames of one video: every wanted presented frame, once, upright, with its index and time.

First `select_frames` decides which frames to read, out of which packets; then `read_frames` reads
them: by PyAV, packet by packet, or by decord if that is asked for and correct for the file. PyAV
decodes on the CPU, or on a GPU's video engines, whose frames are held to the CPU's. Frames come one
at a time, so memory does not grow with the video.
"""

import itertools
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ...manifests.errors import counted
from ...manifests.failures import NOTE_SEPARATOR, Reason, VideoError
from ...manifests.image_sequences import is_image_sequence
from ...manifests.plan import Cut
from .cuts import window_around, window_of
from .decord_reader import DecordFaultError, decord_refusal, read_decord
from .frame_format import FrameFormat, Plane, PlaneReader
from .images import IMAGES, probe_images, read_images
from .limits import MAX_PIXELS
from .nvdec import NvdecFaultError, nvdec_refusal
from .packets import WHOLE_FILE, RgbConverter, Window, decode, open_window
from .probe import HOLE, NOT_UNIQUE, VideoInfo, probe
from .sampling import EVERY_FRAME, Sampling, select

Decoder = Literal["auto", "decord", "pyav"]
FRAME_PER_PACKET = ("h264", "hevc")  # packets that show no frame are known, see bitstream.py


class Frame(NamedTuple):
    """One frame, valid until the next one is read.

    Attributes:
        planes: arrays of its format; tensors if it was decoded on a GPU.
        format: its format.
        frame_index: index among the presented frames.
        time: seconds.
    """

    planes: Sequence[Any]
    format: FrameFormat
    frame_index: int
    time: float

    @property
    def image(self) -> Plane:
        """The image [H, W, 3] uint8 of a frame in RGB."""
        image: Plane = self.planes[0]
        return image

    def __repr__(self) -> str:
        height, width = self.format.upright_size
        return f"Frame({self.frame_index}, {self.time:.3f} s, {width}x{height})"


class FrameSource(Protocol):
    """Decodes the packets of one file into frames.

    Attributes:
        gpu: index of the GPU that decodes; None for the CPU.
    """

    gpu: int | None

    def read(self, frame: Any) -> tuple[FrameFormat, Sequence[Any]]:
        """Return format and planes of a decoded PyAV frame, valid as long as it is."""

    def equals(self, frame: Any, expected: Any) -> bool:
        """Return whether the planes of a frame are those of one that the CPU has decoded."""


class SoftwareFrames:
    """Frames that the CPU decodes; a `FrameSource`.

    Args:
        info: probe of the file.
        as_planes: whether to leave frames as planes, if they are 4:2:0, rather than convert them.
    """

    gpu: int | None = None

    def __init__(self, info: VideoInfo, *, as_planes: bool = False) -> None:
        self._orientation = info.orientation
        self._to_rgb = RgbConverter(info.path)
        self._planes = PlaneReader(info.orientation) if as_planes else None

    def read(self, frame: Any) -> tuple[FrameFormat, Sequence[Plane]]:
        """See `FrameSource`."""
        found = None if self._planes is None else self._planes(frame)
        if found is not None:
            return found
        image = self._orientation.apply(self._to_rgb(frame))
        return FrameFormat(*image.shape[:2]), [image]

    def equals(self, frame: Any, expected: Any) -> bool:
        """See `FrameSource`."""
        pairs = zip(self.read(frame)[1], self.read(expected)[1], strict=True)
        return all(np.array_equal(one, other) for one, other in pairs)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Result of reading a video.

    Attributes:
        status: `ok`; `partial` if presented frames are missing or concealed, or the file is
            damaged among them; `failed` if there is no frame.
        reason: machine-readable cause of a status other than `ok`.
        message: the cause in words, with counts; of `ok`, what a user should know, or "".
        num_lost_frames: number of presented frames that could not be decoded.
        decoder: `nvdec`, `decord` or `pyav`; `pillow` for images.
        decoder_reason: why the video was decoded a second time, or not by the decoder that was
            planned; empty for a first try.
        decode_seconds: time that the decoder process spent.
    """

    status: Literal["ok", "partial", "failed"]
    reason: Reason | Literal[""] = ""
    message: str = ""
    num_lost_frames: int = 0
    decoder: str = ""
    decoder_reason: str = ""
    decode_seconds: float = field(default=0.0, compare=False)


class Selection(NamedTuple):
    """Frames to read, and the packets that they need.

    Attributes:
        info: probe of the file, or of the window that a cut names.
        wanted: [S] positions of the frames in `info`, increasing.
        first_frame: frame index of the first frame in `info`.
        window: packets to read.
        start: seconds at which the frames begin; None for the file's beginning.
        end: seconds before which they end; None for the file's end.
        is_part: whether a cut restricts them.
        span: positions in `info` from the first frame to the end of the span or part, those that
            are not wanted included.
    """

    info: VideoInfo
    wanted: npt.NDArray[np.int64]
    first_frame: int
    window: Window
    start: float | None
    end: float | None
    is_part: bool
    span: range


def select_frames(
    path: str,
    *,
    start: float | None = None,
    end: float | None = None,
    sampling: Sampling = EVERY_FRAME,
    cut: Cut | None = None,
    frames: Sequence[int] | None = None,
    probe_whole: Callable[[str], VideoInfo] | None = None,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[], None] = lambda: None,
) -> Selection:
    """Select the presented frames with start <= time < end, sampled, or those of given indices.

    Args:
        path: path of the file.
        start: first second of the span; None for the beginning.
        end: second before which the span stops; None for the end.
        sampling: frames taken of the span.
        cut: part of the span whose frames alone are wanted.
        frames: increasing frame indices, in place of the sampling; a cut contains them.
        probe_whole: probes a whole file; by default `probe`.
        max_pixels: pixel limit of a frame.
        on_progress: called often while the file is read.

    Raises:
        VideoError: the file cannot be read, or has no such frame.
    """
    if cut is None:
        if probe_whole is None:
            info = probe_any(path, max_pixels=max_pixels, on_progress=on_progress)
        else:
            info = probe_whole(path)
        first_frame, part = 0, None
    else:
        info = probe_any(
            path,
            window_of(cut),
            origin_pts=cut.origin_pts,
            max_pixels=max_pixels,
            on_progress=on_progress,
        )
        first_frame = cut.window_frame
        part = range(cut.first_frame - first_frame, cut.stop_frame - first_frame)
        if info.times[part.start : part.start + 1].tolist() != [cut.start]:
            raise _changed(path, "give --redo-changed" if frames is None else "rerun the command")
    if info.num_presented == 0:
        reason: Reason = "truncated" if info.num_beyond_end else "no-frames"
        raise VideoError(reason, f"{path}: its video stream has no frames; leave it out")
    if frames is None:
        wanted = select(info.times, sampling, start=start, end=end, part=part)
    else:
        wanted = np.asarray(frames, dtype=np.int64) - first_frame
        if wanted[-1] >= info.num_presented:
            raise _changed(path, "rerun the command")
    if not len(wanted):
        until = "…" if end is None else f"{end:g}"
        raise VideoError(
            "truncated" if info.num_beyond_end else "no-frames",
            f"{path}: none of its {info.num_presented} frames, the last at "
            f"{info.times[-1]:.3f} s, is in [{start or 0:g}, {until}) s; correct start and "
            "end, or leave it out",
        )
    first, stop = int(wanted[0]), int(wanted[-1]) + 1
    if part is not None:
        first, stop = part.start, part.stop
    elif frames is None:
        stop = int(np.searchsorted(info.times, np.inf if end is None else end))
    if cut is None:
        window, _ = window_around(info, int(wanted[0]), int(wanted[-1]) + 1)
    else:
        window, start = window_of(cut), cut.start
    if frames is not None:  # frames beyond them that the file does not have are not lost
        end = float(info.times[wanted[-1]])
    return Selection(
        info=info,
        wanted=wanted,
        first_frame=first_frame,
        window=window,
        start=start,
        end=end,
        is_part=cut is not None,
        span=range(first, stop),
    )


def probe_any(
    path: str,
    window: Window = WHOLE_FILE,
    *,
    origin_pts: int | None = None,
    max_pixels: int = MAX_PIXELS,
    on_progress: Callable[[], None] = lambda: None,
) -> VideoInfo:
    """Probe a video or an image sequence; see `probe`."""
    if is_image_sequence(path):
        return probe_images(path, window, max_pixels)
    return probe(
        path, window, origin_pts=origin_pts, max_pixels=max_pixels, on_progress=on_progress
    )


def _changed(path: str, remedy: str) -> VideoError:
    return VideoError("damaged", f"{path}: changed since it was probed; {remedy}")


def read_frames(
    selection: Selection,
    decoder: Decoder | Literal["nvdec"] = "auto",
    *,
    source: FrameSource | None = None,
    decoder_reason: str = "",
    on_progress: Callable[[], None] = lambda: None,
) -> Generator[Frame, None, Outcome]:
    """Yield the selected frames, and return the outcome.

    Frames come in the decoder's order, which is that of their timestamps except in some damaged
    files: sort them by index. Broken packets are skipped and counted.

    Args:
        selection: frames to read.
        decoder: `auto` takes PyAV.
        source: decodes the packets that PyAV reads; by default `SoftwareFrames`, to RGB.
        decoder_reason: why this is a second try, for the outcome.
        on_progress: called often while the file is read.

    Raises:
        VideoError: no frame can be decoded, or decord is asked for and is wrong; frames that it
            gave are void.
        NvdecFaultError: `decoder` is `nvdec`, and the CPU must decode the file; frames that it gave
            are void.
    """
    info = selection.info
    if info.container == IMAGES:
        return (yield from _read_sequence(selection, decoder, on_progress))
    if source is None:
        source = SoftwareFrames(info)
    if decoder == "nvdec":
        return (yield from _read_by_nvdec(selection, source, on_progress))
    if decoder != "decord":
        outcome = yield from _read_by_pyav(selection, source, on_progress)
        return replace(outcome, decoder_reason=decoder_reason)
    # A span is read from the file's beginning; only a part would be wrong.
    if refusal := decord_refusal(info, is_part=selection.is_part):
        raise VideoError(
            "refused",
            f"{info.path}: decord does not decode this file correctly ({refusal}); give "
            "--decoder auto",
        )
    try:
        for index, image in read_decord(info, selection.wanted, on_progress):
            yield Frame([image], FrameFormat(*image.shape[:2]), index, float(info.times[index]))
    except DecordFaultError as fault:
        raise VideoError("damaged", f"{info.path}: decord {fault}; give --decoder auto") from None
    return Outcome(
        status="ok",
        message=NOTE_SEPARATOR.join(info.notes),
        decoder="decord",
        decoder_reason=decoder_reason,
    )


def _read_by_nvdec(
    selection: Selection, source: FrameSource, on_progress: Callable[[], None]
) -> Generator[Frame, None, Outcome]:
    """Read as by PyAV, but accept no frame that the CPU might decode otherwise.

    The first frame must equal the CPU's, all must have its size, each timestamp must be a packet's,
    and none may be missing or come twice. What this cannot see is damage within a picture: the
    engines report none.

    Raises:
        NvdecFaultError: this does not hold, or the file is not sound.
    """
    info, found = selection.info, set[int]()
    if refusal := nvdec_refusal(info):
        raise NvdecFaultError(refusal)
    first = int(info.presented_pts[0])

    def check(frame: Any) -> None:
        if not found and frame.pts != info.first_frame.pts:
            raise NvdecFaultError(f"begins with timestamp {frame.pts}, not {info.first_frame.pts}")
        if not found and not source.equals(frame, info.first_frame):
            raise NvdecFaultError("its first frame differs from the CPU's")
        if (frame.width, frame.height) != (info.first_frame.width, info.first_frame.height):
            raise NvdecFaultError("the size of its frames changes")
        is_before = frame.pts is not None and frame.pts < first  # the window's first packet
        if frame.pts in found or (_rank(info, frame.pts) < 0 and not is_before):
            raise NvdecFaultError(f"timestamp {frame.pts} is no packet's, or comes twice")
        found.add(frame.pts)

    try:
        outcome = yield from _read_by_pyav(selection, source, on_progress, check)
    except VideoError as error:
        raise NvdecFaultError(str(error)) from None
    if outcome.status != "ok":
        raise NvdecFaultError(outcome.message)
    return replace(outcome, decoder="nvdec")


def _read_by_pyav(
    selection: Selection,
    source: FrameSource,
    on_progress: Callable[[], None],
    check: Callable[[Any], None] = lambda frame: None,
) -> Generator[Frame, None, Outcome]:
    """Read packet by packet; skip errors, and count what is missing at the end.

    Args:
        selection: frames to read.
        source: decodes the packets.
        on_progress: called for each packet.
        check: called with each decoded PyAV frame.
    """
    info, wanted, span = selection.info, selection.wanted, selection.span
    is_ranked = not info.count_reason
    is_missing = np.zeros(info.num_presented, dtype=bool)
    is_missing[wanted] = True
    num_decoded, num_errors, num_concealed, first_error = 0, 0, 0, ""
    rank = -1  # of the last timestamp, among those that are not unique
    window = open_window(info.path, selection.window, info.max_pixels, gpu=source.gpu)
    with window as (_, stream, every):
        for packet in itertools.chain(every, [None]):
            on_progress()
            frames, error = decode(stream, packet)
            if error and packet is not None and not packet.is_discard:
                num_errors += 1
                first_error = first_error or error
            for frame in frames:
                check(frame)
                position = _rank(info, frame.pts) if is_ranked else num_decoded
                num_decoded += 1
                if info.count_reason == NOT_UNIQUE and frame.pts is not None:
                    rank = max(rank + 1, int(np.searchsorted(info.presented_pts, frame.pts)))
                num_concealed += bool(frame.is_corrupt and position in span)
                if not 0 <= position < len(is_missing) or not is_missing[position]:
                    continue
                is_missing[position] = False
                time = info.times[position if rank < 0 else min(rank, info.num_presented - 1)]
                layout, planes = source.read(frame)
                yield Frame(planes, layout, selection.first_frame + position, float(time))
            if not is_ranked and wanted[-1] < num_decoded < info.num_presented:
                break
    # If frames are counted, a packet of some codecs need not be a frame: only errors tell.
    num_missing = int(is_missing.sum())
    num_rows = len(wanted) - num_missing
    has_all = is_ranked or info.codec in FRAME_PER_PACKET
    num_lost = num_missing if has_all else min(num_errors, num_missing)
    if not is_ranked:  # more frames than packets: some packets could not be told apart
        num_lost += max(0, num_decoded - info.num_presented)
    num_beyond_end = 0
    is_to_end = selection.end is None or selection.end > info.times[-1]
    if info.num_beyond_end and is_to_end:
        num_beyond_end = max(1, info.num_beyond_end_in(selection.start, selection.end))
        num_lost += num_beyond_end
    if num_rows == 0:
        detail = f" ({first_error})" if first_error else ""
        raise VideoError(
            "truncated" if info.num_beyond_end else "damaged",
            f"{info.path}: none of its {len(wanted)} frames could be decoded{detail}; copy it "
            "again, or leave it out",
        )
    num_corrupt = _num_corrupt_in(info, span)
    demuxer_error = info.demuxer_error if is_to_end else ""
    is_ok = not (num_lost or num_concealed or num_corrupt or demuxer_error)
    faults = [
        f"{num_lost} of {num_rows + num_lost} frames could not be decoded" if num_lost else "",
        f"{num_concealed} are partly concealed by the decoder" if num_concealed else "",
        f"{counted(num_corrupt, 'packet')} marked as damaged" if num_corrupt else "",
        f"reading it ended with: {demuxer_error}" if demuxer_error else "",
        "" if is_ok else first_error,
    ]
    words = NOTE_SEPARATOR.join(filter(None, [*faults, *info.notes]))
    if is_ok:
        return Outcome(status="ok", message=words, decoder="pyav")
    return Outcome(
        status="partial",
        reason="truncated" if num_beyond_end and HOLE not in info.oddities else "damaged",
        message=f"{info.path}: {words}",
        num_lost_frames=num_lost,
        decoder="pyav",
    )


def _read_sequence(
    selection: Selection, decoder: str, on_progress: Callable[[], None]
) -> Generator[Frame, None, Outcome]:
    """Read the images of a sequence; count those that cannot be read."""
    info, wanted = selection.info, selection.wanted
    if decoder == "nvdec":
        raise NvdecFaultError("an image sequence")
    errors = []
    for position, image in read_images(info, wanted, on_progress):
        if isinstance(image, str):
            errors.append(image)
            continue
        layout = FrameFormat(*image.shape[:2])
        index = selection.first_frame + position
        yield Frame([image], layout, index, float(info.times[position]))
    if errors:
        words = f"{len(errors)} of {len(wanted)} images could not be read; {errors[0]}"
        if len(errors) == len(wanted):
            raise VideoError("damaged", f"{info.path}: {words}")
        return Outcome(
            status="partial",
            reason="damaged",
            message=f"{info.path}: {words}",
            num_lost_frames=len(errors),
            decoder="pillow",
        )
    return Outcome(status="ok", decoder="pillow")


def _num_corrupt_in(info: VideoInfo, span: range) -> int:
    """Return the number of packets of a span that the demuxer found damaged."""
    if info.count_reason:
        return info.num_corrupt
    ranks = np.searchsorted(info.presented_pts, info.corrupt_pts)
    return sum(rank in span for rank in ranks.tolist())


def _rank(info: VideoInfo, pts: int | None) -> int:
    """Return the rank of a timestamp among the presented ones; -1 if it is not among them."""
    if pts is None:
        return -1
    rank = int(np.searchsorted(info.presented_pts, pts))
    return rank if rank < info.num_presented and info.presented_pts[rank] == pts else -1
