"""Predictions of a split on disk: what is written, read back, and refused."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.feature_folder import FeatureSpec
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.pipelines.inference.predictions import (
    Predictions,
    read_predictions,
    write_predictions,
)
from vtnpipe.pipelines.models.model_folder import NetworkConfig
from vtnpipe.temporal.config import TaskType, TemporalConfig


def _write(folder: Path, logits: Tensor, targets: Tensor, task: TaskType, *labels: str) -> None:
    names = [] if task == "regression" else ["a", "b c"]
    config = NetworkConfig(
        spec=FeatureSpec(backbone="toy"),
        temporal=TemporalConfig(feature_dim=4, num_heads=2, num_classes=logits.shape[1], task=task),
        class_names=names,
    )
    rows = [VideoRow(video_id=f"v,{n}", path="-", label=label) for n, label in enumerate(labels)]
    predictions = Predictions(
        video_ids=[row.video_id for row in rows],
        logits=logits,
        targets=targets,
        record={"settings": {"split": "val"}},
    )
    write_predictions(folder, "val", predictions, rows, config)


def _lines(folder: Path) -> list[dict[str, str]]:
    with (folder / "val.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_read_as_they_were_written(tmp_path: Path) -> None:
    folder = tmp_path / "new/predictions"
    logits = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
    _write(folder, logits, torch.tensor([0, 0]), "classification", "a", "a")
    assert sorted(path.name for path in folder.iterdir()) == ["val.csv", "val.json", "val.npz"]
    found = read_predictions(folder, "val")
    assert found is not None
    assert found.video_ids == ["v,0", "v,1"]
    assert torch.equal(found.logits, logits)
    assert found.targets.tolist() == [0, 0]
    assert found.record == {"settings": {"split": "val"}}
    with np.load(folder / "val.npz") as arrays:
        assert arrays["classes"].tolist() == ["a", "b c"]
    lines = _lines(folder)
    assert [(one["video_id"], one["label"], one["predicted"]) for one in lines] == [
        ("v,0", "a", "a"),
        ("v,1", "a", "b c"),
    ]
    assert float(lines[0]["a"]) == pytest.approx(float(logits[0].softmax(0)[0]), abs=1e-6)
    assert read_predictions(folder, "train") is None


def test_decisions_are_written_like_labels(tmp_path: Path) -> None:
    logits = torch.tensor([[2.0, 0.5], [-1.0, -1.0]])
    _write(tmp_path, logits, torch.ones(2, 2), "multi-label", "a|b c", "")
    lines = _lines(tmp_path)
    assert [one["predicted"] for one in lines] == ["a|b c", ""]
    assert float(lines[0]["a"]) == pytest.approx(float(logits[0, 0].sigmoid()), abs=1e-6)
    _write(tmp_path, torch.tensor([[0.25]]), torch.tensor([0.5]), "regression", "0.5")
    assert _lines(tmp_path) == [{"video_id": "v,0", "label": "0.5", "predicted": "0.25"}]


@pytest.mark.parametrize("name", ["val.json", "val.npz"])
def test_damaged_predictions_are_named(tmp_path: Path, name: str) -> None:
    _write(tmp_path, torch.zeros(1, 2), torch.tensor([0]), "classification", "a")
    data = (tmp_path / name).read_bytes()
    for damaged in (b"", data[: len(data) // 2]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(FeaturesError, match=name):
            read_predictions(tmp_path, "val")
    (tmp_path / "val.npz").unlink()
    with pytest.raises(FeaturesError, match="val"):
        read_predictions(tmp_path, "val")


def test_a_folder_that_cannot_be_created_is_named(tmp_path: Path) -> None:
    (tmp_path / "predictions").touch()
    with pytest.raises(SettingsError, match="predictions"):
        _write(
            tmp_path / "predictions", torch.zeros(1, 2), torch.tensor([0]), "classification", "a"
        )
