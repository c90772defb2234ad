"""Resize of planes (luma and chroma), and their conversion to RGB at the small size, on any device.

A codec's frames are luma [H, W] and two planes of chroma of half the height and width. They are
resized first: a resize and a color matrix are both linear, so that their order changes rounding
only, and 224 x 224 pixels are converted in place of 1920 x 1080. A resize is one matrix product for
rows and one for columns. The same arithmetic serves frames that the CPU decoded and those of a
GPU's engines.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .decode.frame_format import FrameFormat, Matrix

# Shares of red and blue in luma: ITU-R BT.601-7, BT.709-6 and BT.2020-2 (non-constant luminance).
LUMA_SHARES: dict[Matrix, tuple[float, float]] = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
}
# FFmpeg's scaler truncates values, those of 8 bits after each of its tables: its RGB, to which
# models are used, is darker than the recommendations say by these means of red, green and blue. By
# bits and full range; measured on smooth frames, see tests/extract/test_planes.py.
SCALER_ERRORS: dict[tuple[int, bool], tuple[float, float, float]] = {
    (8, False): (0.97, 1.46, 0.97),
    (8, True): (0.49, 0.97, 0.49),
    (10, False): (1.80, 1.50, 1.65),
    (10, True): (-0.60, -0.67, -0.70),
}


def rgb_matrix(layout: FrameFormat) -> tuple[Tensor, Tensor]:
    """Return weights [3, 3] and bias [3] of (Y, Cb, Cr) → (R, G, B) in 0 to 255, float32.

    The inverse of the definition of Y, Cb and Cr in the recommendations above.

    >>> weights, bias = rgb_matrix(FrameFormat(2, 2, num_bits=8, is_full_range=True))
    >>> [round(float(one), 3) for one in weights @ torch.tensor([100.0, 128.0, 228.0]) + bias]
    [240.2, 28.586, 100.0]
    """
    red, blue = LUMA_SHARES[layout.matrix]
    green = 1 - red - blue
    scale = 2.0 ** (layout.num_bits - 8)
    if layout.is_full_range:
        black, luma_range = 0.0, 2.0**layout.num_bits - 1
        chroma_range = luma_range
    else:
        black, luma_range, chroma_range = 16 * scale, 219 * scale, 224 * scale
    y, c = 255 / luma_range, 2 * 255 / chroma_range
    weights = torch.tensor(
        [
            [y, 0.0, (1 - red) * c],
            [y, -(1 - blue) * blue / green * c, -(1 - red) * red / green * c],
            [y, (1 - blue) * c, 0.0],
        ],
        dtype=torch.float64,
    )
    zero = torch.tensor([black, 128 * scale, 128 * scale], dtype=torch.float64)
    return weights.float(), (-weights @ zero).float()


class PlaneResize:
    """Resizes planes and converts them to upright RGB.

    Values are rounded once, at the end. Chroma counts for the four values of luma that it belongs
    to, and colors are as dark as in FFmpeg's own conversion.

    Args:
        new_size: height and width of an upright frame → those of the resized one.
        mode: `bilinear` or `bicubic`.
        dtype: dtype of the matrix products.
        is_antialiased: whether the resize is antialiased.
    """

    def __init__(
        self,
        new_size: Callable[[int, int], tuple[int, int]],
        mode: str,
        dtype: torch.dtype,
        *,
        is_antialiased: bool = True,
    ) -> None:
        self._new_size = new_size
        self._mode = mode
        self._dtype = dtype
        self._is_antialiased = is_antialiased
        self._weights: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}
        self._colors: dict[tuple[FrameFormat, torch.device], tuple[Tensor, Tensor]] = {}

    def __call__(self, data: Tensor, layout: FrameFormat) -> Tensor:
        """Return frames [N, 3, h, w] uint8, upright.

        Args:
            data: [N, num_bytes] uint8.
            layout: format of each frame.
        """
        size = self._new_size(*layout.upright_size)
        if layout.orientation.transpose:
            size = size[::-1]
        rows = self._weights_of(layout.height, size[0], data.device)
        columns = self._weights_of(layout.width, size[1], data.device)
        planes = [
            row @ (plane.to(self._dtype) @ column.T)
            for plane, row, column in zip(split(data, layout), rows, columns, strict=True)
        ]
        return self._upright(self._rgb(torch.cat(planes, dim=1).float(), layout), layout)

    def _rgb(self, planes: Tensor, layout: FrameFormat) -> Tensor:
        """Convert planes [N, 3, h, w] to RGB, uint8."""
        key = (layout, planes.device)
        if key not in self._colors:
            weights, bias = rgb_matrix(layout)
            bias -= torch.tensor(SCALER_ERRORS[layout.num_bits, layout.is_full_range])
            self._colors[key] = (weights.to(planes.device), bias.to(planes.device).view(3, 1, 1))
        weights, bias = self._colors[key]
        rgb = torch.einsum("kc,nchw->nkhw", weights, planes) + bias
        return rgb.round_().clamp_(0, 255).to(torch.uint8)

    def _upright(self, images: Tensor, layout: FrameFormat) -> Tensor:
        """Turn images [N, 3, h, w] as their orientation says."""
        transpose, flip_horizontal, flip_vertical = layout.orientation
        if transpose:
            images = images.transpose(-1, -2)
        return images.flip([-1] * flip_horizontal + [-2] * flip_vertical)

    def _weights_of(
        self, length: int, new_length: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Return the weights for luma [new_length, length], and for chroma of half the length."""
        key = (length, new_length, device)
        if key not in self._weights:
            luma = resize_weights(
                length, new_length, self._mode, is_antialiased=self._is_antialiased
            )
            pairs = nn.functional.pad(luma, (0, length % 2)).unflatten(1, (-1, 2))
            self._weights[key] = (
                luma.to(device, self._dtype),
                pairs.sum(-1).to(device, self._dtype),
            )
        return self._weights[key]


def split(data: Tensor, layout: FrameFormat) -> tuple[Tensor, Tensor]:
    """Return views of luma [N, 1, H, W] and chroma [N, 2, ceil(H / 2), ceil(W / 2)] of frames.

    Args:
        data: [N, num_bytes] uint8, contiguous.
        layout: format of each frame.
    """
    if layout.bytes_per_value == 2:
        data = data.view(torch.int16)  # of 10 bits, so that the sign does not matter
    num_luma = layout.height * layout.width
    luma = data[:, :num_luma].unflatten(1, (1, layout.height, layout.width))
    return luma, data[:, num_luma:].unflatten(1, (2, *layout.chroma_size))


def output_size(size: int | Sequence[int], height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of a resized image, as torchvision computes it.

    Args:
        size: (height, width), or the length of the shorter side.
        height: height of the image.
        width: width of the image.
    """
    if not isinstance(size, int):
        new_height, new_width = size
        return new_height, new_width
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def resize_weights(
    length: int, new_length: int, mode: str, *, is_antialiased: bool = True
) -> Tensor:
    """Return the weights [new_length, length] float32 of a resize along one dimension."""
    weights = nn.functional.interpolate(
        torch.eye(length)[None, None],
        size=(new_length, length),
        mode=mode,
        antialias=is_antialiased,
        align_corners=False,
    )
    return weights[0, 0]
