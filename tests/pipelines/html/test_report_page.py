"""The page of a run: which videos are shown, and what is written about them."""

from pathlib import Path

import pytest
import torch
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_folder import FeatureSpec
from vtnpipe.pipelines.html.report_page import choose_videos, prediction_lines
from vtnpipe.pipelines.inference.predictions import Predictions
from vtnpipe.pipelines.models.model_folder import NetworkConfig
from vtnpipe.temporal.checkpoint import RunFolder, read_epochs
from vtnpipe.temporal.config import TaskType, TemporalConfig


def _config(task: TaskType) -> NetworkConfig:
    num_classes = 1 if task == "regression" else 3
    return NetworkConfig(
        spec=FeatureSpec(backbone="toy"),
        temporal=TemporalConfig(feature_dim=4, num_classes=num_classes, num_heads=2, task=task),
        class_names=[] if task == "regression" else list("abc"),
    )


def _predictions(logits: list[list[float]], targets: torch.Tensor) -> Predictions:
    ids = [f"v{n}" for n in range(len(logits))]
    return Predictions(video_ids=ids, logits=torch.tensor(logits), targets=targets, record={})


def test_a_multi_label_prediction_is_right_if_all_classes_are() -> None:
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = _predictions([[1.0, 2.0, -1.0], [1.0, -1.0, -1.0], [-1.0, -1.0, -1.0]], targets)
    config = _config("multi-label")
    assert prediction_lines(config, found, 0)[0] == "label a|b, predicted a|b: right"
    assert prediction_lines(config, found, 1)[0] == "label a|b, predicted a: wrong"
    assert prediction_lines(config, found, 2)[0] == "label none, predicted none: right"


def test_lines_of_other_tasks() -> None:
    found = _predictions([[0.0, 3.0, 0.0]], torch.tensor([0]))
    first, second = prediction_lines(_config("classification"), found, 0)
    assert first == "label a, predicted b: wrong"
    assert second.startswith("b 90.9%, ")
    found = _predictions([[1.25]], torch.tensor([1.5]))
    assert prediction_lines(_config("regression"), found, 0) == ["label 1.5, predicted 1.25"]


def test_only_wrong_predictions_are_among_the_worst() -> None:
    config = _config("classification")
    logits = [[float(n), 1.5, 0.0] for n in range(5)]  # the first two are wrong
    found = _predictions(logits, torch.zeros(5, dtype=torch.long))
    assert choose_videos(config, found, 1) == ([0], [4])
    assert choose_videos(config, found, 4) == ([0, 1], [4, 3, 2])
    several = _predictions([[1.0, -1.0], [1.0, 1.0]], torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert choose_videos(_config("multi-label"), several, 4) == ([1], [0])


def test_no_video_is_among_the_worst_and_the_best() -> None:
    config = _config("regression")
    found = _predictions([[float(4 - n)] for n in range(5)], torch.zeros(5))
    assert choose_videos(config, found, 1) == ([0], [4])
    assert choose_videos(config, found, 2) == ([0, 1], [4, 3])
    assert choose_videos(config, found, 9) == ([0, 1, 2], [4, 3])
    assert choose_videos(config, found, 0) == ([], [])


def test_damaged_metrics_are_named(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    assert read_epochs(files) == []
    files.metrics.write_text('{"epoch": 1}\n{"epoch": 2}\n')
    assert [one["epoch"] for one in read_epochs(files)] == [1, 2]
    files.metrics.write_text('{"epoch": 1}\n{"ep')
    with pytest.raises(FeaturesError, match=r"metrics\.jsonl"):
        read_epochs(files)
