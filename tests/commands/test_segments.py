"""Tasks on frames: from drawn videos and annotations to segments, through the command line."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from browser import Browser
from command_line import Vtnpipe, run_cli
from drawn_events import FPS, draw_event_videos
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import read_manifest, write_manifest
from vtnpipe.manifests.segments import read_segments, write_audacity
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.settings import TrainTemporalSettings
from vtnpipe.temporal.checkpoint import read_weights

BACKBONE = ("--backbone", "toy_backbones:mixer", "--weights", "none", "--workers", 2)
FRAMES = ("--task", "frames", "--segments", "segments.csv")
METRICS = ("frame_accuracy", "edit", "f1@10", "f1@25", "f1@50")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten videos of 12 to 20 s with their segments and features, and a run of three epochs."""
    folder = tmp_path_factory.mktemp("segments")
    draw_event_videos(folder, 10, seconds=(12.0, 20.0))
    run_cli(folder, "extract", "videos.csv", "f", *BACKBONE)
    run_cli(folder, "train-temporal", "f", "run", *FRAMES, "--epochs", 3)
    run_cli(folder, "evaluate", "run", "f", "--split", "test")
    return folder


def test_evaluate_writes_metrics_and_segments(folder: Path) -> None:
    ran = run_cli(folder, "evaluate", "run", "f", "--split", "test", "--bootstrap", 50)
    assert "class         accuracy  segments: found of true, predicted" in ran.stdout
    record = json.loads((folder / "run/predictions/test.json").read_text())
    assert all(0 <= record["metrics"][name] <= 1 for name in METRICS)
    assert record["counts"]["scored"] == 2
    low, high = record["intervals"]["frame_accuracy"]
    assert low <= record["metrics"]["frame_accuracy"] <= high
    with np.load(folder / "run/predictions/test.npz") as arrays:
        found, targets = arrays["logits"].argmax(1), arrays["targets"]
        assert arrays["classes"].tolist() == ["background", "give", "take", "wave"]
        assert len(found) == arrays["lengths"].sum() == len(arrays["timestamps"])
    predicted = read_segments(folder / "run/predictions/test.csv")
    assert {one.video_id for one in predicted} <= {"video008", "video009"}
    plain = ("--decoding", "argmax", "--min-seconds", 1e-6)
    run_cli(folder, "evaluate", "run", "f", "--split", "test", *plain)
    record = json.loads((folder / "run/predictions/test.json").read_text())
    expected = float((found == targets).mean())
    assert record["metrics"]["frame_accuracy"] == pytest.approx(expected)


def test_predict_gives_the_same_segments_from_video_and_features(folder: Path) -> None:
    video = read_manifest(folder / "videos.csv")[9].path
    run_cli(folder, "predict", "run", video, "-o", "v.csv")
    run_cli(folder, "predict", "run", video, "--mode", "end-to-end", "-o", "e.json")
    features = ("--mode", "features", "--features", "f")
    run_cli(folder, "predict", "run", *features, "video009", "-o", "f.csv")
    run_cli(folder, "predict", "run", *features, "-o", "tracks")
    one, other = ([s[1:4] for s in read_segments(folder / name)] for name in ("v.csv", "f.csv"))
    assert one == other
    found = json.loads((folder / "e.json").read_text())["results"][video]
    assert [(*s["segment"], s["label"]) for s in found] == one
    assert len(list((folder / "tracks").glob("video*.txt"))) == 10
    run_cli(folder, "predict", "run", *features, "-o", "tracks")  # again, into the same folder
    ran = run_cli(folder, "predict", "run", *features, "-o", "all.txt", code=2)
    assert "a label track is of one video; give a folder for several" in ran.stderr
    ran = run_cli(folder, "predict", "run", *features, "-o", "all.pdf", code=2)
    assert "must end in .csv, .json" in ran.stderr


def test_a_manifest_of_videos_is_evaluated_like_its_features(folder: Path) -> None:
    run_cli(folder, "evaluate", "run", "f", "--split", "test")
    stored = json.loads((folder / "run/predictions/test.json").read_text())["metrics"]
    run_cli(folder, "evaluate", "run", "videos.csv", "--split", "test")
    decoded = json.loads((folder / "run/predictions/test.json").read_text())
    assert decoded["source"] == "videos, chunked"
    for name in METRICS:
        assert decoded["metrics"][name] == pytest.approx(stored[name], abs=0.01)


def test_imported_features_give_the_same_metrics(folder: Path, tmp_path: Path) -> None:
    store = open_features(folder / "f")
    (tmp_path / "arrays").mkdir()
    for video_id in store:
        np.save(tmp_path / f"arrays/{video_id}.npy", store[video_id].features)
    rows = [
        replace(row, path=str(tmp_path / f"arrays/{row.video_id}.npy"))
        for row in read_manifest(folder / "videos.csv")
    ]
    write_manifest(rows, tmp_path / "arrays.csv")
    run_cli(tmp_path, "features", "import", "arrays.csv", "f", "--fps", FPS, "--name", "mine")
    frames = ("--task", "frames", "--segments", folder / "segments.csv")
    run_cli(tmp_path, "train-temporal", "f", "run", *frames, "--epochs", 3)
    run_cli(tmp_path, "evaluate", "run", "f", "--split", "test")
    run_cli(folder, "evaluate", "run", "f", "--split", "test")
    found, expected = (
        json.loads((root / "run/predictions/test.json").read_text())["metrics"]
        for root in (tmp_path, folder)
    )
    assert {name: found[name] for name in METRICS} == {name: expected[name] for name in METRICS}


def test_a_stopped_run_resumes_to_the_same_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainTemporalSettings(
        task="frames", segments=str(folder / "segments.csv"), epochs=3, checkpoint_minutes=0.0
    )

    class KilledError(Exception):
        pass

    def kill(self: object, epoch: int, done: int, total: int) -> None:
        if (epoch, done) == (1, 1):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("vtnpipe.pipelines.training.log.TrainingLog.on_step", kill)
        with pytest.raises(KilledError):
            train_temporal(folder / "f", folder / "killed", settings)
    train_temporal(folder / "f", folder / "killed", settings)
    one, other = (read_weights(folder / name / "model.safetensors") for name in ("run", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_several_classes_a_frame(folder: Path) -> None:
    segments = read_segments(folder / "segments.csv")
    with (folder / "several.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("video_id", "start", "end", "label"))
        for one in segments:
            writer.writerow((one.video_id, one.start, one.end, one.label))
            writer.writerow((one.video_id, one.start, one.end, "event"))
        writer.writerow(("video009", 0.0, 0.5, "background"))
        writer.writerow(("elsewhere", 0.0, 0.5, "event"))
    options = ("--segments", "several.csv", "--epochs", 2)
    ran = run_cli(folder, "train-temporal", "f", "no", "--task", "frames", *options, code=2)
    assert "train with --task frames-multi-label" in ran.stderr
    run_cli(folder, "train-temporal", "f", "several", "--task", "frames-multi-label", *options)
    ran = run_cli(folder, "evaluate", "several", "f", "--split", "test")
    assert "mAP of frames" in ran.stdout
    assert "note: 1 segment of videos that are not in the manifest" in ran.stdout
    report = run_cli(folder, "report", "several", "-o", "several.html")
    assert "have changed" not in report.stdout
    with (folder / "several.csv").open("a", newline="") as file:
        csv.writer(file).writerow(("video009", 0.0, 1.0, "wave"))
    report = run_cli(folder, "report", "several", "--split", "test", "-o", "several.html")
    assert "the segments have changed; run `vtnpipe evaluate" in report.stdout


def test_finetune_segments_videos(folder: Path) -> None:
    small = ("--layers", 1, "--heads", 2, "--intermediate", 16, "--hidden-dim", 8, "--head-dim", 8)
    options = ("--epochs", 1, "--batch-size", 3, "--clip-frames", 12, *small)
    run_cli(folder, "finetune", "videos.csv", "tuned", *FRAMES, *BACKBONE[:4], *options)
    line = json.loads((folder / "tuned/metrics.jsonl").read_text())
    assert line["num_scored"] == 2
    assert 0 <= line["frame_accuracy"] <= 1
    run_cli(folder, "evaluate", "tuned", "videos.csv", "--split", "test")


def test_settings_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(SettingsError, match="--task frames: needs --segments FILE"):
        TrainTemporalSettings(task="frames")
    with pytest.raises(SettingsError, match=r"--segments s\.csv: it is for the tasks frames and"):
        TrainTemporalSettings(segments="s.csv")
    for options, message in (
        (("evaluate", "run", "f", "--clips", 3), "--clips 3: "),
        (("evaluate", "run", "run"), "runs cannot be compared"),
        (("evaluate", "run", "f", "--min-seconds", 1), "--decoding viterbi has none"),
        (("train-temporal", "f", "x", *FRAMES, "--clip-frames", 8), "takes whole videos"),
        (("train-temporal", "f", "x", *FRAMES, "--time-jitter", 1), "takes consecutive frames"),
        (("explain", "run", "video000.mp4", "--prefixes", 3), "--prefixes 3: run segments videos"),
        (("explain", "run", "video000.mp4", "-o", "e.png"), "its name must end in .html"),
        (("train-temporal", "f", "x", *FRAMES, "--encoder", "mean"), "gives no state for each"),
        (("train-temporal", "f", "x", *FRAMES[:3], "no.csv"), "no such segment file"),
    ):  # fmt: skip
        ran = run_cli(folder, *options, code=2)
        assert message in ran.stderr, ran.stderr
    assert not (folder / "x").exists()


def test_manifest_build_makes_segments_of_label_tracks(folder: Path, tmp_path: Path) -> None:
    tracks = tmp_path / "tracks"
    tracks.mkdir()
    segments = read_segments(folder / "segments.csv")
    for number in range(3):
        name = f"video{number:03}"
        write_audacity([one for one in segments if one.video_id == name], tracks / f"{name}.txt")
    build = ("manifest", "build", tracks, "--format", "audacity", "--videos", folder)
    ran = run_cli(tmp_path, *build, "-o", "m.csv")
    assert "m.csv: 3 videos" in ran.stdout
    found = read_segments(tmp_path / "m.segments.csv")
    expected = [one for one in segments if one.video_id in ("video000", "video001", "video002")]
    assert [one[:4] for one in found] == [one[:4] for one in expected]

    with (tracks / "video001.txt").open("a") as file:
        file.write("1.0\t1.0\tpoint\n900\t901\tbeyond\n1\t900\tcut\n")
    (tracks / "gone.txt").write_text("0\t1\tx\n")
    ran = run_cli(tmp_path, *build, "-o", "m.csv", code=1)
    lines = (tmp_path / "m.csv.missing.csv").read_text()
    number = len((tracks / "video001.txt").read_text().splitlines())
    assert f"video001.txt:{number - 2}: start 1 and end 1: a segment must" in lines
    assert f"video001.txt:{number - 1}: start 900 is beyond the end of the video" in lines
    assert f"video001.txt:{number}: end 900 is beyond the end of the video" in lines
    assert "no file named gone" in lines
    assert "4 faults, all in m.csv.missing.csv" in ran.stdout


def test_manifest_build_makes_segments_of_frame_labels(folder: Path, tmp_path: Path) -> None:
    segments = [one for one in read_segments(folder / "segments.csv") if one.video_id == "video004"]
    with av.open(str(folder / "video004.mp4")) as container:
        num_frames = container.streams.video[0].frames
    labels = ["background"] * num_frames
    for one in segments:
        labels[round(one.start * FPS) : round(one.end * FPS)] = [one.label] * round(
            (one.end - one.start) * FPS
        )
    texts = tmp_path / "groundTruth"
    texts.mkdir()
    (texts / "video004.txt").write_text("\n".join(labels))
    build = ("manifest", "build", tmp_path, "--format", "frame-labels", "--videos", folder)
    run_cli(tmp_path, *build, "-o", "m.csv")
    found = [one for one in read_segments(tmp_path / "m.segments.csv") if one.label != "background"]
    assert [one[1:4] for one in found] == [one[1:4] for one in segments]
    (texts / "video004.txt").write_text("\n".join(labels[:-30]))
    ran = run_cli(tmp_path, *build, "-o", "m.csv", code=2)
    assert f"{num_frames - 30} labels, but the video has {num_frames} frames" in ran.stderr


def test_the_pages_show_truth_and_prediction(folder: Path, browser: Browser) -> None:
    run_cli(folder, "evaluate", "run", "f", "--split", "test")
    run_cli(folder, "report", "run")
    browser.open(folder / "run/report.html")
    strips = browser.web.find_elements("css selector", ".strip[data-zoom]")
    assert len(strips) == 2
    titles = [one.text for one in strips[0].find_elements("css selector", ".along > p")]
    assert titles == ["Truth", "Prediction"]
    view = strips[0].find_element("css selector", ".scroll")
    along = view.find_element("css selector", ".along")
    width = along.size["width"]
    view.send_keys("++")
    assert along.size["width"] > 2 * width
    view.send_keys("0")
    assert along.size["width"] == width
    assert browser.faults == []
    run_cli(folder, "explain", "run", "video009.mp4", "-o", "e.html")
    browser.open(folder / "e.html")
    assert browser.web.find_elements("css selector", ".timeline")
    assert browser.faults == []


@pytest.mark.slow
def test_order_and_appearance_are_learned_with_the_defaults(
    tmp_path: Path, vtnpipe: Vtnpipe
) -> None:
    """Held-out videos of 30 to 60 s; a linear probe of single frames cannot know the order."""
    draw_event_videos(tmp_path, 40, seconds=(30.0, 60.0))
    vtnpipe("extract", "videos.csv", "f", "--backbone", "test_vit", "--weights", "none")
    vtnpipe("train-temporal", "f", "run", *FRAMES)
    vtnpipe("evaluate", "run", "f", "--split", "test")
    metrics = json.loads((tmp_path / "run/predictions/test.json").read_text())["metrics"]
    assert metrics["frame_accuracy"] >= 0.95
    assert metrics["f1@50"] >= 0.9
    order = _probe_accuracy(tmp_path)
    assert min(metrics["per_class"][name] for name in ("give", "take")) > order + 0.2


def _probe_accuracy(folder: Path) -> float:
    """Return the accuracy of a linear probe of single frames on frames of give and take."""
    from sklearn.linear_model import LogisticRegression

    store, segments = open_features(folder / "f"), read_segments(folder / "segments.csv")
    rows = {row.video_id: row.split for row in read_manifest(folder / "videos.csv")}
    frames: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    labels: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for one in segments:
        video = store[one.video_id]
        chosen = (video.timestamps >= one.start) & (video.timestamps < one.end)
        frames[rows[one.video_id]].append(video.features[chosen].astype(np.float32))
        labels[rows[one.video_id]] += [one.label] * int(chosen.sum())
    train = np.concatenate(frames["train"])
    center, scale = train.mean(0), train.std(0) + 1e-6
    probe = LogisticRegression(max_iter=300).fit((train - center) / scale, labels["train"])
    found = probe.predict((np.concatenate(frames["test"]) - center) / scale)
    is_order = np.isin(labels["test"], ["give", "take"])
    return float((found == np.array(labels["test"]))[is_order].mean())
