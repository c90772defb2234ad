"""Frame sampling: which frames of a span are taken."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from ...manifests.errors import SettingsError
from ...manifests.feature_folder import FeatureSpec
from ...manifests.times import nearest

ROUNDING_FRAMES = 1e-6  # so that 2 s x 5 frames/s is 10 in floating point, too


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Every frame, unless one of the two is given.

    Attributes:
        fps: frames per second; those nearest to a steady rate, each once.
        frame_stride: distance between the frames taken, in frames.
    """

    fps: float | None = None
    frame_stride: int = 1

    def __post_init__(self) -> None:
        if self.fps is not None and self.frame_stride != 1:
            raise SettingsError(
                f"--fps {self.fps:g} with --frame-stride {self.frame_stride}: frames are taken by "
                "time or by count; leave out one of the two"
            )

    @classmethod
    def from_spec(cls, spec: FeatureSpec) -> "Sampling":
        """Return the sampling of a feature specification."""
        return cls(fps=spec.fps, frame_stride=spec.frame_stride)


EVERY_FRAME = Sampling()


def select(
    times: npt.NDArray[np.float64],
    sampling: Sampling,
    *,
    start: float | None = None,
    end: float | None = None,
    part: range | None = None,
) -> npt.NDArray[np.int64]:
    """Return the positions of the frames taken [S], increasing; at least one if the span has any.

    >>> quarters = np.arange(9) / 4
    >>> select(quarters, Sampling(), start=0.5, end=1.25).tolist()
    [2, 3, 4]
    >>> select(quarters, Sampling(fps=1)).tolist()
    [0, 4, 8]
    >>> select(quarters, Sampling(frame_stride=3), start=0.25).tolist()
    [1, 4, 7]

    Args:
        times: [P] seconds of the presented frames, increasing; for a part, also of the frame before
            and of the frame after it, if there are such.
        sampling: by time or by count, from the span's beginning.
        start: first second of the span.
        end: second before which the span stops.
        part: positions to restrict the result to; the first is taken.
    """
    begin = start or 0.0
    first, stop = np.searchsorted(times, [begin, np.inf if end is None else end])
    if sampling.fps is None:
        first, stop = (part.start, part.stop) if part is not None else (first, stop)
        return np.arange(first, stop, sampling.frame_stride)
    if first == stop:
        return np.arange(0)
    span = times[first:stop]
    # The last frame lasts as long as the one before it.
    shown = span[-1] + (span[-1] - span[-2] if len(span) > 1 else 0.0) - begin
    num_targets = max(1, ceil(shown * sampling.fps - ROUNDING_FRAMES))
    frames = nearest(span, begin + np.arange(num_targets) / sampling.fps) + int(first)
    return frames if part is None else frames[(frames >= part.start) & (frames < part.stop)]
