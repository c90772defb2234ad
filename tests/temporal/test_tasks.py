"""Targets, losses and decisions of each task."""

import math

import pytest
import torch
from vtnpipe.manifests.errors import ManifestError
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.temporal.config import TaskType, TemporalConfig
from vtnpipe.temporal.tasks import (
    LossOptions,
    balanced_class_weights,
    clip_weights,
    decision,
    probabilities,
    read_targets,
    task_losses,
    training_classes,
)


def _rows(*labels: str, split: str = "train") -> list[VideoRow]:
    return [
        VideoRow(video_id=f"{split}{number}", path="-", label=label, split=split)
        for number, label in enumerate(labels)
    ]


def test_class_order_is_the_sorted_labels_of_the_training_split() -> None:
    rows = [*_rows("run", "eat", "", "run"), *_rows("fly", split="val")]
    assert training_classes(rows, rows, "train") == ["eat", "run"]
    several = [*_rows("run|eat", "", " eat | sit "), *_rows("fly", split="val")]
    assert training_classes(several, several, "train", "multi-label") == ["eat", "run", "sit"]
    assert training_classes(_rows("1", "2"), _rows("1", "2"), "train", "regression") == []
    with pytest.raises(ManifestError, match="no row has a label"):
        training_classes(_rows("", ""), [], "train", "multi-label")
    with pytest.raises(ManifestError, match="no video of class 'eat' can be used"):
        training_classes(several, several[2:3][:0], "train", "multi-label")


def test_targets_of_each_task() -> None:
    assert read_targets(_rows("b", "a"), ["a", "b"]).tolist() == [1, 0]
    several = read_targets(_rows("b|a", "", "b"), ["a", "b"], "multi-label")
    assert several.tolist() == [[1, 1], [0, 0], [0, 1]]
    with pytest.raises(ManifestError, match="none of 2 videos of split 'train' has a label"):
        read_targets(_rows("", ""), ["a", "b"], "multi-label")
    assert read_targets(_rows("1.5", "-2"), [], "regression").tolist() == [1.5, -2]


@pytest.mark.parametrize(
    ("label", "task", "message"),
    [
        ("c", "classification", "label 'c' is not one of the model's 2 classes"),
        ("a|c", "multi-label", "label 'c' is not one of"),
        ("tall", "regression", "label 'tall' is not a finite number"),
        ("", "regression", "label '' is not a finite number"),
        ("nan", "regression", "label 'nan' is not a finite number"),
        ("", "classification", "has no label"),
    ],
)
def test_an_invalid_label_is_an_error(label: str, task: TaskType, message: str) -> None:
    with pytest.raises(ManifestError, match=f"'train0': {message}"):
        read_targets(_rows(label), ["a", "b"], task)


def _config(task: TaskType, **changes: float) -> TemporalConfig:
    values = {"feature_dim": 8, "num_classes": 1 if task == "regression" else 2, "encoder": "mean"}
    return TemporalConfig(task=task, **values, **changes)  # type: ignore[arg-type]


def test_losses_equal_the_formulas() -> None:
    logits = torch.tensor([[2.0, -1.0]])
    p = [1 / (1 + math.exp(-x)) for x in (2.0, -1.0)]
    loss = task_losses(logits, torch.tensor([[1.0, 0.0]]), _config("multi-label"))
    assert float(loss) == pytest.approx(-(math.log(p[0]) + math.log(1 - p[1])) / 2)
    loss = task_losses(logits, torch.tensor([1]), _config("classification"))
    assert float(loss) == pytest.approx(3 + math.log(1 + math.exp(-3)))
    config = _config("regression", target_mean=10.0, target_std=4.0)
    loss = task_losses(torch.tensor([[14.0]]), torch.tensor([12.0]), config)
    assert float(loss) == pytest.approx(0.25)


def test_decisions_and_probabilities() -> None:
    logits = torch.tensor([0.5, 2.0, -3.0])
    names = ["a", "b", "c"]
    assert decision(logits, names, "classification") == "b"
    assert decision(logits, names, "multi-label") == "a|b"
    assert decision(torch.tensor([-9.0, -9.0, -9.0]), names, "multi-label") == ""
    assert decision(torch.tensor([1.25]), [], "regression") == "1.25"
    far = decision(torch.tensor([1_700_000_050.0], dtype=torch.float64), [], "regression")
    assert far == "1.70000005e+09"
    assert float(probabilities(logits, "classification").sum()) == pytest.approx(1)
    assert probabilities(logits, "multi-label")[1] == pytest.approx(1 / (1 + math.exp(-2)))
    assert probabilities(torch.tensor([1.0]), "regression").shape == (0,)


def test_balanced_classes_have_equal_total_weight() -> None:
    targets = torch.tensor([0, 0, 0, 1])
    config = _config("classification")
    weights = balanced_class_weights(targets, config)
    options = LossOptions(class_weights=weights)
    sums = torch.zeros(2).index_add(0, targets, clip_weights(targets, config, options))
    assert sums.tolist() == pytest.approx([2.0, 2.0])
    logits = torch.randn(4, 2)
    losses = task_losses(logits, targets, config, options)
    expected = torch.nn.functional.cross_entropy(logits, targets, weights)
    total = clip_weights(targets, config, options).sum()
    torch.testing.assert_close(losses.sum() / total, expected)
    several = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    assert balanced_class_weights(several, _config("multi-label")).tolist() == [
        *(2.0, pytest.approx(1 / 3)),  # the second occurs in every video, and still counts
    ]


def test_a_class_without_videos_keeps_weights_finite() -> None:
    """A model may have a class that its finetuning videos lack."""
    found = balanced_class_weights(torch.tensor([0, 0]), _config("classification"))
    assert found.tolist() == [0.5, 1.0]
    lacking = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert balanced_class_weights(lacking, _config("multi-label")).tolist() == [1.0, 2.0]


def test_label_smoothing_moves_targets_towards_all_classes() -> None:
    options = LossOptions(label_smoothing=0.2)
    logits = torch.randn(3, 2)
    found = task_losses(logits, torch.tensor([0, 1, 1]), _config("classification"), options)
    soft = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])
    torch.testing.assert_close(found, -(soft * logits.log_softmax(1)).sum(1))
    found = task_losses(logits, soft.round(), _config("multi-label"), options)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, soft, reduction="none"
    ).mean(1)
    torch.testing.assert_close(found, expected)
