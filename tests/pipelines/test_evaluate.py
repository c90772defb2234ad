"""`vtnpipe evaluate`: clips, views, intervals and what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_cli
from feature_folders import made_up_features
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.evaluate import EvaluateSettings, evaluate
from vtnpipe.pipelines.model_folder import load_temporal, read_config
from vtnpipe.pipelines.predict import PredictSettings, predict
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings, train_temporal
from vtnpipe.temporal.checkpoint import RunFolder
from vtnpipe.temporal.clips import ClipSampling, lay_clip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Features of two views, `f`, and a run on them, `run`."""
    labels = {
        split: {f"{split}{n}": "ab"[n % 2] for n in range(count)}
        for split, count in (("train", 12), ("val", 9))
    }
    made_up_features(tmp_path / "f", labels, views=("centre", "flip"))
    settings = TrainTemporalSettings(
        layers=1, heads=2, intermediate=16, head_dim=8, epochs=4, optimizer="adamw", lr=1e-2
    )
    train_temporal(tmp_path / "f", tmp_path / "run", settings)
    return tmp_path


def test_logits_are_means_over_clips_and_views(folder: Path) -> None:
    settings = ("--clips", 2, "--clip-frames", 5, "--clip-seconds", 1.0, "--bootstrap", 50)
    ran = run_cli(folder, "evaluate", "run", "f", *settings)
    assert "split val, 2 clips a video: top-1" in ran.stdout
    assert " to " in ran.stdout
    files = RunFolder(folder / "run")
    temporal = load_temporal(files, read_config(files))
    store = open_features(folder / "f")
    sampling = ClipSampling(num_frames=5, seconds=1.0)
    with np.load(files.predictions / "val+2clips.npz") as arrays:
        for video_id, logits in zip(arrays["video_ids"], arrays["logits"], strict=True):
            video = store[str(video_id)]
            found = []
            for number in range(2):
                frames = lay_clip(video.timestamps, sampling, number, 2)
                positions = torch.from_numpy(np.rint(video.timestamps[frames] * 25).astype(int))
                for view in range(2):
                    features = torch.from_numpy(video.features[frames, view])
                    with torch.inference_mode():
                        found.append(temporal(features[None], positions[None])[0])
            assert len(found) == 4
            mean = torch.stack(found).mean(0)
            torch.testing.assert_close(torch.from_numpy(logits), mean, atol=1e-5, rtol=1e-4)

    report = json.loads((files.predictions / "val+2clips.json").read_text())
    low, high = report["intervals"]["top1"]
    assert 0 <= low <= report["metrics"]["top1"] <= high <= 1
    assert report["counts"] == {"expected": 9, "scored": 9, "missing": 0, "partial": 0}


def test_predicting_from_features_is_evaluating(folder: Path) -> None:
    evaluate(folder / "run", folder / "f", EvaluateSettings(bootstrap=0))
    settings = PredictSettings(mode="features", features=str(folder / "f"))
    with np.load(folder / "run/predictions/val.npz") as arrays:
        ids = [str(video_id) for video_id in arrays["video_ids"]]
        predictions = predict(folder / "run", ids, settings).predictions
        for prediction, logits in zip(predictions, arrays["logits"], strict=True):
            assert prediction.logits is not None
            torch.testing.assert_close(
                prediction.logits, torch.from_numpy(logits), atol=1e-5, rtol=1e-4
            )
