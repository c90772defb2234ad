"""Cutting a video into parts, exactly: each part knows its frames, and where to decode from.

Decoding begins at a keyframe that needs nothing of what came before it (`keyframes.py`), a few
frames before a part's first one, so that the decoder has settled on how many frames it reorders. In
other streams it begins two keyframes before: one is what formats promise; the one before it covers
those that recover slowly after a keyframe (intra refresh). Either way the part's first frame has a
neighbour to compare times with. Only where packets are damaged may pictures differ from those of a
reading from the beginning, as what a decoder makes up for them depends on where it began.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ...manifests.plan import Cut
from .container import SEEKABLE, WHOLE, Keyframe, Window
from .sampling import Sampling, select
from .timeline import Timeline

PREROLL_KEYFRAMES = 2
SETTLING_FRAMES = 16  # as many as H.264 and HEVC may reorder
MAX_PREROLL = 4  # times the part before it: decoding is cheap beside a backbone
MIN_SKIPPED_FRAMES = 64  # opening a file again takes about as long as decoding so many


def cut_video(
    info: Timeline,
    offsets: Sequence[int],
    sampling: Sampling,
    *,
    start: float | None = None,
    end: float | None = None,
) -> list[Cut]:
    """Parts of a video; none where it is better left whole.

    Frames that are counted can't be found again without decoding what comes before them, and a part
    that is much shorter than what must be decoded before it is no gain.

    Args:
        info: of the whole file.
        offsets: where parts are to begin, counted in wanted frames; the first is 0.
        sampling: which frames are wanted.
        start: first second of the row's span.
        end: the second before which it stops.
    """
    if info.count_reason:
        return []
    wanted = select(info.times, sampling, start=start, end=end)
    if not len(wanted):
        return []
    stop = int(np.searchsorted(info.times, np.inf if end is None else end))
    firsts: list[int] = []
    for first in wanted[[offset for offset in offsets if offset < len(wanted)]].tolist():
        _, window_frame = window_around(info, first, stop)
        if not firsts or first - window_frame <= MAX_PREROLL * (first - firsts[-1]):
            firsts.append(first)
    cuts = [
        _part(info, first, last, int(((wanted >= first) & (wanted < last)).sum()))
        for first, last in zip(firsts, [*firsts[1:], stop], strict=True)
    ]
    return cuts if len(cuts) > 1 else []


def cut_clip(info: Timeline, frames: Sequence[int]) -> list[tuple[Cut | None, list[int]]]:
    """What is to be decoded for a few frames, and for which of them: pieces between which nothing
    is read, where that is worth a seek.

    Args:
        info: of the whole file.
        frames: ranks of those wanted, increasing.

    Returns:
        no cut means that the file is read from its beginning, as where frames are counted.
    """
    pieces = [[int(frames[0])]]
    for before, frame in pairwise(map(int, frames)):
        if info.keyframes and info.container in SEEKABLE:
            _, window_frame = window_around(info, frame, frame + 1)
            if window_frame - before > MIN_SKIPPED_FRAMES:
                pieces.append([])
        pieces[-1].append(frame)
    if not info.keyframes:
        return [(None, piece) for piece in pieces]
    return [(_part(info, piece[0], piece[-1] + 1, len(piece)), piece) for piece in pieces]


def _part(info: Timeline, first: int, stop: int, num_frames: int) -> Cut:
    """The frames [first, stop), so many of which are wanted."""
    window, window_frame = window_around(info, first, stop)
    return Cut(
        start=float(info.times[first]),
        end=None if stop == info.num_presented else float(info.times[stop]),
        first_frame=first,
        stop_frame=stop,
        num_frames=num_frames,
        origin_pts=info.origin_pts,
        window_frame=window_frame,
        keyframe=window.keyframe,
        num_packets=window.num_packets,
    )


def window_around(info: Timeline, first: int, stop: int) -> tuple[Window, int]:
    """The packets that the frames [first, stop) and the one after them need, and the rank of the
    first frame that they present.

    Args:
        info: of the whole file.
        first: rank of a frame.
        stop: rank after that of the last frame.
    """
    if not info.keyframes:
        return WHOLE, 0
    pts, packet_pts = info.presented_pts, info.packet_pts
    keyframe = _keyframe_before(info, first)
    first_packet = 0 if keyframe is None else keyframe.packet
    window_frame = 0 if keyframe is None else int(np.searchsorted(pts, keyframe.pts))
    num_packets = None
    if stop < info.num_presented:
        num_packets = int(np.flatnonzero(packet_pts <= pts[stop])[-1]) + 1 - first_packet
    return Window(keyframe, num_packets), window_frame


def _keyframe_before(info: Timeline, first: int) -> Keyframe | None:
    """Where to begin decoding so that a frame comes out right; None for the file's beginning."""
    pts = info.presented_pts

    def last_before(frame: int) -> int:
        return bisect_right(info.keyframes, pts[max(frame, 0)], key=lambda key: key.pts) - 1

    number = last_before(first - 1) - (PREROLL_KEYFRAMES - 1)
    settled = last_before(first - SETTLING_FRAMES)
    if settled >= 0 and info.keyframes[settled].packet in info.fresh_keyframes:
        number = max(number, settled)
    return info.keyframes[number] if number >= 0 else None


def window_of(cut: Cut) -> Window:
    """The packets of a part that stands in a plan."""
    keyframe = None if cut.keyframe is None else Keyframe(*cut.keyframe)
    return Window(keyframe, cut.num_packets)
