"""decord, where it is known to be right: which files it may read, and how it is watched there."""

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
from .container import MATROSKA, MOV, WHOLE, absolute, decode, open_window
from .probe import VideoInfo

MIN_WIDTH = 64


class DecordFaultError(Exception):
    """decord broke a rule while it read."""


def decord_refusal(info: VideoInfo, *, is_whole: bool) -> str:
    """The first rule that keeps decord from a file, tried on hundreds of odd ones; empty where it
    may try.
    """
    rules = (
        (info.container not in (MOV, MATROSKA), f"container {info.container}"),
        (not is_whole, "a span is wanted"),
        (info.width < MIN_WIDTH, f"{info.width} pixels wide"),
        (bool(info.width % 2 or info.height % 2), "an odd size: its chroma comes out otherwise"),
        (info.count_reason != "", info.count_reason),
        (bool(info.oddities), ", ".join(info.oddities)),
        (info.num_beyond_end > 0, "the file ends before its index does"),
        (info.orientation.is_mirrored, "the display matrix mirrors"),
        (importlib.util.find_spec("decord") is None, "decord is not installed"),
    )
    return next((reason for is_broken, reason in rules if is_broken), "")


def read_decord(
    info: VideoInfo, wanted: npt.NDArray[np.int64], on_progress: Callable[[], None]
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """Front to back with one thread, never by index: random access returns neighbouring frames on
    some files.

    A packet that gives no frame, and no error either, has decord shift all later ones, and repeat
    the last to make up the number. So where that is repeated, what packets give is counted.
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
            # Which frame it is, and what decord says, depends on how far its own thread has run.
            raise DecordFaultError("fails before its end") from None
        if image.ndim != 3 or image.shape[2] != 3:
            raise DecordFaultError(f"frame {index} has shape {image.shape}")
        if is_wanted[index]:
            yield index, image
        last.append(image)
    is_repeated = len(last) == 2 and np.array_equal(last[0], last[1])
    if is_repeated and not _gives_every_frame(info, on_progress):
        raise DecordFaultError("repeats its last frame in place of one that is lost")


def _gives_every_frame(info: VideoInfo, on_progress: Callable[[], None]) -> bool:
    """Whether each presented timestamp is that of a decoded frame."""
    found: set[int] = set()
    with open_window(info.path, WHOLE) as (_, stream, every):
        for packet in itertools.chain(every, [None]):
            on_progress()
            found.update(frame.pts for frame in decode(stream, packet)[0])
    return found.issuperset(info.presented_pts.tolist())


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
            raise DecordFaultError(f"not installed ({error})") from None
        finally:
            del sys.modules["nvidia"]
            if nvidia is not None:
                sys.modules["nvidia"] = nvidia
        decord.logging.set_level(decord.logging.QUIET)
    return sys.modules["decord"]


def _decord_says(error: BaseException) -> str:
    """An error's first line without decord's clock and source line: two runs say the same."""
    return re.sub(r"\[\d\d:\d\d:\d\d\] \S+: ", "", first_line(error))[:200]
