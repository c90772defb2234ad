"""The backbone on a device: agreement with the plainest way, memory formats, compiling."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import timm
import torch
from feature_folders import write_backbone
from numbered_videos import draw_number
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2
from vtnpipe.extract.backbone import Backbone, load_backbone
from vtnpipe.extract.create_backbone import build_backbone
from vtnpipe.extract.preprocessing import MatrixResize
from vtnpipe.manifests.errors import BackboneError

TINY = "test_vit"  # timm's own tiny model for tests


def _load(folder: Path, name: str, *, dtype: str | None = None, **fields: Any) -> Backbone:
    return load_backbone(*write_backbone(folder, name, **fields), "cpu", dtype=dtype)


def _features(backbone: Backbone, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    return backbone.features(backbone.transform(images))


def _numbered(numbers: Sequence[int]) -> npt.NDArray[np.uint8]:
    return np.stack([draw_number(number, 160, 160) for number in numbers])


def _plainest(backbone: Backbone, name: str, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """timm's own transform on PIL images, a float32 model, frame by frame."""
    module = timm.create_model(name, num_classes=0).eval()
    assert isinstance(backbone.module, torch.nn.Module)
    weights = {key: value.float() for key, value in backbone.module.state_dict().items()}
    module.load_state_dict(weights)
    transform = create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    with torch.inference_mode():
        return torch.cat([module(transform(Image.fromarray(image))[None]) for image in images])


@pytest.mark.parametrize(
    ("name", "precision", "least"),
    [
        (TINY, "float32", 0.9999),
        (TINY, "bfloat16", 0.999),
        ("test_resnet", "float32", 0.9999),
        ("vit_tiny_patch16_224", "float32", 0.9999),
        ("vit_tiny_patch16_224", "bfloat16", 0.999),
    ],
)
def test_features_agree_with_the_plainest_way(
    tmp_path: Path, name: str, precision: str, least: float
) -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (4, 9, 12, 3), dtype=np.uint8)
    images = np.stack([np.array(Image.fromarray(c).resize((320, 240))) for c in coarse])
    backbone = _load(tmp_path, name, precision=precision)
    assert backbone.dtype == getattr(torch, precision)
    features = _features(backbone, images)
    assert features.dtype == torch.float32
    expected = _plainest(backbone, name, images)
    assert features.shape == (4, 1, expected.shape[1])
    assert torch.cosine_similarity(features[:, 0], expected).min() >= least


@pytest.mark.parametrize("name", [TINY, "test_resnet"])
def test_a_resize_by_matrices_changes_no_feature(tmp_path: Path, name: str) -> None:
    """As GPUs resize, in half precision, against PIL."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 9, 12, 3), dtype=np.uint8)
    images = np.stack([np.array(Image.fromarray(c).resize((320, 240))) for c in coarse])
    backbone = _load(tmp_path, name)
    steps = [
        MatrixResize(step.size[0] if len(step.size) == 1 else step.size, step.interpolation.value)
        for step in backbone.transform.resize_steps
        if isinstance(step, v2.Resize)
    ]
    assert len(steps) == 1
    by_matrices = replace(backbone, transform=replace(backbone.transform, resize_steps=steps))
    cosines = torch.cosine_similarity(
        _features(by_matrices, images)[:, 0], _plainest(backbone, name, images)
    )
    assert cosines.min() >= 0.9999


def test_another_dtype_than_the_folders_may_compute(tmp_path: Path) -> None:
    backbone = _load(tmp_path, TINY, precision="bfloat16", dtype="float32")
    assert backbone.dtype == torch.float32


def test_every_view_has_its_features(tmp_path: Path) -> None:
    images = _numbered([5, 99])
    mirrored = np.ascontiguousarray(images[:, :, ::-1])
    both = _features(_load(tmp_path, TINY, views=("center", "flip")), images)
    plain = _load(tmp_path, TINY)
    torch.testing.assert_close(both[:, :1], _features(plain, images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[:, 1:], _features(plain, mirrored), rtol=1e-4, atol=1e-5)


def test_changed_or_missing_weights_are_refused(tmp_path: Path) -> None:
    path, spec = write_backbone(tmp_path, TINY)
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(BackboneError, match="SHA-256"):
        load_backbone(path, spec, "cpu")
    path.unlink()
    with pytest.raises(BackboneError, match=r"cannot read .*backbone\.safetensors"):
        load_backbone(path, spec, "cpu")


def test_other_poolings(tmp_path: Path) -> None:
    images = _numbered([5, 99])
    features = {
        pool: _features(_load(tmp_path, "vit_tiny_patch16_224", pool=pool), images)
        for pool in (None, "token", "avg")
    }
    assert torch.equal(features[None], features["token"])
    assert not torch.allclose(features[None], features["avg"], atol=1e-2)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_other_image_sizes(tmp_path: Path, name: str) -> None:
    """Position embeddings are interpolated; a convolutional network's weights stay as they are."""
    backbone = _load(tmp_path, name, image_size=96)
    assert backbone.transform(np.zeros((1, 120, 200, 3), np.uint8)).shape == (1, 1, 3, 96, 96)
    images = _numbered([5, 99])
    inputs = backbone.transform.normalize(backbone.transform(images)[:, 0])
    plain = timm.create_model(name, num_classes=0).eval()
    own = build_backbone(name, "none")
    plain.load_state_dict(safetensors.torch.load(own.weights))
    if name == "test_vit":
        plain.set_input_size(img_size=96)
    with torch.inference_mode():
        torch.testing.assert_close(_features(backbone, images)[:, 0], plain(inputs))


def test_convolutional_networks_compute_in_channels_last_memory(tmp_path: Path) -> None:
    images = _numbered(range(5))
    for name, is_convolutional in ((TINY, False), ("test_resnet", True)):
        backbone = _load(tmp_path, name)
        assert backbone.channels_last == is_convolutional
        found = _features(backbone, images)[:, 0]
        plain = timm.create_model(name, num_classes=0).eval()
        assert isinstance(backbone.module, torch.nn.Module)
        plain.load_state_dict(backbone.module.state_dict())
        resized = backbone.transform(images)
        with torch.inference_mode():
            expected = plain(backbone.transform.normalize(resized[:, 0]))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same_for_any_number_of_frames(tmp_path: Path) -> None:
    images = _numbered(range(5))
    expected = _features(_load(tmp_path, TINY), images)
    fast = load_backbone(*write_backbone(tmp_path, TINY), "cpu", compiled_batch_size=4)
    for part in (slice(0, 4), slice(4, 5)):
        found = _features(fast, images[part])
        torch.testing.assert_close(found, expected[part], rtol=1e-4, atol=1e-5)
