"""`vtnpipe evaluate`: clips, views, intervals, the files it writes, and invalid input."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run_cli
from feature_folders import made_up_features
from stage_two import SETTINGS, SMALL, edit, from_features
from vtnpipe.manifests.errors import FeaturesError, ManifestError, SettingsError
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.inference.evaluation import EvaluateSettings
from vtnpipe.pipelines.models.model_folder import read_config
from vtnpipe.pipelines.models.network import load_temporal
from vtnpipe.pipelines.predict import predict
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import RunFolder
from vtnpipe.temporal.clips import ClipSampling, even_clip


def test_logits_are_means_over_clips_and_views(two_views: Path) -> None:
    settings = ("--clips", 2, "--clip-frames", 5, "--clip-seconds", 1.0, "--bootstrap", 50)
    ran = run_cli(two_views, "evaluate", "run", "f", *settings)
    assert "split val, 2 clips per video: top-1" in ran.stdout
    assert " to " in ran.stdout
    files = RunFolder(two_views / "run")
    temporal = load_temporal(files, read_config(files))
    store = open_features(two_views / "f")
    sampling = ClipSampling(num_frames=5, seconds=1.0)
    with np.load(files.predictions / "val+2clips.npz") as arrays:
        for video_id, logits in zip(arrays["video_ids"], arrays["logits"], strict=True):
            video = store[str(video_id)]
            found = []
            for number in range(2):
                frames = even_clip(video.timestamps, sampling, number, 2)
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
    assert report["counts"] == {
        "expected": 9,
        "scored": 9,
        "missing": 0,
        "partial": 0,
        "dropped": 0,
    }


def test_predictions_of_shuffled_frames_have_a_name_of_their_own(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    ran = run_cli(folder, "evaluate", "run", "f", "--shuffle-frames", "--seed", 3, code=1)
    assert "split val, frames shuffled: top-1" in ran.stdout
    assert sorted(path.name for path in (folder / "run/predictions").iterdir()) == [
        *("val+shuffled.csv", "val+shuffled.json", "val+shuffled.npz")
    ]


def test_a_split_without_labels_is_refused(folder: Path) -> None:
    values = {**vars(SETTINGS), "task": "multi-label"}
    train_temporal(folder / "f", folder / "run", TrainTemporalSettings(**values))
    text = (folder / "m.csv").read_text()
    (folder / "bare.csv").write_text(text.replace(",up,val", ",,val").replace(",down,val", ",,val"))
    with pytest.raises(ManifestError, match="none of 4 videos of split 'val' has a label"):
        evaluate(folder / "run", folder / "f", EvaluateSettings(manifest=str(folder / "bare.csv")))


def test_the_manifest_of_the_training_is_that_of_the_evaluation(
    folder: Path, tmp_path: Path
) -> None:
    """As its page then shows, which is that of the split evaluated last."""
    shutil.copytree(folder / "f", tmp_path / "f")
    rows = [row for row in (folder / "m.csv").read_text().splitlines() if "lost" not in row]
    lines = [row.replace(",val", ",test") if n % 2 else row for n, row in enumerate(rows)]
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    run_cli(tmp_path, "train-temporal", "f", "run", "--manifest", "own.csv", *SMALL)
    ran = run_cli(tmp_path, "evaluate", "run", "f", "--split", "test")
    assert "own.csv, as in training" in ran.stdout
    ran = run_cli(tmp_path, "report", "run")
    assert "has not been evaluated" not in ran.stdout
    assert "split test, " in (tmp_path / "run/report.html").read_text()
    (tmp_path / "own.csv").unlink()
    ran = run_cli(tmp_path, "evaluate", "run", "f", code=1)  # whose manifest has a lost video
    assert "is gone; those of f are used" in ran.stdout


def test_a_single_class_is_told(tmp_path: Path) -> None:
    labels = {split: {f"{split}{n}": "only" for n in range(6)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", labels)
    ran = run_cli(tmp_path, "train-temporal", "f", "run", *SMALL)
    assert "'only' is the only class of split train" in ran.stdout
    assert "top-5" not in ran.stdout
    assert "has one class only" in run_cli(tmp_path, "evaluate", "run", "f").stdout


def test_invalid_input_raises(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    manifest = folder / "m.csv"
    with pytest.raises(ManifestError, match="split 'test' has no rows"):
        evaluate(folder / "run", folder / "f", EvaluateSettings(split="test"))
    fly = edit(manifest, "v2,2.mp4,up", "v2,2.mp4,fly")
    with pytest.raises(ManifestError, match="label 'fly'"):
        evaluate(folder / "run", folder / "f", EvaluateSettings(manifest=fly))
    with pytest.raises(FeaturesError, match="not a model or run folder"):
        evaluate(folder / "f", folder / "f")
    escaping = edit(manifest, ",val", ",../../val")
    evaluate(folder / "run", folder / "f", EvaluateSettings(manifest=escaping, split="../../val"))
    assert sorted(path.name for path in (folder / "run/predictions").iterdir()) == [
        *("..%2F..%2Fval.csv", "..%2F..%2Fval.json", "..%2F..%2Fval.npz"),
    ]
    with pytest.raises(SettingsError, match=r"typo\.csv: "):
        evaluate(folder / "run", folder / "typo.csv")
    shutil.rmtree(folder / "run/predictions")
    (folder / "run/predictions").touch()
    with pytest.raises(SettingsError, match="/predictions"):
        evaluate(folder / "run", folder / "f")
    config = folder / "run/config.json"
    config.write_text(config.read_text().replace("block_means", "mixer"))
    with pytest.raises(FeaturesError, match=r"backbone is .*'toy_backbones:block_means'"):
        evaluate(folder / "run", folder / "f")
    extraction = folder / "f/extraction.json"
    extraction.write_text(extraction.read_text().replace("block_means", "mixer"))
    with pytest.raises(FeaturesError, match="fingerprint"):
        evaluate(folder / "run", folder / "f")


def test_videos_of_a_manifest_are_decoded_and_lost_ones_listed(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    evaluate(folder / "run", folder / "f")
    with np.load(folder / "run/predictions/val.npz") as arrays:
        stored = arrays["logits"]
    ran = run_cli(folder, "evaluate", "run", "m.csv", "--mode", "end-to-end", code=1)
    assert "lost lost: missing: " in ran.stdout
    assert "videos: 5 expected, 4 scored, 1 missing, 0 partial" in ran.stdout
    with np.load(folder / "run/predictions/val.npz") as arrays:
        np.testing.assert_allclose(arrays["logits"], stored, atol=1e-4)
    report = json.loads((folder / "run/predictions/val.json").read_text())
    assert report["source"] == "videos, end-to-end"
    assert [fault.split(":")[0] for fault in report["faults"]] == ["lost"]


def test_modes_that_do_not_fit_the_source_are_refused(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    changes: dict[str, Any]
    for source, changes, message in (
        ("m.csv", {"mode": "features"}, "--mode features"),
        ("m.csv", {"manifest": "m.csv"}, "--manifest"),
        ("f", {"mode": "chunked"}, "--mode chunked"),
        ("f", {"chunk_frames": 3}, "--chunk-frames 3"),
        ("f", {"decoder": "pyav"}, "--decoder pyav: .* is a feature folder"),
    ):
        with pytest.raises(SettingsError, match=message):
            evaluate(folder / "run", folder / source, EvaluateSettings(**changes))


def test_four_hundred_classes(tmp_path: Path) -> None:
    labels = {f"t{n}": f"class {n:03}" for n in range(400)}
    held_out = {f"e{n}": f"class {n:03}" for n in range(0, 400, 40)}
    features = made_up_features(tmp_path / "f", {"train": labels, "val": held_out})
    run_cli(tmp_path, "train-temporal", features, "run", *SMALL[:-1], 1)
    shown = run_cli(tmp_path, "evaluate", "run", "f").stdout
    assert "and 380 more classes in" in shown
    assert "10 scored" in shown
    assert len(predict(tmp_path / "run", ["t3"], from_features(features)).class_names) == 400
