"""Weights files as training scripts save them."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from vtnpipe.extract.weights_file import load_weights_file
from vtnpipe.manifests.errors import BackboneError


def _model(name: str = "test_vit") -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=0)  # type: ignore[no-any-return]


def _state(name: str = "test_vit") -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(name, num_classes=7).state_dict()
    return state


def _prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


STATE = _state()
AVERAGE = {key: value + 1 for key, value in STATE.items()}
NAMESPACE = argparse.Namespace(lr=0.1, output=Path("out"), loss=np.float64(0.3))
CONV = {"cls_head.fc.weight": torch.zeros(7, 3)}
FILES: dict[str, tuple[Any, dict[str, Tensor], str]] = {
    "plain": (STATE, STATE, ""),
    "data parallel": (_prefixed("module.", STATE), STATE, "'module.'"),
    "compiled": (_prefixed("_orig_mod.", STATE), STATE, "'_orig_mod.'"),
    "compiled, data parallel": (_prefixed("module._orig_mod.", STATE), STATE, "module._orig_mod"),
    "timm's training": (
        {"epoch": 3, "state_dict": STATE, "state_dict_ema": AVERAGE, "args": NAMESPACE},
        AVERAGE,
        "'state_dict_ema', the moving average",
    ),
    "MAE and DeiT": ({"model": STATE, "args": NAMESPACE}, STATE, "'model'"),
    "DeiT with an average": ({"model": STATE, "model_ema": AVERAGE}, AVERAGE, "'model_ema'"),
    "Lightning": (
        {"state_dict": _prefixed("model.", STATE) | {"loss.weight": torch.ones(7)}},
        STATE,
        "'model.'",
    ),
    "OpenMMLab": (
        {"meta": {"epoch": 3}, "state_dict": _prefixed("backbone.", STATE) | CONV},
        STATE,
        "'backbone.'",
    ),
    "DINO": (
        {
            "student": _prefixed("module.backbone.", STATE),
            "teacher": _prefixed("backbone.", AVERAGE) | {"head.mlp.weight": torch.ones(2)},
        },
        AVERAGE,
        "'teacher', the moving average",
    ),
    "teacher and student in one": (
        _prefixed("student.backbone.", STATE) | _prefixed("teacher.backbone.", AVERAGE),
        AVERAGE,
        "'teacher.backbone.'",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_files_as_people_have_them(tmp_path: Path, name: str) -> None:
    content, expected, words = FILES[name]
    torch.save(content, tmp_path / "w.pth.tar")
    module = _model()
    taken = load_weights_file(module, tmp_path / "w.pth.tar")
    assert words in taken
    assert bool(words) == bool(taken)
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected[key])


def test_batch_norm_of_2018_has_no_counters(tmp_path: Path) -> None:
    state = _state("test_resnet")
    old = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    assert len(old) < len(state)
    torch.save(_prefixed("module.", old), tmp_path / "w.pth")
    module = _model("test_resnet")
    load_weights_file(module, tmp_path / "w.pth")
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[key])


def test_an_old_format_and_safetensors_are_read(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(STATE, tmp_path / "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        assert load_weights_file(_model(), tmp_path / name) == ""


def test_other_weights_are_refused_with_names_of_both_sides(tmp_path: Path) -> None:
    torch.save(_state("test_resnet"), tmp_path / "w.pth")
    with pytest.raises(BackboneError) as caught:
        load_weights_file(_model(), tmp_path / "w.pth")
    assert "cls_token is missing" in str(caught.value)
    assert "stem.conv1.weight is not in the model" in str(caught.value) or (
        "is not in the model" in str(caught.value)
    )
    wide = {**STATE, "norm.weight": torch.ones(3)}
    torch.save(wide, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"norm\.weight is \[3\]"):
        load_weights_file(_model(), tmp_path / "w.pth")


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_larger_model_does_not_pass_for_a_smaller_one(tmp_path: Path, prefix: str) -> None:
    larger = _state("resnet50")
    torch.save(_prefixed(prefix, larger), tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=r"layer1\.2\.conv1\.weight is not in the model"):
        load_weights_file(timm.create_model("resnet26", num_classes=0), tmp_path / "w.pth")


def test_numbers_beside_the_tensors_are_no_fault(tmp_path: Path) -> None:
    torch.save({**STATE, "epoch": 3}, tmp_path / "w.pth")
    module = _model()
    assert load_weights_file(module, tmp_path / "w.pth") == ""
    assert torch.equal(module.state_dict()["norm.weight"], STATE["norm.weight"])


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("evil",)


def test_files_that_are_no_weights_are_refused_and_run_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    path.write_text("hello")
    with pytest.raises(BackboneError, match="another kind of file"):
        load_weights_file(_model(), path)
    path.write_bytes(pickle.dumps({"state_dict": _Evil()}))
    with pytest.raises(BackboneError, match="nor a safe PyTorch file"):
        load_weights_file(_model(), path)
    torch.save({"state_dict": STATE, "args": _Evil()}, path)
    with pytest.raises(BackboneError, match="nor a safe PyTorch file"):
        load_weights_file(_model(), path)
    assert not (tmp_path / "evil").exists()
    for content in ([1, 2], {"a": 1}, torch.zeros(3)):
        torch.save(content, path)
        with pytest.raises(BackboneError, match="contains no state dict"):
            load_weights_file(_model(), path)
