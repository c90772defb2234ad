"""`vtnpipe evaluate`: clips, views, intervals, what is written, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import run_cli
from feature_folders import made_up_features
from stage_two import SETTINGS, SMALL, edit, make_sensitive, of_features
from vtnpipe.manifests.errors import FeaturesError, ManifestError, SettingsError
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.evaluate import EvaluateSettings, evaluate
from vtnpipe.pipelines.models.model_folder import load_temporal, read_config
from vtnpipe.pipelines.predict import predict
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings, train_temporal
from vtnpipe.temporal.clips import ClipSampling, lay_clip
from vtnpipe.temporal.run_folder import RunFolder


def test_logits_are_means_over_clips_and_views(two_views: Path) -> None:
    settings = ("--clips", 2, "--clip-frames", 5, "--clip-seconds", 1.0, "--bootstrap", 50)
    ran = run_cli(two_views, "evaluate", "run", "f", *settings)
    assert "split val, 2 clips a video: top-1" in ran.stdout
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
    assert report["counts"] == {
        "expected": 9,
        "scored": 9,
        "missing": 0,
        "partial": 0,
        "dropped": 0,
    }


def test_frames_can_be_shuffled_at_evaluation(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    ran = run_cli(folder, "evaluate", "run", "f", "--shuffle-frames", "--seed", 3, code=1)
    assert "split val, frames shuffled: top-1" in ran.stdout
    assert sorted(path.name for path in (folder / "run/predictions").iterdir()) == [
        *("val+shuffled.csv", "val+shuffled.json", "val+shuffled.npz")
    ]
    make_sensitive(RunFolder(folder / "run"))
    losses = {
        evaluate(folder / "run", folder / "f", settings).figures["loss"]
        for settings in (
            EvaluateSettings(),
            EvaluateSettings(seed=1),
            EvaluateSettings(shuffle_frames=True),
            EvaluateSettings(shuffle_frames=True, seed=1),
        )
    }
    assert len(losses) == 3


def test_a_split_without_labels_is_no_result(folder: Path) -> None:
    values = {**vars(SETTINGS), "task": "multi-label"}
    train_temporal(folder / "f", folder / "run", TrainTemporalSettings(**values))
    text = (folder / "m.csv").read_text()
    (folder / "bare.csv").write_text(text.replace(",up,val", ",,val").replace(",down,val", ",,val"))
    with pytest.raises(ManifestError, match="none of 4 videos of split 'val' has a label"):
        evaluate(folder / "run", folder / "f", EvaluateSettings(manifest=str(folder / "bare.csv")))


def test_faults_have_their_errors(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    manifest = folder / "m.csv"
    with pytest.raises(ManifestError, match="split 'test' has no rows"):
        evaluate(folder / "run", folder / "f", EvaluateSettings(split="test"))
    with pytest.raises(SettingsError, match=r"--decoder pyav: .* is a feature folder"):
        evaluate(folder / "run", folder / "f", EvaluateSettings(decoder="pyav"))
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
    with pytest.raises(SettingsError, match=r"typo\.csv: is not there"):
        evaluate(folder / "run", folder / "typo.csv")
    shutil.rmtree(folder / "run/predictions")
    (folder / "run/predictions").touch()
    with pytest.raises(SettingsError, match="predictions: can't be made as a folder"):
        evaluate(folder / "run", folder / "f")
    config = folder / "run/config.json"
    config.write_text(config.read_text().replace("block_means", "mixer"))
    with pytest.raises(FeaturesError, match=r"backbone is 'toy_backbones:block_means' there"):
        evaluate(folder / "run", folder / "f")
    extraction = folder / "f/extraction.json"
    extraction.write_text(extraction.read_text().replace("block_means", "mixer"))
    with pytest.raises(FeaturesError, match="its fingerprint is not that of its identity"):
        evaluate(folder / "run", folder / "f")


def test_videos_are_scored_in_bfloat16(folder: Path) -> None:
    train_temporal(folder / "f", folder / "run", SETTINGS)
    found = [
        evaluate(
            folder / "run",
            folder / "m.csv",
            EvaluateSettings(precision=precision, mode="end-to-end"),
        )
        for precision in ("float32", "bfloat16")
    ]
    losses = [one.figures["loss"] for one in found]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    with np.load(folder / "run/predictions/val.npz") as arrays:
        assert arrays["logits"].dtype == np.float32


def test_partial_videos_are_counted_and_can_be_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vtnpipe.manifests.feature_store import FeatureStore

    train_temporal(folder / "f", folder / "run", SETTINGS)
    statuses = {**open_features(folder / "f").statuses, "v2": "partial"}
    monkeypatch.setattr(FeatureStore, "statuses", property(lambda self: statuses))
    counts = evaluate(folder / "run", folder / "f").counts
    assert (counts.expected, counts.scored, counts.missing, counts.partial) == (5, 4, 1, 1)
    dropped = evaluate(folder / "run", folder / "f", EvaluateSettings(drop_partial=True)).counts
    assert (dropped.expected, dropped.scored, dropped.missing, dropped.partial) == (5, 3, 1, 0)
    assert dropped.dropped == 1


def test_four_hundred_classes(tmp_path: Path) -> None:
    labels = {f"t{n}": f"class {n:03}" for n in range(400)}
    held_out = {f"e{n}": f"class {n:03}" for n in range(0, 400, 40)}
    features = made_up_features(tmp_path / "f", {"train": labels, "val": held_out})
    run_cli(tmp_path, "train-temporal", features, "run", *SMALL[:-1], 1)
    shown = run_cli(tmp_path, "evaluate", "run", "f").stdout
    assert "and 380 more classes in" in shown
    assert "10 scored" in shown
    assert len(predict(tmp_path / "run", ["t3"], of_features(features)).class_names) == 400
