"""decord: the files that it reads correctly, and checks while it reads."""

import importlib.util
import itertools
import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ...manifests.errors import first_line
from .container import MATROSKA, MOV, absolute
from .packets import WHOLE_FILE, decode, open_window
from .probe import VideoInfo

MIN_WIDTH = 64


class DecordFaultError(Exception):
    """decord gave wrong or too few frames; those that it gave are void."""


def decord_refusal(info: VideoInfo, *, is_part: bool) -> str:
    """Return the first rule that rules decord out for a file; empty if it may be used.

    The rules come from comparisons on hundreds of odd files.

    Args:
        info: probe of the file.
        is_part: whether frames of a part of the file are wanted.
    """
    rules = (
        (info.container not in (MOV, MATROSKA), f"container {info.container}"),
        (is_part, "a part is wanted"),
        (info.width < MIN_WIDTH, f"{info.width} pixels wide"),
        (bool(info.width % 2 or info.height % 2), "an odd size, for which its chroma differs"),
        (info.count_reason != "", info.count_reason),
        (bool(info.oddities), ", ".join(info.oddities)),
        (info.num_beyond_end > 0, "the file ends before its index"),
        (info.orientation.is_mirrored, "the display matrix mirrors"),
        (importlib.util.find_spec("decord") is None, "decord is not installed"),
    )
    return next((reason for is_broken, reason in rules if is_broken), "")


def read_decord(
    info: VideoInfo, wanted: npt.NDArray[np.int64], on_progress: Callable[[], None]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Yield (position, image) of the wanted frames, read front to back in one thread.

    Random access returns neighboring frames on some files. A packet that gives neither a frame nor
    an error makes decord shift all later frames and repeat the last one to fill up the number; if
    the last frame is repeated, the packets' frames are counted.

    Raises:
        DecordFaultError: decord gave wrong or too few frames.
    """
    decord = _import_decord()
    times = info.times
    last: deque[npt.NDArray[np.uint8]] = deque(maxlen=2)
    is_wanted = np.zeros(info.num_presented, dtype=bool)
    is_wanted[wanted] = True
    try:
        reader = decord.VideoReader(absolute(info.path), ctx=decord.cpu(0), num_threads=1)
        stated = reader.get_frame_timestamp(range(len(reader)))[:, 0].astype(np.float64)
    except (RuntimeError, AssertionError, decord.DECORDError) as error:
        raise DecordFaultError(f"cannot open it ({_decord_says(error)})") from None
    if len(reader) != info.num_presented:
        raise DecordFaultError(f"counts {len(reader)} frames, not {info.num_presented}")
    tolerance = np.maximum(1e-3, 2e-7 * times)
    if (np.abs(stated - stated[0] - times) > tolerance).any():
        raise DecordFaultError("its timestamps are not the packets'")
    for index in range(info.num_presented):
        on_progress()
        try:
            image = reader.next().asnumpy()
        except (StopIteration, RuntimeError, decord.DECORDError):
            # The frame number and message depend on how far its own thread has run.
            raise DecordFaultError("fails before the end") from None
        if image.ndim != 3 or image.shape[2] != 3:
            raise DecordFaultError(f"frame {index} has shape {image.shape}")
        if is_wanted[index]:
            yield index, image
        last.append(image)
    is_repeated = len(last) == 2 and np.array_equal(last[0], last[1])
    if is_repeated and not _gives_every_frame(info, on_progress):
        raise DecordFaultError("repeats its last frame in place of a lost one")


def _gives_every_frame(info: VideoInfo, on_progress: Callable[[], None]) -> bool:
    """Return whether each presented timestamp is that of a decoded frame."""
    found: set[int] = set()
    with open_window(info.path, WHOLE_FILE, info.max_pixels) as (_, stream, every):
        for packet in itertools.chain(every, [None]):
            on_progress()
            found.update(frame.pts for frame in decode(stream, packet)[0])
    return found.issuperset(info.presented_pts.tolist())


def _import_decord() -> Any:
    """Import decord without the CUDA libraries that it would load: 0.8 GB of memory per process."""
    if "decord" not in sys.modules:
        nvidia = sys.modules.get("nvidia")
        sys.modules["nvidia"] = None  # type: ignore[assignment]  # find_spec then finds none
        try:
            import decord
        except ImportError as error:
            raise DecordFaultError(f"not installed ({error})") from None
        finally:
            del sys.modules["nvidia"]
            if nvidia is not None:
                sys.modules["nvidia"] = nvidia
        decord.logging.set_level(decord.logging.QUIET)
    return sys.modules["decord"]


def _decord_says(error: BaseException) -> str:
    """Return an error's first line without decord's clock and source line."""
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", first_line(error))[:200]
