"""Baselines: probes on statistics, their held-out logits, nearest neighbors, storage."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from vtnpipe.temporal.baselines import Baselines, feature_statistics, fit_baselines
from vtnpipe.temporal.config import TaskType, TemporalConfig

DIM = 8


def _videos(
    num_videos: int, num_classes: int, *, seed: int = 0
) -> tuple[list[npt.NDArray[np.float32]], Tensor]:
    """Statistics of videos whose mean tells the class, and a dimension that never varies."""
    generator = np.random.default_rng(seed)
    labels = torch.arange(num_videos) % num_classes
    rows = []
    for label in labels.tolist():
        frames = generator.standard_normal((20, DIM)).astype(np.float32)
        frames[:, label] += 3
        frames[:, DIM - 1] = 7.0
        rows.append(feature_statistics(frames))
    return rows, labels


def _config(num_classes: int, task: TaskType = "classification") -> TemporalConfig:
    return TemporalConfig(feature_dim=DIM, num_classes=num_classes, task=task, encoder="mean")


@pytest.mark.parametrize("num_classes", [2, 5])
def test_all_baselines_find_a_shift_of_the_mean(num_classes: int) -> None:
    config = _config(num_classes)
    rows, labels = _videos(60, num_classes)
    baselines = fit_baselines(rows, labels, config)
    held_out = baselines.mean.held_out
    assert held_out is not None
    assert float((held_out.argmax(1) == labels).double().mean()) > 0.95
    others, truth = _videos(40, num_classes, seed=1)
    found = baselines.logits(others, config)
    assert set(found) == {"probe_mean", "probe_motion", "knn"}
    for logits in found.values():
        assert float((logits.argmax(1) == truth).double().mean()) > 0.9
    stored = Baselines.from_tensors(baselines.to_tensors()).logits(others, config)
    assert all(torch.equal(stored[name], logits) for name, logits in found.items())


def test_probes_of_noise_take_no_part() -> None:
    generator = np.random.default_rng(0)
    rows = [generator.standard_normal(3 * DIM).astype(np.float32) for _ in range(60)]
    baselines = fit_baselines(rows, torch.arange(60) % 2, _config(2))
    assert not baselines.mean.is_informative
    assert baselines.mean.held_out_loss == pytest.approx(np.log(2), abs=1e-3)


@pytest.mark.parametrize("counts", [[1, 1], [5, 1], [4]])
def test_few_videos_have_probes_too(counts: list[int]) -> None:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    rows, _ = _videos(len(labels), 2)
    logits = fit_baselines(rows, labels, _config(2)).logits(rows, _config(2))
    assert all(one.isfinite().all() and one.shape == (len(labels), 2) for one in logits.values())


def test_multi_label_and_regression_have_ridge_probes() -> None:
    rows, labels = _videos(60, 3)
    targets = torch.nn.functional.one_hot(labels, 3).float()
    config = _config(3, "multi-label")
    logits = fit_baselines(rows, targets, config).logits(rows, config)["probe_mean"]
    assert float(((logits > 0).float() == targets).double().mean()) > 0.95
    numbers = torch.tensor([row[0] for row in rows]).double()
    config = _config(1, "regression")
    found = fit_baselines(rows, numbers, config).logits(rows, config)["probe_mean"]
    assert found.dtype == torch.float64
    assert float((found[:, 0] - numbers).abs().max()) < 0.2
