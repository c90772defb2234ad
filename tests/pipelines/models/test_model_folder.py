"""Model folders: config.json, the backbone beside it, and features that fit."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_folders import made_up_features
from rich.console import Console
from stage_two import SETTINGS
from vtnpipe.manifests.errors import BackboneError, FeaturesError, SettingsError
from vtnpipe.manifests.feature_folder import FeatureFolder, FeatureSpec
from vtnpipe.pipelines.extraction.feature_spec import resolve_spec, with_model_settings
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.models.model_folder import (
    backbone_of_model,
    check_features,
    link_backbone,
    model_digest,
    read_config,
)
from vtnpipe.pipelines.models.network import VideoTransformerNetwork, load_temporal
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.temporal.checkpoint import RunFolder


@pytest.fixture
def files(tmp_path: Path) -> RunFolder:
    """A run, `run`, on made-up features, `f`."""
    splits = {split: {f"{split}{n}": "ab"[n % 2] for n in range(4)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", splits)
    train_temporal(tmp_path / "f", tmp_path / "run", SETTINGS)
    return RunFolder(tmp_path / "run")


def test_a_damaged_config_is_named(files: RunFolder) -> None:
    good = json.loads(files.config.read_text())
    for changes in (
        {"spec": {}},
        {"spec": []},
        {"class_names": ["a"]},
        {"class_names": [1, 2]},
        {"temporal": {**good["temporal"], "encoder": "bert"}},
        {"temporal": {**good["temporal"], "num_layers": 0}},
        {"version": 99},
    ):
        files.config.write_text(json.dumps({**good, **changes}))
        with pytest.raises(FeaturesError, match=r"config\.json"):
            read_config(files)
    for data in (b"\xff\xfe", b"[" * 100_000):
        files.config.write_bytes(data)
        with pytest.raises(FeaturesError, match=r"cannot read .*config\.json"):
            read_config(files)
    files.config.unlink()
    with pytest.raises(FeaturesError, match="not a model or run folder"):
        read_config(files)


def test_weights_that_do_not_fit_the_config_are_refused(files: RunFolder) -> None:
    config = read_config(files)
    other = replace(config, temporal=replace(config.temporal, head_dim=9))
    with pytest.raises(FeaturesError, match=r"model\.safetensors: does not fit the config\.json"):
        load_temporal(files, other)
    digest = model_digest(files.kept)
    files.kept.write_bytes(b"damaged")
    assert model_digest(files.kept) != digest
    with pytest.raises(FeaturesError, match=r"model\.safetensors"):
        load_temporal(files, config)
    files.kept.unlink()
    with pytest.raises(FeaturesError, match=r"model\.safetensors: missing"):
        model_digest(files.kept)


def test_features_fit_a_model_whatever_their_precision_and_views(files: RunFolder) -> None:
    config = read_config(files)
    spec = replace(config.spec, precision="bfloat16", feature_dtype="float16", views=("flip",))
    spec = replace(spec, color_conversion="after-resize")
    check_features(config, spec, Path("f"))
    changes: dict[str, Any]
    for changes in (
        {"backbone": "resnet18"},
        {"frame_stride": 2},
        {"fps": 5.0},
        {"pool": "avg"},
        {"image_size": 96},
        {"preprocessing": {**config.spec.preprocessing, "crop_pct": 0.9}},
    ):
        with pytest.raises(FeaturesError, match=f"^f: .*{next(iter(changes))}"):
            check_features(config, replace(config.spec, **changes), Path("f"))
    with pytest.raises(FeaturesError, match=r"the weights \(--weights\) differ"):
        check_features(config, replace(config.spec, weights_digest="0"), Path("f"))


def test_the_backbone_is_linked_or_copied(
    files: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = FeatureFolder(tmp_path / "f")
    assert os.path.samefile(features.backbone, files.backbone)  # noqa: PTH121
    files.backbone.unlink()

    def no_link(*arguments: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "link", no_link)
    link_backbone(features, files)
    assert files.backbone.read_bytes() == features.backbone.read_bytes()
    assert not os.path.samefile(features.backbone, files.backbone)  # noqa: PTH121
    monkeypatch.undo()
    features.backbone.unlink()
    link_backbone(features, files)  # the run has it
    files.backbone.unlink()
    with pytest.raises(FeaturesError, match=r"backbone\.safetensors: missing"):
        link_backbone(features, files)


def test_features_are_extracted_with_the_backbone_of_a_model(
    files: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(quiet=True)

    def spec_of(weights: str, features: str = "new", **changes: Any) -> FeatureSpec:
        settings = ExtractSettings(weights=weights, feature_dtype="float32", **changes)
        settings = with_model_settings(settings, console)
        folder = FeatureFolder(tmp_path / features)
        return resolve_spec(folder, settings, console).extraction.spec

    monkeypatch.chdir(tmp_path)
    stored = read_config(files).spec
    assert spec_of("run", precision="float32") == replace(stored, precision="float32")
    assert spec_of("run", "f").weights_digest == stored.weights_digest
    with pytest.raises(
        SettingsError, match="--backbone resnet18 with --weights run: that model has toy"
    ):
        spec_of("run", backbone="resnet18")
    shutil.copytree("run", "none")  # --weights none is a word, not this folder
    assert spec_of("none", backbone="toy_backbones:mixer").backbone == "toy_backbones:mixer"

    network = VideoTransformerNetwork.from_pretrained(files.root)
    network.save_pretrained("saved")
    assert spec_of("saved").weights_digest == stored.weights_digest
    with torch.no_grad():
        network.backbone.scale.mul_(2)
    network.save_pretrained("changed")
    assert spec_of("changed").weights_digest != stored.weights_digest
    with pytest.raises(FeaturesError, match=r"the weights \(--weights\) differ"):
        spec_of("changed", "f")

    files.backbone.unlink()
    with pytest.raises(BackboneError, match=r"scale is missing; restore its backbone\.safetensors"):
        spec_of("run")
    assert not (tmp_path / "new").exists()


def test_a_models_backbone_with_other_weights_is_refused(files: RunFolder) -> None:
    assert backbone_of_model(files.root).digest == read_config(files).spec.weights_digest
    files.backbone.write_bytes(files.backbone.read_bytes().replace(b"F32", b"F31"))
    with pytest.raises(BackboneError, match=r"backbone\.safetensors"):
        backbone_of_model(files.root)
