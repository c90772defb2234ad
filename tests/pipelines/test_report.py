"""What `vtnpipe report` counts and chooses; how its pages look is in test_pages.py."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import extract_rows, made_up_features, make_folder
from numbered_videos import write_video
from rich.console import Console
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest
from vtnpipe.manifests.plan import PlannedRow, Speed, read_kinds, read_sizes, write_plan
from vtnpipe.manifests.shards import VideoPart, open_features, write_shard
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.finetune import FinetuneSettings, finetune
from vtnpipe.pipelines.html.attention import bar_starts
from vtnpipe.pipelines.html.confusion import Confusion
from vtnpipe.pipelines.html.features_page import extraction_section
from vtnpipe.pipelines.html.plots import histogram, line_chart, scatter_chart
from vtnpipe.pipelines.html.run_page import prediction_lines, read_lines
from vtnpipe.pipelines.html.thumbnails import Wanted, even_places, thumbnails
from vtnpipe.pipelines.inference.predictions import Predictions
from vtnpipe.pipelines.models.model_folder import NetworkConfig
from vtnpipe.pipelines.report import ReportSettings, report
from vtnpipe.pipelines.train_temporal import TrainTemporalSettings, train_temporal
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.run_folder import RunFolder

SMALL: dict[str, Any] = {"layers": 1, "heads": 2, "intermediate": 16, "head_dim": 8, "epochs": 2}


def test_a_confusion_names_its_worst_pairs() -> None:
    counts = np.array([[5, 0, 5, 0], [0, 9, 0, 1], [3, 0, 7, 0], [0, 0, 0, 0]])
    confusion = Confusion(classes=list("abcd"), counts=counts)
    found = [(pair.label, pair.predicted, pair.num_videos, pair.share) for pair in confusion.pairs]
    assert found == [("a", "c", 5, 0.5), ("c", "a", 3, 0.3), ("b", "d", 1, 0.1)]
    order = confusion.together
    assert sorted(order) == [0, 1, 2, 3]
    assert abs(order.index(0) - order.index(2)) == 1
    assert abs(order.index(1) - order.index(3)) == 1
    assert sum(n for _, _, n in confusion.data["cells"]) == counts.sum()
    image = confusion.image()
    assert image.shape == (400, 400, 3)
    assert (image[350, 50] == 255).all()  # nothing there
    assert image[50, 250, 0] == 255  # wrong: red
    assert image[50, 250, 1] < 255
    assert len(set(image[50, 50].tolist())) == 1  # right: gray


def test_the_table_of_many_classes_is_that_of_the_worst_pairs() -> None:
    counts = np.diag(np.full(100, 10))
    counts[70, 3] = 8
    confusion = Confusion(classes=[f"c{n}" for n in range(100)], counts=counts)
    assert not confusion.is_small
    assert [name for name, _ in confusion.table] == ["c70", "c3"]
    assert confusion.table[0][1][1].num_videos == 8


def test_charts_have_a_mark_for_each_value() -> None:
    chart = line_chart("x", {"a": [(1, 0.5), (2, None), (3, 0.75)]}, x_label="s", is_share=True)
    assert chart is not None
    assert [dot.text for dot in chart.lines[0].dots] == ["a, 1: 50%", "a, 3: 75%"]
    assert chart.summary == "x: a from 50% to 75%"
    assert line_chart("x", {"a": [(1, None)]}, x_label="s") is None
    bars = histogram("h", [1.0, 1.0, 2.0, float("nan")], x_label="s", unit="videos", num_bins=4)
    assert bars is not None
    assert [bar.text.split(": ")[1] for bar in bars.bars] == [
        *("2 videos", "0 videos", "0 videos", "1 videos")
    ]
    assert histogram("h", [], x_label="s", unit="videos") is None


def test_values_that_differ_by_rounding_are_one_bar() -> None:
    chart = histogram("h", [0.3, 0.1 + 0.2, 0.3], x_label="s", unit="videos")
    assert chart is not None
    assert [bar.text.split(": ")[1] for bar in chart.bars if "0 videos" not in bar.text] == [
        "3 videos"
    ]
    one = line_chart("x", {"a": [(1, 1.0)]}, x_label="epoch", is_share=True, is_whole=True)
    assert one is not None
    assert [tick.text for tick in one.x_ticks] == ["1"]
    assert all(float(tick.text.rstrip("%")) <= 100 for tick in one.y_ticks)
    assert scatter_chart("s", [(1.0, float("nan"))], x_label="label", unit="videos") is None


def test_strips_take_frames_evenly_over_the_time() -> None:
    times = np.concatenate([np.arange(10) / 10, [5.0, 9.0]])  # most frames in the first second
    assert even_places(times, 2) == [9, 10]
    assert even_places(times, 50) == even_places(times, 12)
    assert bar_starts(1000, 400).tolist() == [n * 1000 // 400 for n in range(400)]


def _store(root: Path, features: np.ndarray[Any, Any]) -> FeatureFolder:
    """A folder of one video with these features, at 10 frames a second."""
    folder = make_folder(root, "toy_backbones:block_means")
    write_manifest([VideoRow(video_id="v", path=str(root / "v.mp4"), label="a")], folder.manifest)
    extraction = json.loads(folder.extraction.read_text())
    part = VideoPart(
        video_id="v",
        features=features.astype(np.float32),
        frame_index=np.arange(len(features)),
        timestamps=np.arange(len(features)) / 10,
        status="ok",
    )
    write_shard(
        folder.shards / "000-00000.h5",
        [part],
        row_shape=features.shape[1:],
        dtype="float32",
        fingerprint=extraction["fingerprint"],
        views=("center",),
        settings={},
    )
    return folder


def test_statistics_find_dead_dimensions_and_frozen_pictures(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((40, 16))
    features[:, [3, 7]] = 0.25
    features[20:30] = features[20]  # nine pairs of neighbors that are alike
    folder = _store(tmp_path / "f", features)
    section = extraction_section(open_features(folder.root), {}, num_frames=4)
    facts = dict(section.statistics.facts)
    assert facts["dead dimensions"] == "2 of 16 never change: 3, 7"
    assert facts["neighboring frames alike"] == f"{9 / 39:.2%} have a cosine above 0.999"
    norms = np.linalg.norm(features, axis=1)
    assert facts["norms"].startswith(f"{norms.min():.3g} to {norms.max():.3g}")
    ((video, frames, share),) = section.statistics.repeats.rows
    assert (video.text, frames.value) == ("v", 40)
    assert share.value == pytest.approx(9 / 39)


def test_statistics_name_what_is_not_finite_and_what_is_all_alike(tmp_path: Path) -> None:
    features = np.random.default_rng(0).standard_normal((40, 16))
    features[5, 3], features[9, 0] = np.nan, np.inf
    facts = dict(
        extraction_section(
            open_features(_store(tmp_path / "f", features).root), {}, num_frames=4
        ).statistics.facts
    )
    assert facts["NOT FINITE"] == "2 frames hold NaN or infinity: v (2)"
    assert facts["dead dimensions"] == "0 of 16 never change"
    for name, length, words in (("g", 1, None), ("h", 3, "16 of 16 never change")):
        folder = _store(tmp_path / name, np.full((length, 16), 0.1))
        facts = dict(
            extraction_section(open_features(folder.root), {}, num_frames=4).statistics.facts
        )
        assert facts.get("dead dimensions") == words


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    page = report(folder.root).read_text()
    assert "No video failed" in page


def test_plans_say_what_files_are(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    for kinds in ({"codec": {"h264": 2, "vp9": 1}}, {}, {"codec": {"h264": 3}}):
        write_plan(folder, [], "f", Speed(8), kinds)
    assert read_kinds(folder) == {"codec": {"h264": 5, "vp9": 1}}


def _run(root: Path, **settings: Any) -> Path:
    """A run `r` on made-up features `f` of two classes."""
    splits = {split: {f"{split}{n}": "ab"[n % 2] for n in range(8)} for split in ("train", "val")}
    made_up_features(root / "f", splits)
    train_temporal(root / "f", root / "r", TrainTemporalSettings(**SMALL, **settings))
    return root / "r"


def test_a_report_keeps_to_the_labels_and_the_split_of_its_run(tmp_path: Path) -> None:
    splits = {split: {f"{split}{n}": "ab"[n % 2] for n in range(8)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", splits)
    swapped = [
        VideoRow(video_id=row.video_id, path=row.path, label="uv"["ba".index(row.label)],
                 split={"val": "dev"}.get(row.split, row.split))
        for row in read_manifest(tmp_path / "f/manifest.csv")
    ]  # fmt: skip
    write_manifest(swapped, tmp_path / "own.csv")
    settings = TrainTemporalSettings(**SMALL, manifest=str(tmp_path / "own.csv"), val_split="dev")
    train_temporal(tmp_path / "f", tmp_path / "r", settings)
    best = [line for line in read_lines(RunFolder(tmp_path / "r")) if line["is_best"]][-1]
    page = report(tmp_path / "r").read_text()
    assert f"<strong>{best['top1']:.1%}</strong>top-1" in page
    assert "split dev" in page
    assert "label u" in page


def test_stored_predictions_are_shown_only_where_they_are_those(tmp_path: Path) -> None:
    run = _run(tmp_path)
    evaluate(run, tmp_path / "f")
    said = io.StringIO()
    report(run, console=Console(file=said, width=300))
    assert "evaluating" not in said.getvalue()
    before = (run / "predictions/val.json").read_bytes()
    rows = read_manifest(tmp_path / "f/manifest.csv")
    flipped = [
        VideoRow(video_id=r.video_id, path=r.path, label="ab"["ba".index(r.label)], split=r.split)
        for r in rows
    ]
    write_manifest(flipped, tmp_path / "f/manifest.csv")
    page = report(run, console=Console(file=said, width=300)).read_text()
    assert "its labels have changed since: evaluating it" in said.getvalue()
    assert (run / "predictions/val.json").read_bytes() == before  # whoever made them keeps them
    metrics = evaluate(run, tmp_path / "f").figures
    assert f"<strong>{metrics['top1']:.1%}</strong>top-1" in page
    for name in ("val.npz", "val.json"):
        (run / "predictions" / name).write_bytes(b"")
        with pytest.raises(FeaturesError, match="evaluate again"):
            report(run)
    (run / "model.safetensors").unlink()
    with pytest.raises(FeaturesError, match=r"model.safetensors: missing"):
        report(run, ReportSettings(split="train"))


def test_a_run_is_resumed_from_wherever_its_files_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = TrainTemporalSettings(**SMALL, manifest="f/manifest.csv")
    train_temporal("f", "r", relative)  # the same rows
    settings = json.loads((run / "settings.json").read_text())
    assert settings["command"] == "train-temporal"
    del settings["source"]  # begun before it was noted
    (run / "settings.json").write_text(json.dumps(settings))
    (tmp_path / "f").rename(tmp_path / "moved")
    train_temporal("moved", "r", TrainTemporalSettings(**SMALL))
    assert json.loads((run / "settings.json").read_text())["source"] == str(tmp_path / "moved")
    assert "is gone" not in report(run).read_text()
    with pytest.raises(SettingsError, match="holds a run of `vtnpipe train-temporal`"):
        finetune(tmp_path / "moved/manifest.csv", run, FinetuneSettings(from_="none"))
    with pytest.raises(SettingsError, match="--fps 5 with --frame-stride 2"):
        FinetuneSettings(from_="none", fps=5, frame_stride=2)


def test_a_right_answer_of_several_classes_is_right() -> None:
    temporal = TemporalConfig(feature_dim=4, num_classes=3, num_heads=2, task="multi-label")
    config = NetworkConfig(identity={}, temporal=temporal, class_names=list("abc"))
    logits = torch.tensor([[1.0, 2.0, -1.0], [1.0, -1.0, -1.0]])
    targets = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    found = Predictions(video_ids=["v", "w"], logits=logits, targets=targets, record={})
    assert prediction_lines(config, found, 0)[0] == "label a|b, predicted a|b: right"
    assert prediction_lines(config, found, 1)[0] == "label a|b, predicted a: wrong"


def test_pictures_are_never_another_files(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 30)
    row = VideoRow(video_id="v", path=str(path), label="a")
    index, times = np.arange(30), np.arange(30) / 25
    good = Wanted.of(row, [3, 20], index, times, path.stat().st_size)
    pictures = thumbnails({"v": good})["v"]
    assert pictures.note == ""
    assert all(one.uri for one in pictures.thumbnails)
    for wanted, words in (
        (good._replace(size=17), "has changed since, from 17 to"),
        (good._replace(ranks=[3, 40]), "has other frames"),
        (good._replace(seconds=[0.12, 1.5]), "has other frames"),
        (good._replace(row=VideoRow(video_id="v", path="/none.mp4")), "missing"),
    ):
        pictures = thumbnails({"v": wanted})["v"]
        assert words in pictures.note
        assert not any(one.uri for one in pictures.thumbnails)


def test_sizes_are_those_of_the_newest_plan(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    for size in (1, 2):
        rows = [PlannedRow(f'v"{n}"', "v.mp4", None, None, 10 * size + n, 0) for n in range(5)]
        write_plan(folder, [rows[:2], rows[2:]], "f", Speed(8))
    assert read_sizes(folder, ['v"1"', 'v"4"', "none"]) == {'v"1"': 21, 'v"4"': 24}


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("multi-label", ("a|b", "b"), "Average precision"),
        ("regression", ("1.5", "4"), "Predicted against labelled"),
    ],
)
def test_reports_of_other_tasks(
    task: str, labels: tuple[str, str], words: str, tmp_path: Path
) -> None:
    splits = {split: {f"{split}{n}": labels[n % 2] for n in range(8)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", splits, views=("center", "flip"))
    settings = TrainTemporalSettings(**SMALL, task=task)  # type: ignore[arg-type]
    train_temporal(tmp_path / "f", tmp_path / "r", settings)
    page = report(tmp_path / "r", ReportSettings(videos=1)).read_text()
    assert words in page
    assert page.count("data-attention>") == 2
    assert 'id="confusion"' not in page


def test_a_model_without_cls_has_frames_but_no_attention(tmp_path: Path) -> None:
    splits = {split: {f"{split}{n}": "ab"[n % 2] for n in range(6)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", splits)
    settings = TrainTemporalSettings(**SMALL, encoder="mean")
    train_temporal(tmp_path / "f", tmp_path / "r", settings)
    page = report(tmp_path / "r").read_text()
    assert page.count('<figure class="strip"') == 6  # six videos are three worst and three best
    assert "data-attention>" not in page


def test_a_finetuned_runs_report_decodes_what_it_shows(tmp_path: Path) -> None:
    rows = [
        VideoRow(
            video_id=f"v{n}",
            path=str(write_video(tmp_path / f"{n}.mp4", 20, first=50 * n)),
            label="ab"[n % 2],
            split=("train", "val")[n // 2 % 2],
        )
        for n in range(8)
    ]
    write_manifest(rows, tmp_path / "m.csv")
    settings = FinetuneSettings(
        backbone="toy_backbones:block_means", weights="none", from_="none", num_workers=0, epochs=1,
        layers=1, heads=2, intermediate=16, head_dim=8, short_side_min=64, short_side_max=64,
    )  # fmt: skip
    finetune(tmp_path / "m.csv", tmp_path / "r", settings)
    page = report(tmp_path / "r").read_text()
    assert "has not been evaluated" in page  # decoding a split takes hours: it says how
    evaluate(tmp_path / "r", tmp_path / "m.csv")
    page = report(tmp_path / "r").read_text()
    assert page.count("data-attention>") == 4
    assert page.count("<img ") == 40


def test_partial_videos_are_shown_with_what_is_lost(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    path = write_video(tmp_path / "v.mp4", 30)
    extract_rows(folder, [VideoRow(video_id="v", path=str(path), label="a")])
    header = "video_id,path,status,reason,message,num_lost_frames"
    folder.failures.write_text(f"{header}\nv,{path},partial,damaged,<b>broken</b>,3\n")
    page = report(folder.root).read_text()
    assert "30 frames stored, 3 lost" in page
    assert "<b>broken</b>" not in page
    assert page.count("<img ") == 10
