"""The initial model of a training: shapes from presets, and models that are trained further."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import made_up_features
from stage_two import SETTINGS, SHAPE
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.data import Splits, read_splits
from vtnpipe.pipelines.training.finetune_settings import FinetuneSettings
from vtnpipe.pipelines.training.initial_model import (
    initial_model,
)

MEANS = "toy_backbones:block_means"


def _splits(settings: Any, *labels: str, class_names: list[str] | None = None) -> Splits:
    """Return splits of a training and a validation video per label."""
    rows = [
        VideoRow(video_id=f"{split}{n}", path="-", label=label, split=split)
        for split in ("train", "val")
        for n, label in enumerate(labels)
    ]
    statuses = {row.video_id: "ok" for row in rows}
    return read_splits(
        rows,
        statuses,
        settings,
        what="features",
        remedy="",
        times=lambda _: np.arange(4.0),
        class_names=class_names,
    )


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of the classes a and b."""
    splits = {split: {f"{split}{n}": "ab"[n % 2] for n in range(4)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", splits)
    train_temporal(tmp_path / "f", tmp_path / "run", SETTINGS)
    return tmp_path / "run"


def test_a_new_model_is_created_on_a_backbone(run: Path) -> None:
    settings = FinetuneSettings(backbone=MEANS, weights="none", fps=2.0, **SHAPE)
    initial = initial_model(settings)
    assert initial.class_names is None
    assert initial.sampling == Sampling(fps=2.0)
    network = initial.create(_splits(settings, "x", "y", "z"))
    assert network.config.class_names == ["x", "y", "z"]
    assert network.config.temporal.num_classes == 3
    with pytest.raises(SettingsError, match=f"--weights {run}: is a model folder; give --from"):
        initial_model(replace(settings, weights=str(run)))


def test_a_trained_model_keeps_its_weights(run: Path) -> None:
    settings = FinetuneSettings(from_=str(run), dropout=0.3)
    initial = initial_model(settings)
    assert initial.class_names == ["a", "b"]
    network = initial.create(_splits(settings, "a", "b", class_names=["a", "b"]))
    before = VideoTransformerNetwork.from_pretrained(run)
    for key, tensor in before.state_dict().items():
        assert torch.equal(network.state_dict()[key], tensor), key
    assert network.config.temporal == replace(
        before.config.temporal, dropout=0.3, attention_dropout=0.3
    )


def test_a_model_for_other_classes_gets_a_new_head(run: Path) -> None:
    settings = FinetuneSettings(from_=str(run), new_head=True)
    initial = initial_model(settings)
    assert initial.class_names is None
    network = initial.create(_splits(settings, "x", "y", "z"))
    assert network.config.class_names == ["x", "y", "z"]
    before = VideoTransformerNetwork.from_pretrained(run).state_dict()
    after = network.state_dict()
    kept = {key for key in before if key in after and torch.equal(after[key], before[key])}
    new = (".head.", ".shortcut.")
    assert {key for key in before if not any(part in key for part in new)} <= kept
    assert after["temporal.head.4.weight"].shape == (3, 8)


def test_settings_that_contradict_the_model_are_refused(run: Path) -> None:
    for changes, option in (
        ({"preset": "vit-b-vtn"}, "--preset vit-b-vtn"),
        ({"layers": 2}, "--layers 2"),
        ({"positions": "frames"}, "--positions frames"),
        ({"task": "multi-label"}, "--task multi-label with --from"),
    ):
        values: dict[str, Any] = {"from_": str(run), **changes}
        with pytest.raises(SettingsError, match=option):
            initial_model(FinetuneSettings(**values))
    values = {"from_": str(run), "task": "multi-label", "new_head": True}
    assert initial_model(FinetuneSettings(**values)).class_names is None
