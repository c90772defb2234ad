"""Formats of frames in memory: RGB, or the planes that a codec decodes to; and how they are turned.

Planes are half the bytes of RGB, and a GPU turns them into RGB after the resize, see
`extract/planes.py`: then no core converts a frame, and frames that a GPU decodes stay there.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .container import DISPLAY_MATRIX

Matrix = Literal["bt601", "bt709", "bt2020"]
# FFmpeg's color spaces (ITU-T H.273, table 4). One that is not declared is taken for BT.601, as
# FFmpeg's scaler does.
MATRICES: dict[int, Matrix] = {
    1: "bt709",
    2: "bt601",
    5: "bt601",
    6: "bt601",
    9: "bt2020",
    10: "bt2020",
}
FULL_RANGE = 2  # FFmpeg's color range of JPEG
# Bits per value of FFmpeg's formats with chroma of half the width and height. Those of yuvj420p
# always use the full range.
PLANAR_FORMATS = {"yuv420p": 8, "yuvj420p": 8, "yuv420p10le": 10}


class Orientation(NamedTuple):
    """Steps that turn a coded frame upright: transpose first, then flip."""

    transpose: bool
    flip_horizontal: bool
    flip_vertical: bool

    @property
    def is_mirrored(self) -> bool:
        """Whether it is no pure rotation (a transposition is itself a mirroring)."""
        return sum(self) % 2 == 1

    def __str__(self) -> str:
        if self.is_mirrored:
            return "mirrored"
        if self.transpose:
            return "turned by 90°" if self.flip_vertical else "turned by 270°"
        return "turned by 180°" if self.flip_vertical else "upright"

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turn an image [H, W, 3]; a view, [W, H, 3] if it is transposed."""
        if self.transpose:
            image = image.transpose(1, 0, 2)
        return image[:: -1 if self.flip_vertical else 1, :: -1 if self.flip_horizontal else 1]


UPRIGHT = Orientation(False, False, False)
# By the angle of a display matrix, counterclockwise in steps of 90°.
_TURNED = (
    UPRIGHT,
    Orientation(True, False, True),
    Orientation(False, True, True),
    Orientation(True, True, False),
)


def orientation_of(frame: Any) -> Orientation:
    """Return the orientation in the display matrix of a PyAV frame; upright if it has none.

    The matrix (a, b, u, c, d, v, x, y, w) maps (column p, row q) to (a p + c q, b p + d q), see
    FFmpeg's libavutil/display.h. Angles are rounded to multiples of 90°.
    """
    try:
        data = frame.side_data.get(DISPLAY_MATRIX)
    except ValueError:  # the frame has side data that this version of PyAV does not know
        return _TURNED[round(frame.rotation / 90) % 4]
    if data is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(data, dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


class FrameFormat(NamedTuple):
    """Format of a frame, and what turns its values into upright RGB.

    RGB is upright: [H, W, 3] uint8. Planes are as coded: luma [H, W], and two of chroma, Cb and Cr
    [ceil(H / 2), ceil(W / 2)], uint8 or, of 10 bits, uint16.

    Attributes:
        height: H.
        width: W.
        num_bits: bits per value of planes; 0 for RGB.
        matrix: color matrix of planes.
        is_full_range: whether values of planes use the full range, in place of 16 to 235 (luma) and
            240 (chroma), of 8 bits.
        orientation: how to turn planes upright.
    """

    height: int
    width: int
    num_bits: int = 0
    matrix: Matrix = "bt601"
    is_full_range: bool = False
    orientation: Orientation = UPRIGHT

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "FrameFormat":
        """Create a format from JSON values, in which tuples are lists."""
        height, width, num_bits, matrix, is_full_range, orientation = values
        return cls(height, width, num_bits, matrix, is_full_range, Orientation(*orientation))

    @property
    def is_rgb(self) -> bool:
        """Whether frames are RGB."""
        return self.num_bits == 0

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width of the upright frame."""
        size = (self.height, self.width)
        return size[::-1] if self.orientation.transpose else size

    @property
    def chroma_size(self) -> tuple[int, int]:
        """Height and width of a plane of chroma."""
        return -(-self.height // 2), -(-self.width // 2)

    @property
    def bytes_per_value(self) -> int:
        """Bytes of a value."""
        return 1 if self.num_bits <= 8 else 2

    @property
    def num_bytes(self) -> int:
        """Bytes of a frame."""
        if self.is_rgb:
            return 3 * self.height * self.width
        height, width = self.chroma_size
        return self.bytes_per_value * (self.height * self.width + 2 * height * width)


Plane = npt.NDArray[Any]


def write_planes(planes: Sequence[Plane], memory: npt.NDArray[np.uint8]) -> None:
    """Copy the planes of a frame, or its RGB image, one after the other.

    Args:
        planes: arrays of the shapes that the frame's format tells.
        memory: [num_bytes] uint8.
    """
    offset = 0
    for plane in planes:
        part = memory[offset : offset + plane.nbytes]
        part.view(plane.dtype).reshape(plane.shape)[:] = plane
        offset += plane.nbytes


class PlaneReader:
    """Views of the planes of a file's decoded frames, in software.

    Args:
        orientation: how the file's frames are turned upright.
    """

    def __init__(self, orientation: Orientation) -> None:
        self._orientation = orientation

    def __call__(self, frame: Any) -> tuple[FrameFormat, list[Plane]] | None:
        """Return format and planes of a PyAV frame; None if its planes are others than 4:2:0.

        The planes are valid as long as the frame is.
        """
        found = planar_format(frame, frame.format.name, self._orientation)
        if found is None or any(plane.line_size < 0 for plane in frame.planes):
            return None
        dtype = np.dtype(np.uint8 if found.bytes_per_value == 1 else "<u2")
        planes = []
        for plane, (height, width) in zip(
            frame.planes,
            [(found.height, found.width), found.chroma_size, found.chroma_size],
            strict=True,
        ):
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height]
            planes.append(rows[:, : width * dtype.itemsize].view(dtype))
        return found, planes


def planar_format(frame: Any, name: str, orientation: Orientation) -> FrameFormat | None:
    """Return the format of a PyAV frame's planes; None if they can only be converted as RGB.

    Args:
        frame: the frame.
        name: name of its pixel format in memory of the CPU.
        orientation: how it is turned upright.
    """
    num_bits, matrix = PLANAR_FORMATS.get(name), MATRICES.get(int(frame.colorspace))
    if num_bits is None or matrix is None:
        return None
    return FrameFormat(
        height=frame.height,
        width=frame.width,
        num_bits=num_bits,
        matrix=matrix,
        is_full_range=name == "yuvj420p" or int(frame.color_range) == FULL_RANGE,
        orientation=orientation,
    )
