"""Preprocessing: upright frames → backbone input, as timm's evaluation transform does it.

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
        short = min(height, width)
        if short == self._size:
            return images
        shape = [math.floor(side / short * self._size) for side in (height, width)]
        shape[0 if height <= width else 1] = self._size
        resized = nn.functional.interpolate(
            images.float(), size=shape, mode="bilinear", align_corners=False
        )
        return resized.round_().to(torch.uint8)


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
        new_height, new_width = self.output_size(height, width)
        rows = self._weights_of(height, new_height, images.device)
        columns = self._weights_of(width, new_width, images.device)
        planes = images.to(self._dtype, memory_format=torch.contiguous_format)
        narrow = (planes @ columns.T).round_().clamp_(0, 255)
        return (rows @ narrow).round_().clamp_(0, 255).to(torch.uint8)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) of a resized image, as torchvision computes it."""
        if not isinstance(self._size, int):
            new_height, new_width = self._size
            return new_height, new_width
        if width <= height:
            return int(self._size * height / width), self._size
        return self._size, int(self._size * width / height)

    def _weights_of(self, length: int, new_length: int, device: torch.device) -> Tensor:
        """Return the weights [new_length, length] of a resize along one dimension."""
        key = (length, new_length, device)
        if key not in self._weights:
            weights = nn.functional.interpolate(
                torch.eye(length)[None, None],
                size=(new_length, length),
                mode=self._mode,
                antialias=True,
                align_corners=False,
            )
            self._weights[key] = weights[0, 0].to(device, self._dtype)
        return self._weights[key]


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """Converts upright frames to a backbone's input.

    Attributes:
        preprocessing: the preprocessing it implements.
        resize_steps: steps before the crop, [N, 3, H, W] uint8 → the same of another size.
        crop: center crop.
        views: names of each frame's views, see `extract/views.py`.
        device: device of the computation.
    """

    preprocessing: Preprocessing
    resize_steps: Sequence[Callable[[Tensor], Tensor]]
    crop: Callable[[Tensor], Tensor]
    views: tuple[str, ...]
    device: torch.device

    def __call__(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return the views [N, V, 3, h, w] uint8 of frames [N, H, W, 3], on the device."""
        return self.resize(self.upload(images)[0])

    def upload(
        self, images: npt.NDArray[np.uint8], *, is_pinned: bool = False
    ) -> tuple[Tensor, torch.cuda.Event | None]:
        """Return frames on the device, and an event that completes when they have been copied.

        On a CPU they share the memory of `images`, and there is no event.

        Args:
            images: [N, H, W, 3] uint8; may be overwritten once they have been copied.
            is_pinned: whether their memory is registered with the GPU; without, the copy has
                happened when this returns, and there is no event.
        """
        tensor = torch.from_numpy(images)
        if self._side_stream is None:
            return tensor, None
        with torch.cuda.stream(self._side_stream):
            uploaded = tensor.to(self.device, non_blocking=is_pinned)
            if not is_pinned:
                return uploaded, None
            event = torch.cuda.Event(blocking=True)
            event.record(self._side_stream)
        return uploaded, event

    def resize(self, images: Tensor) -> Tensor:
        """Resize frames and crop their views.

        Args:
            images: [N, H, W, 3] uint8, from `upload`.

        Returns:
            [N, V, 3, h, w] uint8 on the device, where (h, w) is the backbone's input size.
        """
        if self._side_stream is None:
            return self._views(images)
        # On a stream of its own, while the backbone computes the frames before.
        with torch.cuda.stream(self._side_stream):
            views = self._views(images)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._side_stream)
        views.record_stream(computing)
        return views

    def normalize(self, images: Tensor) -> Tensor:
        """Normalize frames [..., 3, h, w] uint8 to float32 of the same shape, on the device."""
        scale, bias = self._scale_and_bias
        return images.to(self.device).to(torch.float32).mul_(scale).add_(bias)

    def _views(self, images: Tensor) -> Tensor:
        images = images.permute(0, 3, 1, 2)  # channels last in memory: torchvision's fast path
        for step in self.resize_steps:
            images = step(images)
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
