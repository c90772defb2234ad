"""Exact cuts of a video into parts: each part knows its frames, and where decoding begins.

Decoding begins at a keyframe that needs nothing from before it (`probe.is_clean_keyframe`), a few
frames before the part, so that the decoder has settled on how many frames it reorders. In other
streams it begins two keyframes before the part: one is what formats promise; the one before covers
streams that recover slowly after a keyframe (intra refresh). Pictures equal those of reading from
the beginning, except near damaged packets, whose concealment depends on where decoding began.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ...manifests.plan import Cut
from .container import SEEKABLE
from .packets import WHOLE_FILE, Keyframe, Window
from .probe import Timeline
from .sampling import Sampling, select

PREROLL_KEYFRAMES = 2
SETTLING_FRAMES = 16  # frames that H.264 and HEVC may reorder
# Frames decoded in vain before a part, as a multiple of the length of the part before it: where
# decoding is cheap beside the backbone, and where it is the limit.
PREROLL_IF_CHEAP, PREROLL_IF_DEAR = 4.0, 0.25
MAX_SHIFT = 0.5  # of a part's beginning towards a keyframe, in lengths of the part before
MIN_SKIPPED_FRAMES = 64  # decoding as many takes about as long as opening a file again


def cut_video(
    info: Timeline,
    offsets: Sequence[int],
    sampling: Sampling,
    *,
    start: float | None = None,
    end: float | None = None,
    max_preroll: float = PREROLL_IF_CHEAP,
) -> list[Cut]:
    """Return parts of a video; an empty list if it is better left whole.

    Frames that are indexed by counting cannot be found again without decoding all before them, and
    a part much shorter than what must be decoded before it gains nothing. Parts begin soon after a
    clean keyframe if there is one nearby.

    Args:
        info: timeline of the whole file.
        offsets: positions among the wanted frames near which parts begin; the first is 0.
        sampling: frames taken of the span.
        start: first second of the row's span.
        end: second before which the span stops.
        max_preroll: most frames that may be decoded in vain before a part, as a multiple of the
            length of the part before it.
    """
    if info.count_reason:
        return []
    wanted = select(info.times, sampling, start=start, end=end)
    if not len(wanted):
        return []
    stop = int(np.searchsorted(info.times, np.inf if end is None else end))
    settled = [
        int(np.searchsorted(info.presented_pts, keyframe.pts)) + SETTLING_FRAMES
        for keyframe in info.keyframes
        if keyframe.packet in info.clean_keyframes
    ]
    firsts = [int(wanted[0])]
    for target in wanted[[offset for offset in offsets if 0 < offset < len(wanted)]].tolist():
        length = target - firsts[-1]
        nearby = [one for one in settled if abs(one - target) <= MAX_SHIFT * length]
        begin = min(nearby, key=lambda one: abs(one - target), default=target)
        position = int(np.searchsorted(wanted, begin))
        if position == len(wanted):
            continue
        first = int(wanted[position])
        _, window_frame = window_around(info, first, stop)
        if firsts[-1] < first and first - window_frame <= max_preroll * (first - firsts[-1]):
            firsts.append(first)
    cuts = [
        _part(info, first, last, int(((wanted >= first) & (wanted < last)).sum()))
        for first, last in zip(firsts, [*firsts[1:], stop], strict=True)
    ]
    return cuts if len(cuts) > 1 else []


def cut_clip(info: Timeline, frames: Sequence[int]) -> list[tuple[Cut | None, list[int]]]:
    """Divide a few frames into pieces that are decoded separately, if the gaps are worth a seek.

    Args:
        info: timeline of the whole file.
        frames: increasing frame indices.

    Returns:
        a cut and frame indices for each piece; no cut if the file is read from its beginning.
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
    """Return the part of the frames [first, stop), of which `num_frames` are wanted."""
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
    """Return the packets needed for the frames [first, stop] and the first frame they present.

    Args:
        info: timeline of the whole file.
        first: index of the first frame.
        stop: index after that of the last frame.
    """
    if not info.keyframes:
        return WHOLE_FILE, 0
    pts, packet_pts = info.presented_pts, info.packet_pts
    keyframe = _keyframe_before(info, first)
    first_packet = 0 if keyframe is None else keyframe.packet
    window_frame = 0 if keyframe is None else int(np.searchsorted(pts, keyframe.pts))
    num_packets = None
    if stop < info.num_presented:
        num_packets = int(np.flatnonzero(packet_pts <= pts[stop])[-1]) + 1 - first_packet
    return Window(keyframe, num_packets), window_frame


def _keyframe_before(info: Timeline, first: int) -> Keyframe | None:
    """Return where decoding must begin for a frame; None for the file's beginning."""
    pts = info.presented_pts

    def last_before(frame: int) -> int:
        return bisect_right(info.keyframes, pts[max(frame, 0)], key=lambda key: key.pts) - 1

    number = last_before(first - 1) - (PREROLL_KEYFRAMES - 1)
    settled = last_before(first - SETTLING_FRAMES)
    if settled >= 0 and info.keyframes[settled].packet in info.clean_keyframes:
        number = max(number, settled)
    return info.keyframes[number] if number >= 0 else None


def window_of(cut: Cut) -> Window:
    """Return the packets of a planned part."""
    keyframe = None if cut.keyframe is None else Keyframe(*cut.keyframe)
    return Window(keyframe, cut.num_packets)
