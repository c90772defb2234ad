"""Frames as a backbone takes them: resized and cropped as timm's evaluation transform does, in
batches of uint8 on the device that computes; then normalised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .preprocessing import Preprocessing


@dataclass(frozen=True, kw_only=True, eq=False)
class Transform:
    """From upright frames to a backbone's input.

    Attributes:
        preprocessing: in words.
        resize_steps: what comes before the crop: [N, 3, H, W] uint8 → the same of another size.
        crop: the crop at the centre.
        views: those that are made of each frame, see `VIEW_NAMES`.
        device: where it is done.
    """

    preprocessing: Preprocessing
    resize_steps: Sequence[Callable[[Tensor], Tensor]]
    crop: Callable[[Tensor], Tensor]
    views: tuple[str, ...]
    device: torch.device

    def upload(self, images: npt.NDArray[np.uint8]) -> Tensor:
        """Frames on the device; a copy where that is a GPU, which may still be under way.

        Args:
            images: [N, H, W, 3] uint8; a GPU's may be overwritten once this returns.
        """
        tensor = torch.from_numpy(images)
        if self._side_stream is None:
            return tensor
        with torch.cuda.stream(self._side_stream):
            return tensor.pin_memory().to(self.device, non_blocking=True)

    def resize(self, images: Tensor) -> Tensor:
        """Resizes frames, antialiased, and crops their views.

        Args:
            images: [N, H, W, 3] uint8, from `upload`.

        Returns:
            [N, V, 3, h, w] uint8 on the device, where h and w are the backbone's input size.
        """
        if self._side_stream is None:
            return self._views(images)
        # On a stream of its own: the backbone meanwhile runs over what came before.
        with torch.cuda.stream(self._side_stream):
            views = self._views(images)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._side_stream)
        views.record_stream(computing)
        return views

    def normalise(self, images: Tensor) -> Tensor:
        """Scales frames that `resize` made.

        Args:
            images: [..., 3, h, w] uint8.

        Returns:
            the same shape, float32 on the device.
        """
        scale, bias = self._scale_and_bias
        return images.to(self.device).to(torch.float32).mul_(scale).add_(bias)

    def _views(self, images: Tensor) -> Tensor:
        images = images.permute(0, 3, 1, 2)  # channels last in memory: torchvision's fast path
        for step in self.resize_steps:
            images = step(images)
        # A copy, always: where nothing is to be resized, steps return views of the frames given.
        return torch.stack([self._view(images, name) for name in self.views], dim=1)

    def _view(self, images: Tensor, name: str) -> Tensor:
        if name == "centre":
            return self.crop(images)
        if name == "flip":
            return self.crop(images).flip(-1)
        _, height, width = self.preprocessing.input_size
        top, left = crop_offset(name, (images.shape[-2], images.shape[-1]), (height, width))
        return images[..., top : top + height, left : left + width]

    @cached_property
    def _scale_and_bias(self) -> tuple[Tensor, Tensor]:
        """(x / 255 - mean) / std as x * scale + bias, [3, 1, 1] each."""
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            for values in (self.preprocessing.mean, self.preprocessing.std)
        )
        scale, bias = 1 / (255 * std), -mean / std
        return scale.to(self.device, torch.float32), bias.to(self.device, torch.float32)

    @cached_property
    def _side_stream(self) -> "torch.cuda.Stream | None":
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None


def crop_offset(view: str, have: tuple[int, int], want: tuple[int, int]) -> tuple[int, int]:
    """Where a crop at one end of an image's longer side begins: (top, left).

    >>> crop_offset("right", (224, 300), (224, 224)), crop_offset("left", (300, 250), (224, 224))
    ((0, 76), (0, 13))

    Args:
        view: `left` or `right`; of a tall image, its upper or lower end.
        have: height and width of the image.
        want: height and width of the crop.
    """
    room = [have[0] - want[0], have[1] - want[1]]
    longer = 1 if have[1] >= have[0] else 0
    offset = [round(room[0] / 2), round(room[1] / 2)]
    offset[longer] = 0 if view == "left" else room[longer]
    return offset[0], offset[1]
