"""Turning a coded frame upright, as its display matrix says: one of the eight rotations and
mirrorings.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .container import DISPLAY_MATRIX


class Orientation(NamedTuple):
    """Transpose first, then flip; all False leaves the frame as it is coded."""

    transpose: bool
    flip_horizontal: bool
    flip_vertical: bool

    @property
    def is_mirrored(self) -> bool:
        """Whether no rotation alone gives it (a transposition is itself a mirroring)."""
        return sum(self) % 2 == 1

    @property
    def words(self) -> str:
        """For people: `upright`, by how much a frame is turned to the left, or `mirrored`."""
        if self.is_mirrored:
            return "mirrored"
        if self.transpose:
            return "turned by 90°" if self.flip_vertical else "turned by 270°"
        return "turned by 180°" if self.flip_vertical else "upright"

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turns an image [H, W, 3]; a view, [W, H, 3] where it is transposed."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


UPRIGHT = Orientation(False, False, False)


def orientation_of(frame: Any) -> Orientation:
    """The orientation in a PyAV frame's display matrix; upright where it has none.

    The matrix (a, b, u, c, d, v, x, y, w) maps (column p, row q) to (a p + c q, b p + d q), see
    FFmpeg's libavutil/display.h. An angle that is no multiple of 90° is taken as the nearest one.

    Args:
        frame: a decoded `av.VideoFrame`.
    """
    data = frame.side_data.get(DISPLAY_MATRIX)
    if data is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(data, dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
