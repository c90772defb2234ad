"""Preprocessing: resized frames are copies, and values are normalized."""

import numpy as np
import torch
from vtnpipe.extract.backbone import evaluation_transform
from vtnpipe.extract.preprocessing import Preprocessing

SIZE = 32


def test_resize_gives_a_copy_even_if_nothing_is_resized(preprocessing: Preprocessing) -> None:
    transform = evaluation_transform(preprocessing, "cpu")
    images = np.random.default_rng(0).integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8)
    resized = transform.resize(transform.upload(images))
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
