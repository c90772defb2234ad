"""Preprocessing: upright frames → backbone input, as timm's evaluation transform does it.

Frames are resized and cropped in batches of uint8 on the device that computes, then normalized.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .views import crop_view


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Steps from an upright RGB frame to the backbone's input, in timm's terms."""

    input_size: tuple[int, int, int]  # (3, H, W)
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, ...]  # of RGB in [0, 1]
    std: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the values with tuples as lists."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

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

    def upload(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Return frames on the device; on a GPU the copy may still be in progress.

        Args:
            images: [N, H, W, 3] uint8; may be overwritten afterwards if the device is a GPU.
        """
        tensor = torch.from_numpy(images)
        if self._side_stream is None:
            return tensor
        with torch.cuda.stream(self._side_stream):
            return tensor.pin_memory().to(self.device, non_blocking=True)

    def resize(self, images: Tensor) -> Tensor:
        """Resize frames, antialiased, and crop their views.

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
