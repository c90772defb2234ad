"""The default recipe through the command line: shortcut, baselines, kept epoch, comparison."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_cli
from feature_folders import made_up_features
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.pipelines.evaluate import compare_runs, evaluate
from vtnpipe.pipelines.inference.evaluation import EvaluateSettings
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import RunFolder, read_weights, save_weights


@pytest.fixture
def features(tmp_path: Path) -> Path:
    """Made-up features of three classes; a mean shift tells them."""
    splits = {
        split: {f"{split}{n}-r{n % 4}": "abc"[n % 3] for n in range(count)}
        for split, count in (("train", 48), ("val", 15), ("test", 24))
    }
    return made_up_features(tmp_path / "f", splits)


def test_the_defaults_train_report_and_resume(features: Path, tmp_path: Path) -> None:
    command = ("train-temporal", "f", "run", "--epochs", 3)
    ran = run_cli(tmp_path, *command)
    for words in (
        "adamw, learning rate 0.0005 (cosine), 3 epochs, batches of 16",
        "training on clips of up to 16 frames; videos are up to 3 s long",
        "the model learns what it misses",
        "kept the last",
        "this model ",
        "linear probe, mean ",
        "linear probe, mean, std and step",
        "nearest neighbors, mean",
        "factor of the learned logits: ",
    ):
        assert words in ran.stdout, words
    stored = json.loads((tmp_path / "run/settings.json").read_text())
    assert (stored["recipe"], stored["keep"], stored["trained_on"]) == ("features", "last", "clips")
    config = json.loads((tmp_path / "run/config.json").read_text())["temporal"]
    assert config["standardize"]
    assert config["shortcut"] in ("mean", "motion")
    weights = (tmp_path / "run/model.safetensors").read_bytes()
    assert weights == (tmp_path / "run/last.safetensors").read_bytes()
    assert "epoch   " not in run_cli(tmp_path, *command).stdout
    assert (tmp_path / "run/model.safetensors").read_bytes() == weights

    ran = run_cli(tmp_path, "evaluate", "run", "f")
    assert "split val chose the factor of the learned logits" in ran.stdout
    ran = run_cli(tmp_path, "evaluate", "run", "f", "--split", "test", "--group", "r[0-9]$")
    assert "chose" not in ran.stdout
    assert "linear probe, mean " in ran.stdout
    record = json.loads((tmp_path / "run/predictions/test.json").read_text())
    assert set(record["baselines"]) == {"probe_mean", "probe_motion", "knn"}
    assert record["metrics"]["top1"] >= record["baselines"]["probe_mean"]["top1"] - 0.05
    assert record["chosen_on"] == []
    run_cli(tmp_path, "report", "run", "--split", "test", "--source", "f")
    page = (tmp_path / "run/report.html").read_text()
    assert "The model beside its baselines" in page
    assert "the last one" in page


def test_a_loaded_model_gives_the_stored_logits(features: Path, tmp_path: Path) -> None:
    train_temporal(features, tmp_path / "run", TrainTemporalSettings(epochs=2))
    evaluate(tmp_path / "run", features, EvaluateSettings(split="test", bootstrap=0))
    network = VideoTransformerNetwork.from_pretrained(tmp_path / "run")
    network.save_pretrained(tmp_path / "saved")
    again = evaluate(tmp_path / "saved", features, EvaluateSettings(split="test", bootstrap=0))
    with (
        np.load(tmp_path / "run/predictions/test.npz") as first,
        np.load(tmp_path / "saved/predictions/test.npz") as second,
    ):
        np.testing.assert_allclose(first["logits"], second["logits"], atol=1e-5)
    assert again.baselines == {}


def test_long_videos_are_trained_on_as_a_whole(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtnpipe.pipelines.training.feature_setup.MIN_CLIP_SHARE", 1.1)
    settings = TrainTemporalSettings(epochs=1)
    train_temporal(features, tmp_path / "run", settings)
    stored = json.loads((tmp_path / "run/settings.json").read_text())
    assert stored["trained_on"] == "videos"
    assert stored["clip_share"] == 1.0
    assert stored["longest_tokens"] == 35
    for name, given in (("clips", {"train_on": "clips"}), ("asked", {"clip_seconds": 0.5})):
        train_temporal(features, tmp_path / name, replace(settings, **given))  # type: ignore[arg-type]
        assert json.loads((tmp_path / name / "settings.json").read_text())["trained_on"] == "clips"


def test_last_and_best_epochs_are_kept_and_scored(features: Path, tmp_path: Path) -> None:
    settings = TrainTemporalSettings(epochs=4, lr=0.05, keep="best", shortcut="none")
    report = train_temporal(features, tmp_path / "run", settings)
    assert report.kept == report.best
    scores = {}
    for weights, epoch in (("kept", report.best), ("last", report.last)):
        found = evaluate(tmp_path / "run", features, EvaluateSettings(weights=weights, bootstrap=0))
        assert found.values["top1"] == pytest.approx(epoch["top1"])
        scores[weights] = found
    assert scores["kept"].chosen_on == ("epoch",)
    assert scores["last"].chosen_on == ()
    assert (tmp_path / "run/predictions/val+last.json").exists()


def test_two_runs_are_compared_on_the_videos_that_both_have_scored(
    features: Path, tmp_path: Path
) -> None:
    for encoder in ("longformer", "mean"):
        settings = TrainTemporalSettings(epochs=1, encoder=encoder, shortcut="none")
        train_temporal(features, tmp_path / encoder, settings)
        evaluate(tmp_path / encoder, features, EvaluateSettings(split="test", bootstrap=0))
    ran = run_cli(tmp_path, "evaluate", "longformer", "mean", "--split", "test")
    assert "split test, 24 videos: top-1" in ran.stdout
    assert "(McNemar, exact)" in ran.stdout
    settings = EvaluateSettings(split="test", group="r[0-9]$", bootstrap=50)
    same = compare_runs(tmp_path / "mean", tmp_path / "mean", settings)
    assert (same.only_first, same.only_second, same.interval) == (0, 0, (0.0, 0.0))
    refused = run_cli(tmp_path, "evaluate", "longformer", "mean", code=2)
    assert "has no predictions/val.json" in refused.stderr


def test_logits_that_are_not_finite_are_an_error(features: Path, tmp_path: Path) -> None:
    train_temporal(features, tmp_path / "run", TrainTemporalSettings(epochs=1, shortcut="none"))
    files = RunFolder(tmp_path / "run")
    network = VideoTransformerNetwork.from_pretrained(files.root).temporal
    with torch.no_grad():
        network.head[4].bias[0] = float("nan")
    save_weights(network, files.kept, prefix="temporal.")
    assert read_weights(files.kept)
    with pytest.raises(FeaturesError, match="video_id 'val0-r0': its logits are not finite"):
        evaluate(files.root, features)
