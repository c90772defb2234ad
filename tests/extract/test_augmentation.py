"""Random crops: one draw for a whole clip, scales and places as asked for, pixels as PIL's."""

import numpy as np
import pytest
import torch
from PIL import Image
from vtnpipe.extract.augmentation import Augmentation, default_short_sides


def _augmentation(**changes: object) -> Augmentation:
    values = {"size": (32, 32), "short_sides": (36, 46), "flip": True, "interpolation": "bilinear"}
    return Augmentation(**{**values, **changes})  # type: ignore[arg-type]


def _frames(num_frames: int, height: int, width: int) -> torch.Tensor:
    """Frames that say where each pixel is: red is the row, green the column, blue the frame."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    one = torch.stack([y, x, torch.zeros_like(x)], -1).to(torch.uint8)
    frames = one.repeat(num_frames, 1, 1, 1)
    frames[..., 2] = torch.arange(num_frames)[:, None, None] * 10
    return frames


def test_all_frames_of_a_clip_are_cropped_alike_and_clips_are_not() -> None:
    augment, frames = _augmentation(), _frames(3, 60, 90)
    crops = [augment(frames, seed) for seed in range(40)]
    for crop in crops:
        assert crop.shape == (3, 3, 32, 32)
        assert torch.equal(crop[0, :2], crop[1, :2])
        assert torch.equal(crop[0, :2], crop[2, :2])
        assert crop[:, 2].float().mean((1, 2)).tolist() == [0, 10, 20]
    assert torch.equal(crops[3], augment(frames, 3))
    assert len({tuple(crop[0, :2, 0, 0].tolist()) for crop in crops}) > 20
    is_mirrored = [bool(crop[0, 1, 0, 0] > crop[0, 1, 0, -1]) for crop in crops]
    assert 8 < sum(is_mirrored) < 32
    straight = [_augmentation(flip=False)(frames, seed) for seed in range(40)]
    assert all(crop[0, 1, 0, 0] < crop[0, 1, 0, -1] for crop in straight)
    for crop, plain, mirrored in zip(crops, straight, is_mirrored, strict=True):
        assert torch.equal(crop, plain.flip(-1) if mirrored else plain)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (90, 60), (24, 20)])
def test_scales_cover_what_was_asked_for(height: int, width: int) -> None:
    augment = _augmentation(flip=False)
    scales = []
    for seed in range(60):
        crop = augment(_frames(1, height, width), seed)[0].float()
        step = (crop[1, 0, 28] - crop[1, 0, 3]) / 25  # columns of the source, a pixel of the crop
        scales.append(min(height, width) / float(step))
    assert min(scales) > 34
    assert max(scales) < 48
    assert max(scales) - min(scales) > 5


def test_pixels_are_those_of_a_resize_and_a_crop_by_pil() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    augment = _augmentation(short_sides=(40, 40), flip=False)
    crop = augment(torch.from_numpy(noise)[None], 5)[0].permute(1, 2, 0).numpy().astype(int)
    resized = np.asarray(Image.fromarray(noise).resize((53, 40), Image.Resampling.BILINEAR))
    found = [
        np.abs(resized[top : top + 32, left : left + 32].astype(int) - crop).max()
        for top in range(9)
        for left in range(22)
    ]
    assert min(found) <= 1


def test_the_papers_sizes() -> None:
    assert default_short_sides((224, 224)) == (256, 320)
