"""Backbones: names, weights, preprocessing, and agreement with the plainest way."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import timm
import torch
from numbered_videos import draw_number, number_of_blocks
from PIL import Image
from timm.data import create_transform
from vtnpipe.extract.backbone import (
    Backbone,
    Kinds,
    build_backbone,
    evaluation_transform,
    load_backbone,
)
from vtnpipe.extract.device import check_can_compile, resolve_device, resolve_precision
from vtnpipe.manifests.errors import BackboneError, SettingsError

TINY = "test_vit"  # timm's own tiny model for tests


def _load(
    folder: Path,
    name: str,
    weights: str = "none",
    dtype: str = "float32",
    views: Sequence[str] = ("center",),
    **options: Any,
) -> Backbone:
    built = build_backbone(name, weights)
    path = folder / "backbone.safetensors"
    path.write_bytes(built.weights)
    return load_backbone(
        name,
        path,
        digest=built.digest,
        pool=None,
        dtype=dtype,
        transform=evaluation_transform(built.preprocessing, "cpu", views),
        **options,
    )


def resize(backbone: Backbone, images: npt.NDArray[np.uint8]) -> torch.Tensor:
    return backbone.transform.resize(backbone.transform.upload(images))


def _plainest(
    backbone: Backbone, name: str, images: np.ndarray[Any, np.dtype[np.uint8]]
) -> torch.Tensor:
    """timm's own transform on PIL images, a float32 model, frame by frame."""
    module = timm.create_model(name, num_classes=0).eval()
    assert isinstance(backbone.module, torch.nn.Module)
    weights = {key: value.float() for key, value in backbone.module.state_dict().items()}
    module.load_state_dict(weights)
    transform = create_transform(**timm.data.resolve_model_data_config(module), is_training=False)
    with torch.inference_mode():
        return torch.cat([module(transform(Image.fromarray(image))[None]) for image in images])


@pytest.mark.parametrize(
    ("name", "dtype", "least"),
    [
        (TINY, "float32", 0.9999),
        (TINY, "bfloat16", 0.999),
        ("test_resnet", "float32", 0.9999),
        ("vit_tiny_patch16_224", "float32", 0.9999),
        ("vit_tiny_patch16_224", "bfloat16", 0.999),
    ],
)
def test_features_agree_with_the_plainest_way(
    tmp_path: Path, name: str, dtype: str, least: float
) -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (4, 9, 12, 3), dtype=np.uint8)
    images = np.stack([np.array(Image.fromarray(c).resize((320, 240))) for c in coarse])
    backbone = _load(tmp_path, name, dtype=dtype)
    features = backbone.features(resize(backbone, images))
    assert features.dtype == torch.float32
    expected = _plainest(backbone, name, images)
    assert features.shape == (4, 1, expected.shape[1])
    assert torch.cosine_similarity(features[:, 0], expected).min() >= least


def test_resize_gives_a_copy_even_where_nothing_is_resized(tmp_path: Path) -> None:
    backbone = _load(tmp_path, "toy_backbones:block_means")
    images = np.stack([draw_number(n, 64, 64) for n in range(3)])
    resized = resize(backbone, images)
    images[:] = 0
    assert [number_of_blocks(row) for row in backbone.features(resized)[:, 0].numpy()] == [0, 1, 2]


def test_random_weights_are_always_the_same_ones() -> None:
    torch.manual_seed(5)
    first = build_backbone(TINY, "none")
    torch.manual_seed(6)
    assert build_backbone(TINY, "none").digest == first.digest
    assert first.dim == timm.create_model(TINY).num_features


@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped"])
@pytest.mark.parametrize("num_classes", [0, 7])
def test_weights_from_a_file(tmp_path: Path, form: str, num_classes: int) -> None:
    torch.manual_seed(3)
    model = timm.create_model(TINY, num_classes=num_classes)
    state = model.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "pth":
        torch.save(state, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    backbone = _load(tmp_path, TINY, str(path))
    assert isinstance(backbone.module, torch.nn.Module)
    for key, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, state[key])


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = timm.create_model(TINY).state_dict()
    del state["norm.weight"]
    state["extra"] = torch.zeros(1)
    state["norm.bias"] = torch.zeros(3)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError) as caught:
        build_backbone(TINY, str(tmp_path / "w.safetensors"))
    for words in ("lacks norm.weight", "has extra", "norm.bias is [3], the model's is [64]"):
        assert words in str(caught.value)


class _Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil-was-here"),))


def test_a_checkpoint_may_not_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Evil()}, "w.pth")
    with pytest.raises(BackboneError, match=r"neither a safetensors nor a safe PyTorch file"):
        build_backbone(TINY, "w.pth")
    assert not Path("evil-was-here").exists()


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("test_vitt", "none", "Unknown model.*did you mean test_vit"),
        ("toy_backbones:nothing", "none", "has no attribute 'nothing'"),
        ("no_such_module:f", "none", "No module named 'no_such_module'"),
        ("toy_backbones:no_module", "none", "must return a torch.nn.Module"),
        ("toy_backbones:maps", "none", r"gives \[1, 4, 224, 224\].*one vector a frame"),
        ("toy_backbones:mixer", "pretrained", "has no pretrained weights by name"),
        ("toy_backbones:fails", "none", "RuntimeError: on purpose"),
        (":x", "none", "a factory is package.module:function"),
        ("a/b", "none", "backbone 'a/b'"),
        (TINY, "none.pth", "no such file"),
    ],
)
def test_each_fault_has_its_error(name: str, weights: str, message: str) -> None:
    with pytest.raises(BackboneError, match=message):
        build_backbone(name, weights)


def test_pretrained_without_a_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneError, match=r"--weights FILE"):
        build_backbone("vit_tiny_patch16_224", "pretrained")


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    built = build_backbone(TINY, "none")
    path = tmp_path / "backbone.safetensors"
    path.write_bytes(built.weights[:-4] + b"\0\0\0\0")
    with pytest.raises(BackboneError, match="SHA-256"):
        load_backbone(
            TINY,
            path,
            digest=built.digest,
            pool=None,
            dtype="float32",
            transform=evaluation_transform(built.preprocessing, "cpu"),
        )


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(SettingsError, match=r"--compile: no C\+\+ compiler \(g\+\+, clang"):
        check_can_compile("cpu")


def test_device_and_precision() -> None:
    assert resolve_device("cpu") == "cpu"
    for device in ("gpu", "cuda:x", "cpu:1", "cpu:", "cuda:", f"cuda:{torch.cuda.device_count()}"):
        with pytest.raises(SettingsError, match="device"):
            resolve_device(device)
    assert resolve_precision("bfloat16", "cpu") == ("bfloat16", "asked for")
    precision, reason = resolve_precision("auto", "cpu")
    assert precision in ("float32", "bfloat16")
    assert "the CPU has" in reason


def test_other_poolings(tmp_path: Path) -> None:
    images = np.stack([draw_number(n, 160, 160) for n in (5, 99)])
    features = {}
    for pool in (None, "token", "avg"):
        built = build_backbone("vit_tiny_patch16_224", "none", pool)
        (tmp_path / "backbone.safetensors").write_bytes(built.weights)
        backbone = load_backbone(
            "vit_tiny_patch16_224",
            tmp_path / "backbone.safetensors",
            digest=built.digest,
            pool=pool,
            dtype="float32",
            transform=evaluation_transform(built.preprocessing, "cpu"),
        )
        features[pool] = backbone.features(resize(backbone, images))
    assert torch.equal(features[None], features["token"])
    assert not torch.allclose(features[None], features["avg"], atol=1e-2)
    assert (
        build_backbone("test_resnet", "none", "avgmax").dim
        == build_backbone("test_resnet", "none").dim
    )
    for name, pool in (
        (TINY, "nothing"),
        ("test_resnet", "nothing"),
        ("toy_backbones:mixer", "avg"),
    ):
        with pytest.raises(BackboneError, match=f"--pool {pool}: backbone"):
            build_backbone(name, "none", pool)


@pytest.mark.parametrize("options", [{"channels_last": True}, {"fused_attention": False}])
@pytest.mark.parametrize("name", [TINY, "test_resnet"])
def test_speed_changes_roundings_only(tmp_path: Path, name: str, options: dict[str, bool]) -> None:
    images = np.stack([draw_number(n, 160, 160) for n in range(5)])
    plain = _load(tmp_path, name)
    expected = plain.features(resize(plain, images))
    fast = _load(tmp_path, name, **options)
    torch.testing.assert_close(fast.features(resize(fast, images)), expected, rtol=1e-4, atol=1e-5)
    assert plain.kinds == (Kinds(1, 6) if name == TINY else Kinds(plain.kinds.num_convolutions, 0))


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same_for_any_number_of_frames(tmp_path: Path) -> None:
    images = np.stack([draw_number(n, 160, 160) for n in range(5)])
    plain = _load(tmp_path, TINY)
    expected = plain.features(resize(plain, images))
    fast = _load(tmp_path, TINY, compiled_size=4)
    for part in (slice(0, 4), slice(4, 5)):
        found = fast.features(resize(fast, images[part]))
        torch.testing.assert_close(found, expected[part], rtol=1e-4, atol=1e-5)
