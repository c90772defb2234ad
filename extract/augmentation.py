"""Training augmentation: a random scale, a random crop and mirroring per clip."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

SHORT_SIDES = (256, 320)  # the paper's, for crops of 224
CROP_SIZE = 224


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Augmentation of a training clip, the same for all its frames (arXiv 2102.00719, section 4).

    Attributes:
        size: height and width of the crop; pixels.
        short_sides: smallest and largest short side of a frame before the crop; pixels.
        flip: mirror half of the clips.
        interpolation: of the resize, antialiased: `bilinear`, `bicubic`, ...
    """

    size: tuple[int, int]
    short_sides: tuple[int, int]
    flip: bool
    interpolation: str

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """Augment the frames of one clip.

        Args:
            images: [N, H, W, 3] uint8.
            seed: determines scale, crop and mirroring.

        Returns:
            [N, 3, h, w] uint8.
        """
        generator = np.random.default_rng(seed)
        least, most = self.short_sides
        short_side = int(generator.integers(least, most + 1))
        at_top, at_left, mirrored = generator.random(3)
        H, W = images.shape[1:3]
        resized = [max(short_side, round(side * short_side / min(H, W))) for side in (H, W)]
        images = resize(
            images.permute(0, 3, 1, 2),  # channels last in memory: torchvision's fast path
            resized,
            InterpolationMode(self.interpolation),
            antialias=True,
        )
        height, width = self.size
        top = int(at_top * (resized[0] - height + 1))
        left = int(at_left * (resized[1] - width + 1))
        crop = images[..., top : top + height, left : left + width]
        if self.flip and mirrored < 0.5:
            crop = crop.flip(-1)
        return crop.contiguous(memory_format=torch.contiguous_format)


def default_short_sides(size: tuple[int, int]) -> tuple[int, int]:
    """Return the paper's short sides, in proportion to the crop.

    >>> default_short_sides((224, 224)), default_short_sides((384, 384))
    ((256, 320), (439, 549))
    """
    least, most = (round(side * max(size) / CROP_SIZE) for side in SHORT_SIDES)
    return least, most
