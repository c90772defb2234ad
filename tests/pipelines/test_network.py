"""The whole network: saved, loaded, and through the hub."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from stage_two import SETTINGS
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.train_temporal import train_temporal


def test_a_network_is_saved_and_loaded_whole(folder: Path) -> None:
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
        FeaturesError, match=r"model.safetensors: does not fit .*: lacks temporal\."
    ):
        VideoTransformerNetwork.from_pretrained(folder / "model")


def test_a_network_goes_to_the_hub_and_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    network = VideoTransformerNetwork.from_pretrained(folder / "run")
    hub = folder / "hub"

    class Api:
        """What huggingface_hub would send, kept in a folder."""

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
    with pytest.raises(FeaturesError, match=r"me/other: no such folder, and the .* \(no route\)"):
        VideoTransformerNetwork.from_pretrained("me/other")
