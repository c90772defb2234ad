"""Preprocessing: frames are resized, the results are copies, and values are normalized."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import InterpolationMode, v2
from vtnpipe.extract.backbone import evaluation_transform
from vtnpipe.extract.preprocessing import MatrixResize, Preprocessing

SIZE = 32


def test_resize_gives_a_copy_even_if_nothing_is_resized(preprocessing: Preprocessing) -> None:
    transform = evaluation_transform(preprocessing, "cpu")
    images = np.random.default_rng(0).integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8)
    resized = transform(images)
    expected = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    images[:] = 255
    assert torch.equal(resized[:, 0], expected)


def test_values_are_normalized_as_the_formula_says(preprocessing: Preprocessing) -> None:
    transform = evaluation_transform(preprocessing, "cpu")
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(
        transform.normalize(images), (images / 255 - mean) / std, rtol=1e-5, atol=1e-5
    )
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(240, 320, 224), (320, 241, 32), (100, 100, 160), (72, 128, (50, 60)), (33, 250, (64, 64))],
)
def test_a_resize_by_matrices_is_that_of_torchvision(
    mode: str, dtype: torch.dtype, height: int, width: int, size: int | tuple[int, int]
) -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    expected = v2.Resize(size, InterpolationMode(mode), antialias=True)(images)
    found = MatrixResize(size, mode, dtype)(images)
    assert found.shape == expected.shape
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.2


@pytest.mark.parametrize(("height", "width"), [(240, 320), (301, 211), (256, 300), (180, 180)])
def test_the_style_pyslowfast_is_that_of_the_authors_code(height: int, width: int) -> None:
    """As `random_short_side_scale_jitter` and `uniform_crop` in slowfast/datasets/transform.py."""
    preprocessing = Preprocessing(
        input_size=(3, 224, 224),
        interpolation="bilinear",
        crop_pct=224 / 256,
        crop_mode="center",
        mean=(0.45,) * 3,
        std=(0.225,) * 3,
        style="pyslowfast",
    )
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    assert "style" not in replace(preprocessing, style="timm").to_json()
    images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    found = evaluation_transform(preprocessing, "cpu")(images)[:, 0]
    frames = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if width < height:
        shape = (math.floor(float(height) / width * 256), 256)
    else:
        shape = (256, math.floor(float(width) / height * 256))
    if min(height, width) != 256:
        frames = F.interpolate(frames, size=shape, mode="bilinear", align_corners=False)
    top, left = (math.ceil((side - 224) / 2) for side in frames.shape[-2:])
    expected = frames[..., top : top + 224, left : left + 224]
    assert float((found.float() - expected).abs().max()) <= 0.501


@pytest.mark.parametrize("size", [(3, 224, 224), (3, 224, 160)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.9])
def test_crop_mode_border_is_timms(size: tuple[int, int, int], crop_pct: float) -> None:
    """A frame is fitted into the square, and the rest filled with the mean color."""
    preprocessing = Preprocessing(
        input_size=size,
        interpolation="bicubic",
        crop_pct=crop_pct,
        crop_mode="border",
        mean=(0.5, 0.3, 0.2),
        std=(0.5,) * 3,
    )
    values = asdict(preprocessing)
    del values["style"]
    by_timm = create_transform(**values, is_training=False)
    transform = evaluation_transform(preprocessing, "cpu", ("center", "flip"))
    for height, width in ((240, 320), (320, 240), (64, 500)):
        images = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        found = transform.normalize(transform(images)[:, 0])
        expected = torch.stack([by_timm(Image.fromarray(image)) for image in images])
        assert found.shape == expected.shape
        assert float((found - expected).abs().mean()) < 0.002
