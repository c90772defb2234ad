"""Backbone creation: names, weights, pooling, and what each fault says."""

import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub import constants as hub_constants
from vtnpipe.extract.create_backbone import (
    build_backbone,
    create_module,
    parameter_layers,
)
from vtnpipe.manifests.errors import BackboneError

TINY = "test_vit"  # timm's own tiny model for tests


def test_random_weights_are_always_the_same_ones() -> None:
    torch.manual_seed(5)
    first = build_backbone(TINY, "none")
    torch.manual_seed(6)
    assert build_backbone(TINY, "none").digest == first.digest
    assert first.dim == timm.create_model(TINY).num_features


def test_an_image_size_that_is_not_possible() -> None:
    with pytest.raises(BackboneError, match=r"'test_vit' fails on an image of \[3, 100, 100\]"):
        build_backbone(TINY, "none", image_size=100)


def test_weights_of_a_file_are_fitted_to_an_image_size(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(build_backbone(TINY, "none").weights)
    fitted = build_backbone(TINY, str(path), image_size=96)
    assert fitted.digest == build_backbone(TINY, "none", image_size=96).digest
    assert fitted.preprocessing.input_size == (3, 96, 96)


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
    built = build_backbone(TINY, str(path))
    stored = safetensors.torch.load(built.weights)
    assert stored.keys() == create_module(TINY, pretrained=False).state_dict().keys()
    for key, tensor in stored.items():
        assert torch.equal(tensor, state[key])


def test_weights_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    state = timm.create_model(TINY).state_dict()
    del state["norm.weight"]
    state["extra"] = torch.zeros(1)
    state["norm.bias"] = torch.zeros(3)
    safetensors.torch.save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError) as caught:
        build_backbone(TINY, str(tmp_path / "w.safetensors"))
    for words in (
        "norm.weight is missing",
        "extra is not in the model",
        "norm.bias is [3], the model's is [64]",
    ):
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
        ("toy_backbones:no_module", "none", "must return a torch Module"),
        ("toy_backbones:maps", "none", r"returns \[1, 4, 224, 224\] for one image.*\[N, D\]"),
        ("toy_backbones:mixer", "pretrained", "has no pretrained weights by name"),
        ("toy_backbones:fails", "none", "RuntimeError: on purpose"),
        (":x", "none", r"a factory is package\.module:function"),
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


def test_poolings_that_a_model_does_not_have_are_refused() -> None:
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


def test_layers_hold_each_parameter_once() -> None:
    module = create_module(TINY, pretrained=False)
    layers = parameter_layers(module, TINY)
    names = [name for layer in layers for name in layer]
    assert sorted(names) == sorted(name for name, _ in module.named_parameters())
    assert "cls_token" in layers[0]
    assert "norm.weight" in layers[-1]
    assert len(layers) == 1 + len(module.blocks)  # type: ignore[arg-type]
    with pytest.raises(BackboneError, match=r"toy.*group_matcher"):
        parameter_layers(torch.nn.Linear(1, 1), "toy")


def test_a_hub_that_cannot_be_reached_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network, the hub's own client would retry for a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("vtnpipe.extract.create_backbone.getproxies", dict)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
    with pytest.raises(BackboneError, match="cannot download from the Hugging Face hub"):
        create_module("vit_tiny_patch16_224", pretrained=True)
    assert not hub_constants.HF_HUB_OFFLINE  # it may be reached later
