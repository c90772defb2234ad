"""Views of a frame: the center, its mirror image, and three crops along the longer side."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from vtnpipe.extract.backbone import evaluation_transform
from vtnpipe.extract.preprocessing import Preprocessing
from vtnpipe.extract.views import VIEW_NAMES
from vtnpipe.manifests.errors import BackboneError

SIZE = 32


def _gradient(height: int, width: int) -> np.ndarray:
    """Return an image [1, H, W, 3] whose red is a pixel's row, and whose green is its column."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.zeros_like(x)], -1)[None].astype(np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "offsets"),
    [
        (SIZE, 72, {"left": (0, 0), "center": (0, 20), "right": (0, 40)}),
        (72, SIZE, {"left": (0, 0), "center": (20, 0), "right": (40, 0)}),
    ],
)
def test_three_crops_lie_along_the_longer_side(
    preprocessing: Preprocessing,
    height: int,
    width: int,
    offsets: dict[str, tuple[int, int]],
) -> None:
    transform = evaluation_transform(preprocessing, "cpu", VIEW_NAMES["three-crop"])
    views = transform(_gradient(height, width))
    assert views.shape == (1, 3, 3, SIZE, SIZE)
    for view, name in zip(views[0], transform.views, strict=True):
        assert tuple(view[:2, 0, 0].tolist()) == offsets[name]


def test_a_flipped_view_mirrors_the_center(preprocessing: Preprocessing) -> None:
    transform = evaluation_transform(preprocessing, "cpu", VIEW_NAMES["flip"])
    views = transform(_gradient(SIZE, 72))
    assert torch.equal(views[:, 1], views[:, 0].flip(-1))


def test_three_crops_need_a_crop(preprocessing: Preprocessing) -> None:
    squashed = replace(preprocessing, crop_mode="squash")
    with pytest.raises(BackboneError, match=r"--views three-crop.*'squash'"):
        evaluation_transform(squashed, "cpu", VIEW_NAMES["three-crop"])
