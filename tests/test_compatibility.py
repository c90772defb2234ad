"""Folders of vtnpipe 0.1 open: features are verified, scored and trained on, and runs resume.

fixtures/v0.1 was written by vtnpipe 0.1.0: features of six videos and one missing one (toy backbone
`block_means`, float32, every second frame, views `centre` and `flip`), and a finished run on them
with predictions of its validation split.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import run_cli
from numbered_videos import write_video
from stage_two import SHAPE
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.plan import read_file_properties, read_plans
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.models.model_folder import read_config
from vtnpipe.pipelines.models.network import VideoTransformerNetwork
from vtnpipe.pipelines.report import report
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import RunFolder

FIXTURE = Path(__file__).parent / "fixtures" / "v0.1"
SETTINGS = TrainTemporalSettings(**SHAPE, epochs=2, attention_window=4, warmup_epochs=1.0)
EXTRACTION = (
    "--frame-stride 2 --views flip --feature-dtype float32 --precision float32 "
    "--backbone toy_backbones:block_means --weights none"
).split()
SAME_SETTINGS = (
    "--layers 1 --heads 2 --intermediate 16 --head-dim 8 --epochs 2 "
    "--attention-window 4 --warmup-epochs 1"
).split()


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A writable copy of the folders of vtnpipe 0.1."""
    shutil.copytree(FIXTURE, tmp_path / "old")
    return tmp_path / "old"


def test_features_open_by_their_present_names(old: Path) -> None:
    store = open_features(old / "features")
    assert store.statuses == {**{f"v{n}": "ok" for n in range(6)}, "lost": "failed"}
    assert store.row_shape == (2, 16)
    spec = store.spec
    assert (spec.views, spec.frame_stride, spec.feature_dtype) == (("center", "flip"), 2, "float32")
    video = store["v2"]
    assert video.features.dtype == np.float32
    assert video.frame_index.tolist() == [2 * n for n in range(len(video.frame_index))]
    assert np.isfinite(video.features).all()
    assert not np.array_equal(video.features[:, 0], video.features[:, 1])


def test_plans_are_read(old: Path) -> None:
    folder = FeatureFolder(old / "features")
    tasks = read_plans(folder, open_features(folder.root).fingerprint)
    assert [task.computation.batch_size for task in tasks] == [8]
    assert {row.video_id for task in tasks for row in task.rows} >= {f"v{n}" for n in range(6)}
    assert read_file_properties(folder)["codec"] == {"h264": 6}


def test_extracted_videos_are_not_extracted_again(old: Path) -> None:
    ran = run_cli(old, "extract", "features/manifest.csv", "features", *EXTRACTION, code=1)
    assert "nothing to do: all videos were extracted before (6 ok, 0 partial, 1 failed)" in (
        ran.stdout
    )
    other = ("--frame-stride", 3, *EXTRACTION[2:])
    ran = run_cli(old, "extract", "features/manifest.csv", "features", *other, code=2)
    assert "frame_stride is 3 here and 2 in the folder" in ran.stderr


@pytest.mark.slow
def test_features_of_more_videos_are_added(old: Path) -> None:
    write_video(old / "new.mp4", 20)
    text = (old / "features/manifest.csv").read_text()
    (old / "m.csv").write_text(text + "new,new.mp4,up,train\n")
    ran = run_cli(old, "extract", "m.csv", "features", *EXTRACTION, code=1)
    assert "videos: 7 ok, 0 partial, 1 failed" in ran.stdout
    run_cli(old, "features", "verify", "features")
    store = open_features(old / "features")
    assert store["new"].frame_index.tolist() == list(range(0, 20, 2))
    assert store.plans["v0"] == 0
    assert store.plans["new"] == 1


def test_features_are_verified_and_shown(old: Path) -> None:
    ran = run_cli(old, "features", "verify", "features")
    assert "features: 1 shards are sound" in ran.stdout
    shown = run_cli(old, "features", "show", "features").stdout
    assert "toy_backbones:block_means, weights none" in shown
    assert "7 of 7: 6 ok, 0 partial, 1 failed" in shown


def test_a_model_gives_the_logits_that_vtnpipe_0_1_stored(old: Path) -> None:
    with np.load(old / "run/predictions/val.npz") as arrays:
        ids, expected = arrays["video_ids"].tolist(), arrays["logits"]
    before = json.loads((old / "run/predictions/val.json").read_text())
    shutil.rmtree(old / "run/predictions")
    result = evaluate(old / "run", old / "features")
    with np.load(old / "run/predictions/val.npz") as arrays:
        assert arrays["video_ids"].tolist() == ids
        np.testing.assert_allclose(arrays["logits"], expected, atol=1e-6, rtol=0)
    after = json.loads((old / "run/predictions/val.json").read_text())
    assert after["counts"] == before["counts"]
    assert after["model"] == before["model"]
    assert after["source"] == before["source"]
    assert result.values["loss"] == pytest.approx(before["metrics"]["loss"], abs=1e-6)


def test_predict_scores_stored_features(old: Path) -> None:
    arguments = ("v2", "v5", "--mode", "features", "--features", "features", "--output", "p.csv")
    ran = run_cli(old, "predict", "run", *arguments)
    assert ran.stdout.count("%  down") == 2
    old_lines = (old / "run/predictions/val.csv").read_text().splitlines()[1:]
    expected = [float(line.split(",")[3]) for line in old_lines]
    found = [float(line.split(",")[3]) for line in (old / "p.csv").read_text().splitlines()[1:]]
    assert found == pytest.approx(expected, abs=2e-6)


def test_reports_show_features_and_stored_predictions(old: Path) -> None:
    page = report(old / "features").read_text()
    assert "toy_backbones:block_means" in page
    assert "one in 2; views: center, flip" in page
    assert "h264" in page
    assert "Throughput" in page
    ran = run_cli(old, "report", "run", "--source", "features")
    assert "vtnpipe evaluate" not in ran.stdout
    page = (old / "run/report.html").read_text()
    assert "<strong>50.0%</strong>top-1" in page
    assert "attention_window" in page


@pytest.mark.parametrize("epochs", [2, 3])
def test_a_run_is_not_continued_by_another_recipe(old: Path, epochs: int) -> None:
    before = {path.name: path.read_bytes() for path in (old / "run").iterdir() if path.is_file()}
    arguments = ("train-temporal", "features", "run", *SAME_SETTINGS, "--epochs", epochs)
    ran = run_cli(old, *arguments, code=2)
    assert "was begun by vtnpipe 0.1" in ran.stderr
    after = {path.name: path.read_bytes() for path in (old / "run").iterdir() if path.is_file()}
    assert after == before


def test_a_model_loads_whole_and_is_saved_in_the_present_version(old: Path) -> None:
    network = VideoTransformerNetwork.from_pretrained(old / "run")
    assert network.config == read_config(RunFolder(old / "run"))
    assert network.config.spec.frame_stride == 2
    assert network.config.class_names == ["down", "up"]
    network.save_pretrained(old / "saved")
    stored = json.loads((old / "saved/config.json").read_text())
    assert (stored["version"], stored["spec"]["views"]) == (2, ["center", "flip"])
    again = VideoTransformerNetwork.from_pretrained(old / "saved")
    for key, tensor in network.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[key].numpy(), tensor.numpy())


def test_features_of_other_settings_are_still_refused(old: Path) -> None:
    config = json.loads((old / "run/config.json").read_text())
    config["identity"]["every"] = 3
    (old / "run/config.json").write_text(json.dumps(config))
    with pytest.raises(FeaturesError, match="frame_stride is 3 here and 2 in the folder"):
        evaluate(old / "run", old / "features")
