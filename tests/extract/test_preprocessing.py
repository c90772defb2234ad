"""Preprocessing: resized frames are copies, and values are normalized."""

import numpy as np
import torch
from vtnpipe.extract.backbone import evaluation_transform
from vtnpipe.extract.preprocessing import Preprocessing

SIZE = 32
PREPROCESSING = Preprocessing(
    input_size=(3, SIZE, SIZE),
    interpolation="bilinear",
    crop_pct=1.0,
    crop_mode="center",
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)


def test_resize_gives_a_copy_even_if_nothing_is_resized() -> None:
    transform = evaluation_transform(PREPROCESSING, "cpu")
    images = np.random.default_rng(0).integers(0, 255, (1, SIZE, SIZE, 3), dtype=np.uint8)
    resized = transform.resize(transform.upload(images))
    expected = torch.from_numpy(images.copy()).permute(0, 3, 1, 2)
    images[:] = 255
    assert torch.equal(resized[:, 0], expected)


def test_values_are_normalized_as_the_formula_says() -> None:
    transform = evaluation_transform(PREPROCESSING, "cpu")
    images = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PREPROCESSING.mean, PREPROCESSING.std))
    torch.testing.assert_close(
        transform.normalize(images), (images / 255 - mean) / std, rtol=1e-5, atol=1e-5
    )
    assert Preprocessing.from_json(PREPROCESSING.to_json()) == PREPROCESSING
