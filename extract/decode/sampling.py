"""Which of a video's frames are wanted: those of a span, all of them or some."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from ...manifests.errors import SettingsError
from ...manifests.times import nearest

ROUNDING_FRAMES = 1e-6  # 2 s x 5 frames/s is 10, whatever floating point says


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Every frame, unless one of the two is given.

    Attributes:
        fps: frames a second: those nearest to times that far apart, each once.
        every: the first frame, and each so many after it.
    """

    fps: float | None = None
    every: int = 1

    def __post_init__(self) -> None:
        if self.fps is not None and self.every != 1:
            raise SettingsError(
                f"--fps {self.fps:g} with --every {self.every}: frames are chosen by time or by "
                "count; leave out one of the two"
            )

    @classmethod
    def from_identity(cls, identity: Mapping[str, Any]) -> "Sampling":
        """That of a feature folder or a model."""
        return cls(fps=identity["fps"], every=identity["every"])


EVERY_FRAME = Sampling()


def select(
    times: npt.NDArray[np.float64],
    sampling: Sampling,
    *,
    start: float | None = None,
    end: float | None = None,
    part: range | None = None,
) -> npt.NDArray[np.int64]:
    """The wanted frames [S], increasing; at least one where the span has any.

    >>> quarters = np.arange(9) / 4
    >>> select(quarters, Sampling(), start=0.5, end=1.25).tolist()
    [2, 3, 4]
    >>> select(quarters, Sampling(fps=1)).tolist()
    [0, 4, 8]
    >>> select(quarters, Sampling(every=3), start=0.25).tolist()
    [1, 4, 7]

    Args:
        times: [P] seconds of the presented frames, increasing; for a part, of the one before it
            and of the one after it, too, where there are such.
        sampling: which of the span's frames: by time or by count from the span's beginning.
        start: first second of the span.
        end: the second before which it stops.
        part: only these frames of the span, the first of which is wanted.
    """
    begin = start or 0.0
    first, stop = np.searchsorted(times, [begin, np.inf if end is None else end])
    if sampling.fps is None:
        first, stop = (part.start, part.stop) if part is not None else (first, stop)
        return np.arange(first, stop, sampling.every)
    if first == stop:
        return np.arange(0)
    span = times[first:stop]
    # The last frame is shown as long as the one before it: until then there are targets.
    shown = span[-1] + (span[-1] - span[-2] if len(span) > 1 else 0.0) - begin
    num_targets = max(1, ceil(shown * sampling.fps - ROUNDING_FRAMES))
    frames = nearest(span, begin + np.arange(num_targets) / sampling.fps) + int(first)
    return frames if part is None else frames[(frames >= part.start) & (frames < part.stop)]
