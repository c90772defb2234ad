"""Preprocessing: frames are resized, the results are copies, and values are normalized."""

import numpy as np
import pytest
import torch
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
