"""The whole network: saved, loaded, through the hub, and which of its parts train."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_two import SETTINGS
from vtnpipe.extract.create_backbone import create_module, default_preprocessing
from vtnpipe.manifests.errors import BackboneError, FeaturesError
from vtnpipe.manifests.feature_folder import FeatureSpec
from vtnpipe.pipelines.models.model_folder import NetworkConfig
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.model import TemporalClassifier


def test_a_saved_network_needs_no_other_files(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    network.save_pretrained(folder / "model")
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        *("README.md", "config.json", "model.safetensors"),
    ]
    shutil.rmtree(folder / "run")
    shutil.rmtree(folder / "f")
    again = VideoTransformerNetwork.from_pretrained(folder / "model")
    frames, positions = torch.rand(2, 6, 3, 64, 64), torch.arange(6).expand(2, 6)
    with torch.inference_mode():
        torch.testing.assert_close(again(frames, positions), network(frames, positions))
        features = again.backbone(frames.flatten(0, 1)).unflatten(0, (2, 6))
        torch.testing.assert_close(again.temporal(features, positions), again(frames, positions))
    again.train()
    assert again.temporal.training
    assert not again.backbone.training
    assert not any(parameter.requires_grad for parameter in again.backbone.parameters())

    path = folder / "model/model.safetensors"
    state = load_file(path)
    state["temporal.new"] = state.pop(sorted(state)[-1])
    save_file(state, path)
    with pytest.raises(
        FeaturesError, match=r"model\.safetensors: does not fit .*: temporal\..* is missing"
    ):
        VideoTransformerNetwork.from_pretrained(folder / "model")


def test_a_network_goes_to_the_hub_and_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    hub = folder / "hub"

    class Api:
        """Stores in a folder what huggingface_hub would upload."""

        def __init__(self, **options: object) -> None: ...

        def create_repo(self, repo_id: str, **options: object) -> SimpleNamespace:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> str:
            shutil.copytree(folder_path, hub / repo_id)
            return "sent"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    monkeypatch.setattr(
        "vtnpipe.pipelines.models.network.snapshot_download",
        lambda name, **options: str(hub / name),
    )
    network.push_to_hub("me/model")
    assert "video-classification" in (hub / "me/model/README.md").read_text()
    with pytest.raises(FeaturesError, match="names functions to call, toy_backbones:block_means"):
        VideoTransformerNetwork.from_pretrained("me/model")
    again = VideoTransformerNetwork.from_pretrained("me/model", trust_factories=True)
    assert again.config == network.config
    frames, positions = torch.rand(1, 6, 3, 64, 64), torch.arange(6)[None]
    with torch.inference_mode():
        torch.testing.assert_close(again(frames, positions), network(frames, positions))

    config = hub / "me/model/config.json"
    good = config.read_text()
    config.write_text(good.replace("toy_backbones:block_means", "os:getcwd"))
    with pytest.raises(FeaturesError, match="names functions to call, os:getcwd; read them"):
        VideoTransformerNetwork.from_pretrained("me/model")
    config.write_text(good)

    def unreachable(name: str, **options: object) -> str:
        raise OSError("no route")

    monkeypatch.setattr("vtnpipe.pipelines.models.network.snapshot_download", unreachable)
    with pytest.raises(FeaturesError, match=r"me/other: .* \(no route\)"):
        VideoTransformerNetwork.from_pretrained("me/other")


def _network(backbone: str) -> VideoTransformerNetwork:
    """Return a network of two classes with random weights."""
    module = create_module(backbone, pretrained=False)
    config = NetworkConfig(
        spec=FeatureSpec(backbone=backbone, preprocessing=default_preprocessing(module).to_json()),
        temporal=TemporalConfig(
            feature_dim=module.num_features,  # type: ignore[arg-type]
            num_classes=2,
            num_heads=2,
            intermediate_dim=16,
            head_dim=8,
        ),
        class_names=["a", "b"],
    )
    return VideoTransformerNetwork(module, TemporalClassifier(config.temporal), config)


def test_uint8_frames_are_normalized_and_padding_changes_nothing() -> None:
    network = _network("test_vit").eval()
    torch.manual_seed(0)
    size = network.config.preprocessing.input_size
    pixels, positions = torch.randint(0, 256, (2, 5, *size), dtype=torch.uint8), torch.arange(5)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (network.config.preprocessing.mean, network.config.preprocessing.std)
    )
    places = positions.expand(2, -1)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    with torch.inference_mode():
        found = network(pixels, places)
        expected = network((pixels / 255 - mean) / std, places)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        masked = network(pixels, places, mask)
        short = network(pixels[1:, :3], places[1:, :3])
    torch.testing.assert_close(masked[0], found[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(masked[1], short[0], atol=1e-5, rtol=1e-4)


def test_the_last_blocks_can_be_trained_alone() -> None:
    network = _network("test_vit")

    def trainable() -> set[str]:
        return {n for n, p in network.backbone.named_parameters() if p.requires_grad}

    assert trainable() == set()
    network.unfreeze()
    every = {name for name, _ in network.backbone.named_parameters()}
    assert trainable() == every
    network.unfreeze(2)
    blocks = {name.split(".")[1] for name in trainable() if name.startswith("blocks")}
    assert blocks == {"4", "5"}
    assert "norm.weight" in trainable()
    assert not any(name.startswith(("patch", "pos")) for name in trainable())
    network.unfreeze(0)
    assert trainable() == set()
    assert all(parameter.requires_grad for parameter in network.temporal.parameters())
    with pytest.raises(BackboneError, match="--train-blocks 7: test_vit has 6 blocks; give fewer"):
        network.unfreeze(7)


def test_layers_further_from_the_head_learn_more_slowly() -> None:
    network = _network("test_vit")
    assert network.lr_scales(1.0) == {}
    scales = network.lr_scales(0.5)
    assert scales["backbone.blocks.5.mlp.fc1.weight"] == 0.5
    assert scales["backbone.norm.weight"] == 0.5
    assert scales["backbone.blocks.0.mlp.fc1.weight"] == 0.5**6
    assert scales["backbone.pos_embed"] == 0.5**7


def test_frozen_parts_and_batch_norms_stay_in_evaluation_mode() -> None:
    network = _network("test_resnet")
    network.backbone.layer1.drop = torch.nn.Dropout(0.5)
    network.backbone.layer4.drop = torch.nn.Dropout(0.5)
    network.train()
    assert not any(module.training for module in network.backbone.modules())
    assert network.temporal.training
    network.unfreeze(1)
    network.train()
    assert not network.backbone.layer1.drop.training
    assert network.backbone.layer4.training
    assert network.backbone.layer4.drop.training
    norms = [m for m in network.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert sum(norm.weight.requires_grad for norm in norms) > 0
    network.eval()
    assert not any(module.training for module in network.modules())
