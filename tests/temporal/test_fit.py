"""Fitting: it learns, it resumes to the same bits, and it keeps what it should."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.store import FeatureStore
from vtnpipe.manifests.videos import VideoRow
from vtnpipe.temporal.checkpoint import KEPT_CHECKPOINTS, RunFolder, read_weights
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.dataset import ClipDataset, ClipSampling
from vtnpipe.temporal.fit import EpochReport, Recipe, evaluate, fit
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.tasks import read_targets

RECIPE = Recipe(epochs=6, batch_size=8, optimizer="adamw", lr=3e-3)
CONFIG = TemporalConfig(
    feature_dim=12, num_classes=2, num_layers=1, num_heads=2, intermediate_dim=24, head_dim=12
)


class _StopError(Exception):
    pass


def _fit(
    folder: Path,
    store: FeatureStore,
    rows: list[VideoRow],
    recipe: Recipe = RECIPE,
    stop_after: int = 0,
) -> tuple[TemporalClassifier, RunFolder]:
    folder.mkdir(exist_ok=True)
    run = RunFolder(folder)
    labels = read_targets(rows, ["a", "b"])
    sampling = ClipSampling(num_frames=8, seconds=2.0)
    train = ClipDataset(store, rows, labels, position_fps=25, sampling=sampling)
    val = ClipDataset(store, rows, labels, position_fps=25)
    torch.manual_seed(7)
    model = TemporalClassifier(CONFIG)

    def stop(report: EpochReport) -> None:
        if report.epoch == stop_after:
            raise _StopError

    fit(model, train, val, ["a", "b"], recipe, run, device="cpu", on_epoch=stop)
    return model, run


def test_a_stopped_run_ends_with_the_same_bits(
    tmp_path: Path, make_store: Callable[..., FeatureStore], rows: list[VideoRow]
) -> None:
    store = make_store()
    _, whole = _fit(tmp_path / "whole", store, rows)
    for stop_after in (2, 5):
        with pytest.raises(_StopError):
            _fit(tmp_path / "stopped", store, rows, stop_after=stop_after)
        torch.manual_seed(999)  # what happens outside must not matter
        # Killed between the line and the checkpoint of the next epoch:
        with (tmp_path / "stopped/metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": stop_after + 1}) + "\n")
    _, stopped = _fit(tmp_path / "stopped", store, rows)
    for path in ("best", "last"):
        one, other = read_weights(getattr(whole, path)), read_weights(getattr(stopped, path))
        assert all(torch.equal(one[key], other[key]) for key in one)
    lines = [json.loads(line) for line in stopped.metrics.read_text().splitlines()]
    assert list(lines[0]) == [
        *("epoch", "lr", "train_loss", "videos_per_second"),
        *("top1", "top5", "mean_class_accuracy", "loss", "is_best"),
    ]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    timeless = [{k: v for k, v in line.items() if k != "videos_per_second"} for line in lines]
    assert timeless == [
        {k: v for k, v in json.loads(line).items() if k != "videos_per_second"}
        for line in whole.metrics.read_text().splitlines()
    ]
    assert len(list(stopped.checkpoints.iterdir())) == KEPT_CHECKPOINTS


def test_it_learns_and_keeps_the_best(
    tmp_path: Path, make_store: Callable[..., FeatureStore], rows: list[VideoRow]
) -> None:
    store = make_store()
    recipe = Recipe(epochs=30, batch_size=8, optimizer="adamw", lr=1e-2)
    model, run = _fit(tmp_path / "run", store, rows, recipe)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines[-1]["train_loss"] < 0.6 * lines[0]["train_loss"]
    best = max(line["top1"] for line in lines)
    assert best >= 0.9
    weights = {k.removeprefix("temporal."): v for k, v in read_weights(run.best).items()}
    model.load_state_dict(weights)
    dataset = ClipDataset(store, rows, read_targets(rows, ["a", "b"]), position_fps=25)
    for batch_size in (1, 7, 24):
        metrics = evaluate(model, dataset, ["a", "b"], batch_size, device="cpu")
        assert metrics.top1 == pytest.approx(best)


def test_sgd_is_the_default_and_a_loss_that_explodes_is_an_error(
    tmp_path: Path, make_store: Callable[..., FeatureStore], rows: list[VideoRow]
) -> None:
    assert Recipe().optimizer == "sgd"
    assert (Recipe().momentum, Recipe().lr, Recipe().epochs) == (0.9, 1e-3, 25)
    recipe = Recipe(epochs=3, lr=1e30)
    with pytest.raises(SettingsError, match=r"--lr 1e\+30: the loss became"):
        _fit(tmp_path / "run", make_store(), rows, recipe)


def test_a_damaged_checkpoint_is_named(
    tmp_path: Path, make_store: Callable[..., FeatureStore], rows: list[VideoRow]
) -> None:
    store = make_store()
    with pytest.raises(_StopError):
        _fit(tmp_path / "run", store, rows, stop_after=2)
    (tmp_path / "run/checkpoints/epoch-0002.pt").write_bytes(b"damaged")
    with pytest.raises(FeaturesError, match=r"epoch-0002\.pt: cannot be read"):
        _fit(tmp_path / "run", store, rows)
    (tmp_path / "run/checkpoints/epoch-0002.pt").unlink()
    _fit(tmp_path / "run", store, rows)
