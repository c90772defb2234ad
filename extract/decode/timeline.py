"""When a file's frames are shown, and where its decoding may begin: all that is needed to find a
frame again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .container import Keyframe


@dataclass(frozen=True, kw_only=True, eq=False)
class Timeline:
    """What the timestamps of a file's packets, or of a window of them, tell.

    Attributes:
        container: FFmpeg's name of it.
        presented_pts: [P] int64, sorted: the timestamps of the best stream's packets that are not
            discarded, in `time_base` units; of a window, those from its keyframe's on. Empty where
            timestamps are missing.
        num_presented: how many packets are presented.
        origin_pts: timestamp of the file's first presented frame.
        packet_pts: [M] int64: of all packets in the file's order; empty as above.
        keyframes: where decoding may begin, in order; none where frames are counted, or of a
            window.
        fresh_keyframes: numbers of the packets of those that need nothing from before them.
        num_beyond_end: frames that the file should hold beyond its end.
        time_base: seconds per unit.
        rate: frames per second as FFmpeg guesses it, for files without timestamps.
        count_reason: why frames are indexed by counting them; empty where they are ranked by
            timestamp.
    """

    container: str
    presented_pts: npt.NDArray[np.int64]
    num_presented: int
    origin_pts: int
    packet_pts: npt.NDArray[np.int64]
    keyframes: tuple[Keyframe, ...]
    fresh_keyframes: frozenset[int]
    num_beyond_end: int
    time_base: Fraction
    rate: float
    count_reason: str

    @cached_property
    def times(self) -> npt.NDArray[np.float64]:
        """[P] seconds of the presented frames, in order; made up from `rate` without timestamps."""
        if not len(self.presented_pts):
            return np.arange(self.num_presented) / self.rate
        return self.seconds(self.presented_pts)

    def seconds(self, pts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Timestamps [P] in seconds since the first presented frame."""
        since_first = pts - self.origin_pts
        units = since_first * self.time_base.numerator
        return np.asarray(units / self.time_base.denominator, dtype=np.float64)

    def to_json(self) -> dict[str, Any]:
        """Of this class's attributes alone."""
        values = {field.name: getattr(self, field.name) for field in fields(Timeline)}
        for name in ("presented_pts", "packet_pts"):
            values[name] = values[name].tolist()
        return values | {
            "fresh_keyframes": sorted(self.fresh_keyframes),
            "time_base": [self.time_base.numerator, self.time_base.denominator],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Timeline":
        """From what `to_json` made, arrays as lists or as they are."""
        return Timeline(
            **{
                **values,
                "presented_pts": np.asarray(values["presented_pts"], dtype=np.int64),
                "packet_pts": np.asarray(values["packet_pts"], dtype=np.int64),
                "keyframes": tuple(Keyframe(*one) for one in values["keyframes"]),
                "fresh_keyframes": frozenset(values["fresh_keyframes"]),
                "time_base": Fraction(*values["time_base"]),
            }
        )
