"""Preprocessing: frames → backbone input, as timm's evaluation transform does it.

Frames are resized and cropped in batches of uint8 on the device that computes, then normalized.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .decode.frame_format import FrameFormat
from .planes import PlaneResize, output_size, resize_weights
from .views import crop_view


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Steps from an upright RGB frame to the backbone's input, in timm's terms.

    `style` says who resizes and crops: timm, antialiased; or `pyslowfast`, as the VTN authors' code
    does it, without antialiasing, and with crop offsets rounded up.
    """

    input_size: tuple[int, int, int]  # (3, H, W)
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]
    style: Literal["timm", "pyslowfast"] = "timm"

    def to_json(self) -> dict[str, Any]:
        """Return the values with tuples as lists; `style` is omitted if it is timm."""
        values = asdict(self)
        if self.style == "timm":
            del values["style"]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}

    @classmethod
    def from_json(cls, values: Any) -> "Preprocessing":
        """Create it from JSON values, in which tuples are lists."""
        tuples: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**tuples)

    def scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """Return (x / 255 - mean) / std as x * scale + bias, float32 [3, 1, 1] each."""
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        return (1 / (255 * std)).float(), (-mean / std).float()


class PySlowFastResize:
    """Resize of the short side as in PySlowFast: bilinear, without antialiasing.

    PySlowFast (slowfast/datasets/transform.py) keeps fractions; here values are rounded.

    Args:
        size: length of the short side.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __call__(self, images: Tensor) -> Tensor:
        """Resize images [N, 3, H, W] uint8."""
        height, width = images.shape[-2:]
        if min(height, width) == self._size:
            return images
        resized = nn.functional.interpolate(
            images.float(),
            size=self.output_size(height, width),
            mode="bilinear",
            align_corners=False,
        )
        return resized.round_().to(torch.uint8)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of a resized image."""
        short = min(height, width)
        if short == self._size:
            return height, width
        shape = [math.floor(side / short * self._size) for side in (height, width)]
        shape[0 if height <= width else 1] = self._size
        return shape[0], shape[1]


def pyslowfast_crop(size: tuple[int, int]) -> Callable[[Tensor], Tensor]:
    """Return PySlowFast's center crop, whose offsets are rounded up.

    >>> pyslowfast_crop((2, 2))(torch.arange(25).view(1, 1, 5, 5)).tolist()
    [[[[12, 13], [17, 18]]]]
    """
    height, width = size

    def crop(images: Tensor) -> Tensor:
        top = math.ceil((images.shape[-2] - height) / 2)
        left = math.ceil((images.shape[-1] - width) / 2)
        return images[..., top : top + height, left : left + width]

    return crop


class CropOrPad:
    """Center crop of crop mode `border`: what an image lacks is filled with one color.

    As timm's, which does not take a color for tensors.

    Args:
        size: (height, width) of the crop.
        fill: the color, three values of 0 to 255.
    """

    def __init__(self, size: Sequence[int], fill: Sequence[int]) -> None:
        self._size = size
        self._fill = fill

    def __call__(self, images: Tensor) -> Tensor:
        """Crop images [N, 3, H, W] uint8."""
        height, width = images.shape[-2:]
        missing = [max(0, self._size[0] - height), max(0, self._size[1] - width)]
        size = (len(images), 3, height + missing[0], width + missing[1])
        padded = images.new_tensor(self._fill).view(1, 3, 1, 1).expand(size).clone()
        top, left = missing[0] // 2, missing[1] // 2
        padded[..., top : top + height, left : left + width] = images
        top = round((padded.shape[-2] - self._size[0]) / 2)
        left = round((padded.shape[-1] - self._size[1]) / 2)
        return padded[..., top : top + self._size[0], left : left + self._size[1]]


class MatrixResize:
    """Antialiased resize as two matrix products, one for rows and one for columns.

    An antialiased resize is linear in each dimension; the weights are those of torch's
    interpolation of an identity matrix. As in PIL, columns come first, and values are rounded to
    whole ones in between. On a GPU, in half precision, it takes a fraction of the time of
    torchvision's resize; its result differs by at most 2 of 255.

    Args:
        size: (height, width), or the length of the shorter side.
        mode: `bilinear` or `bicubic`.
        dtype: dtype of the products.
    """

    def __init__(
        self, size: int | Sequence[int], mode: str, dtype: torch.dtype = torch.float16
    ) -> None:
        self._size = size
        self._mode = mode
        self._dtype = dtype
        self._weights: dict[tuple[int, int, torch.device], Tensor] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Resize images [N, 3, H, W] uint8."""
        height, width = images.shape[-2:]
        new_height, new_width = output_size(self._size, height, width)
        rows = self._weights_of(height, new_height, images.device)
        columns = self._weights_of(width, new_width, images.device)
        planes = images.to(self._dtype, memory_format=torch.contiguous_format)
        narrow = (planes @ columns.T).round_().clamp_(0, 255)
        return (rows @ narrow).round_().clamp_(0, 255).to(torch.uint8)

    def _weights_of(self, length: int, new_length: int, device: torch.device) -> Tensor:
        key = (length, new_length, device)
        if key not in self._weights:
            weights = resize_weights(length, new_length, self._mode)
            self._weights[key] = weights.to(device, self._dtype)
        return self._weights[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """Converts frames to a backbone's input.

    Attributes:
        preprocessing: the preprocessing it implements.
        resize_steps: steps before the crop, [N, 3, H, W] uint8 → the same of another size.
        crop: center crop.
        views: names of each frame's views, see `extract/views.py`.
        device: device of the computation.
        planes: resizes planes, and converts them to RGB.
    """

    preprocessing: Preprocessing
    resize_steps: Sequence[Callable[[Tensor], Tensor]]
    crop: Callable[[Tensor], Tensor]
    views: tuple[str, ...]
    device: torch.device
    planes: PlaneResize | None = None

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return the views [N, V, 3, h, w] uint8 of RGB frames [N, H, W, 3], on the device."""
        data = images.reshape(len(images), -1)
        return self.resize(self.upload(data)[0], FrameFormat(*images.shape[1:3]))

    def upload(
        self, data: npt.NDArray[np.uint8] | Tensor, *, is_pinned: bool = False
    ) -> tuple[Tensor, torch.cuda.Event | None]:
        """Return frames on the device, and an event that completes when they have been copied.

        On a CPU they share the memory of `data`, as do those that are on the device already, and
        there is no event.

        Args:
            data: [N, num_bytes] uint8; may be overwritten once they have been copied.
            is_pinned: whether their memory is registered with the GPU; without, the copy has
                happened when this returns, and there is no event.
        """
        if isinstance(data, Tensor):
            return data, None
        tensor = torch.from_numpy(data)
        if self._side_stream is None:
            return tensor, None
        with torch.cuda.stream(self._side_stream):
            uploaded = tensor.to(self.device, non_blocking=is_pinned)
            if not is_pinned:
                return uploaded, None
        return uploaded, self.reached()

    def reached(self) -> torch.cuda.Event | None:
        """Return an event that completes when frames are copied and resized; None on a CPU."""
        if self._side_stream is None:
            return None
        event = torch.cuda.Event(blocking=True)
        event.record(self._side_stream)
        return event

    def resize(self, data: Tensor, layout: FrameFormat) -> Tensor:
        """Resize frames, convert them to upright RGB and crop their views.

        Args:
            data: [N, num_bytes] uint8, from `upload`.
            layout: format of each frame.

        Returns:
            [N, V, 3, h, w] uint8 on the device, where (h, w) is the backbone's input size.
        """
        if self._side_stream is None:
            return self._views(data, layout)
        # On a stream of its own, while the backbone computes the frames before.
        with torch.cuda.stream(self._side_stream):
            views = self._views(data, layout)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._side_stream)
        views.record_stream(computing)
        return views

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize frames [..., 3, h, w] uint8 to float32 of the same shape, on the device."""
        scale, bias = self._scale_and_bias
        return images.to(self.device).to(torch.float32).mul_(scale).add_(bias)

    def _views(self, data: Tensor, layout: FrameFormat) -> Tensor:
        if layout.is_rgb:
            images = data.view(len(data), layout.height, layout.width, 3)
            images = images.permute(0, 3, 1, 2)  # channels last in memory: torchvision's fast path
            for step in self.resize_steps:
                images = step(images)
        else:
            assert self.planes is not None, "frames of this backbone are asked for in RGB"
            images = self.planes(data, layout)
        _, height, width = self.preprocessing.input_size
        views = [crop_view(images, name, (height, width), self.crop) for name in self.views]
        return torch.stack(views, dim=1)  # a copy, even if no step has copied the given memory

    @cached_property
    def _scale_and_bias(self) -> tuple[Tensor, Tensor]:
        scale, bias = self.preprocessing.scale_and_bias()
        return scale.to(self.device), bias.to(self.device)

    @cached_property
    def _side_stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
