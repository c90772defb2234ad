"""`vtnpipe predict`: the three modes of inference, its output, and invalid input."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_cli
from stage_two import PAPER, SETTINGS, from_features, make_sensitive
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.inference.evaluation import EvaluateSettings
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.predict import PredictSettings, predict
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.temporal.checkpoint import RunFolder


def test_the_three_modes_agree_in_their_logits(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", PAPER)
    temporal = make_sensitive(RunFolder(folder / "run"))
    video = open_features(folder / "f")["v11"]
    features, positions = torch.tensor(video.features)[None], torch.arange(31)[None]
    with torch.inference_mode():
        logits = temporal(features, positions)
        for other in (temporal(features.flip(1), positions), temporal(features, positions * 2)):
            assert (other - logits).abs().max() > 0.01

    videos = [folder / f"{number}.mp4" for number in (0, 3, 11)]
    ids = ["v0", "v3", "v11"]
    found = [
        predict(folder / "run", videos, PredictSettings(mode="end-to-end")),
        predict(folder / "run", videos, PredictSettings(mode="chunked", chunk_frames=5)),
        predict(folder / "run", ids, PredictSettings(mode="features", features=str(folder / "f"))),
    ]
    by_mode = [
        torch.stack([p.logits for p in r.predictions if p.logits is not None]) for r in found
    ]
    assert by_mode[0].shape == (3, 2)
    for other in by_mode[1:]:
        torch.testing.assert_close(other, by_mode[0], atol=1e-4, rtol=0)


def test_predictions_from_features_equal_those_of_evaluate(two_views: Path) -> None:
    evaluate(two_views / "run", two_views / "f", EvaluateSettings(bootstrap=0))
    settings = PredictSettings(mode="features", features=str(two_views / "f"))
    with np.load(two_views / "run/predictions/val.npz") as arrays:
        ids = [str(video_id) for video_id in arrays["video_ids"]]
        predictions = predict(two_views / "run", ids, settings).predictions
        for prediction, logits in zip(predictions, arrays["logits"], strict=True):
            assert prediction.logits is not None
            torch.testing.assert_close(
                prediction.logits, torch.from_numpy(logits), atol=1e-5, rtol=1e-4
            )


def test_without_ids_all_videos_of_the_features_are_predicted(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    report = predict(folder / "run", [], from_features(folder / "f"))
    statuses = open_features(folder / "f").statuses
    assert {one.video for one in report.predictions} == set(statuses)
    failed = [one for one in report.predictions if one.logits is None]
    assert [one.video for one in failed] == ["lost"]
    assert failed[0].note.startswith("missing: ")
    assert report.exit_code == 1


def test_the_output_has_a_line_for_each_video(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    arguments = ("0.mp4", "none.mp4", "--output", "p.csv", "--top", 1)
    ran = run_cli(folder, "predict", "run", *arguments, code=1)
    assert "none.mp4  (missing: " in ran.stdout
    assert ran.stdout.count("%") == 1
    with (folder / "p.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert first["video"] == "0.mp4"
    assert first["predicted"] in ("down", "up")
    assert float(first["down"]) + float(first["up"]) == pytest.approx(1, abs=1e-5)
    assert (second["video"], second["predicted"], second["down"]) == ("none.mp4", "", "")
    assert second["note"].startswith("missing: ")


def test_invalid_input_raises(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    with pytest.raises(SettingsError, match="needs --features FOLDER"):
        PredictSettings(mode="features")
    with pytest.raises(SettingsError, match="its folder is missing"):
        predict(folder / "run", ["0.mp4"], PredictSettings(output=str(folder / "no/p.csv")))
    with pytest.raises(FeaturesError, match="has no video_id 'x'"):
        predict(folder / "run", ["x"], from_features(folder / "f"))
    (folder / "run/model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FeaturesError, match=r"model\.safetensors"):
        VideoTransformerNetwork.from_pretrained(folder / "run")
