"""`vtnpipe report`: which data a page shows, and the pages in a real browser."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser
from command_line import run_cli
from feature_folders import extract_rows, made_up_features, make_folder
from numbered_videos import write_video
from report_pages import HOSTILE, LENGTH, dense_attention
from rich.console import Console
from stage_two import SETTINGS, SHAPE, SMALL
from vtnpipe.manifests.errors import FeaturesError, SettingsError, VtnpipeError
from vtnpipe.manifests.failures import Failure, write_failures
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, read_manifest, write_manifest
from vtnpipe.pipelines.evaluate import evaluate
from vtnpipe.pipelines.finetune import finetune
from vtnpipe.pipelines.inference.evaluation import EvaluateSettings
from vtnpipe.pipelines.inference.predictions import Predictions, write_predictions
from vtnpipe.pipelines.models.model_folder import NetworkConfig, model_digest, write_model
from vtnpipe.pipelines.report import ReportSettings, report
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.pipelines.training.finetune_settings import FinetuneSettings
from vtnpipe.temporal.checkpoint import RunFolder, read_epochs
from vtnpipe.temporal.config import TaskType, TemporalConfig
from vtnpipe.temporal.metrics import task_metrics
from vtnpipe.temporal.model import TemporalClassifier


def _run(root: Path, labels: tuple[str, str] = ("a", "b"), **changes: Any) -> Path:
    """Train a run `r` on made-up features `f`; evaluate it unless there is nothing to score."""
    splits = {split: {f"{split}{n}": labels[n % 2] for n in range(8)} for split in ("train", "val")}
    made_up_features(root / "f", splits)
    train_temporal(root / "f", root / "r", replace(SETTINGS, **changes))
    return root / "r"


def _notes(run: Path, **settings: Any) -> str:
    printed = io.StringIO()
    report(run, ReportSettings(**settings), console=Console(file=printed, width=300))
    return printed.getvalue()


def test_through_the_command_line(folder: Path) -> None:
    run_cli(folder, "train-temporal", "f", "r", *SMALL)
    ran = run_cli(folder, "report", "r", "--videos", 2)
    assert "split val has not been evaluated; run `vtnpipe evaluate r" in ran.stdout
    assert "r/report.html: " in ran.stdout
    assert not (folder / "r/predictions").exists()
    run_cli(folder, "evaluate", "r", "f", code=1)
    ran = run_cli(folder, "report", "r", "--videos", 2, "--frames", 5)
    assert "note: " not in ran.stdout
    page = (folder / "r/report.html").read_text()
    assert page.count("data-attention>") == 4
    assert page.count("<img ") == 4 * 5
    assert "5 videos expected, 4 scored, 1 missing, 0 partial" in page
    run_cli(folder, "report", "f", "--output", "features.html")
    assert "float32 per frame, computed in float32" in (folder / "features.html").read_text()


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    page = report(folder.root).read_text()
    assert "No video failed" in page


def test_a_report_keeps_to_the_labels_and_the_split_of_its_run(tmp_path: Path) -> None:
    splits = {split: {f"{split}{n}": "ab"[n % 2] for n in range(8)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", splits)
    swapped = [
        replace(row, label={"a": "v", "b": "u"}[row.label], split=row.split.replace("val", "dev"))
        for row in read_manifest(tmp_path / "f/manifest.csv")
    ]
    write_manifest(swapped, tmp_path / "own.csv")
    own = str(tmp_path / "own.csv")
    train_temporal(tmp_path / "f", tmp_path / "r", replace(SETTINGS, manifest=own, val_split="dev"))
    best = [line for line in read_epochs(RunFolder(tmp_path / "r")) if line["is_best"]][-1]
    command = f"vtnpipe evaluate {tmp_path / 'r'} {tmp_path / 'f'} --split dev --manifest {own}"
    assert command in _notes(tmp_path / "r")
    evaluate(tmp_path / "r", tmp_path / "f", EvaluateSettings(split="dev", manifest=own))
    page = report(tmp_path / "r").read_text()
    assert f"<strong>{best['top1']:.1%}</strong>top-1" in page
    assert "split dev" in page
    assert "label u" in page


def test_predictions_are_shown_only_for_the_same_model_features_and_labels(tmp_path: Path) -> None:
    run = _run(tmp_path)
    metrics = evaluate(run, tmp_path / "f").values
    shown = f"<strong>{metrics['top1']:.1%}</strong>top-1"
    assert "note: " not in _notes(run)
    assert shown in (run / "report.html").read_text()
    rows = read_manifest(tmp_path / "f/manifest.csv")
    flipped = [replace(row, label="ab"["ba".index(row.label)]) for row in rows]
    write_manifest(flipped, tmp_path / "f/manifest.csv")
    assert "the labels have changed; run `vtnpipe evaluate" in _notes(run)
    assert "<strong>" not in (run / "report.html").read_text().split('id="extraction"')[0]
    write_manifest([*rows[:-1]], tmp_path / "f/manifest.csv")
    assert "the stored predictions are of other videos" in _notes(run)
    write_manifest(rows, tmp_path / "f/manifest.csv")
    evaluate(run, tmp_path / "f", EvaluateSettings(drop_partial=True))
    assert "another --drop-partial" in _notes(run)
    evaluate(run, tmp_path / "f", EvaluateSettings(manifest=str(tmp_path / "f/manifest.csv")))
    assert "another manifest" in _notes(run)
    evaluate(run, tmp_path / "f")
    record = json.loads((run / "predictions/val.json").read_text())
    for changes, words in (({"source": "features x"}, "other features"), ({"model": "x"}, "model")):
        (run / "predictions/val.json").write_text(json.dumps({**record, **changes}))
        assert f"the stored predictions are of {'another ' * (words == 'model')}{words}" in (
            _notes(run)
        )


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    run = _run(tmp_path)
    evaluate(run, tmp_path / "f")
    for name in ("val.npz", "val.json"):
        (run / "predictions" / name).write_bytes(b"")
        with pytest.raises(FeaturesError, match=name):
            report(run)
    evaluate(run, tmp_path / "f")
    (run / "model.safetensors").unlink()
    with pytest.raises(FeaturesError, match=r"model\.safetensors: missing"):
        report(run)


@pytest.mark.parametrize(
    ("task", "labels", "words"),
    [
        ("multi-label", ("a|b", "b"), "Average precision"),
        ("regression", ("1.5", "4"), "Predicted against labeled"),
    ],
)
def test_reports_of_other_tasks(
    task: TaskType, labels: tuple[str, str], words: str, tmp_path: Path
) -> None:
    splits = {split: {f"{split}{n}": labels[n % 2] for n in range(8)} for split in ("train", "val")}
    made_up_features(tmp_path / "f", splits, views=("center", "flip"))
    train_temporal(tmp_path / "f", tmp_path / "r", replace(SETTINGS, task=task))
    evaluate(tmp_path / "r", tmp_path / "f")
    page = report(tmp_path / "r", ReportSettings(videos=1)).read_text()
    assert words in page
    assert page.count("data-attention>") == 2
    assert 'id="confusion"' not in page


def test_a_model_without_cls_has_frames_but_no_attention(tmp_path: Path) -> None:
    run = _run(tmp_path, encoder="mean")
    evaluate(run, tmp_path / "f")
    page = report(run, ReportSettings(videos=3)).read_text()
    assert page.count('<figure class="strip"') == 6
    assert "data-attention>" not in page


def test_a_report_of_a_finetuned_run_decodes_what_it_shows(tmp_path: Path) -> None:
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
        short_side_min=64, short_side_max=64, **SHAPE,
    )  # fmt: skip
    finetune(tmp_path / "m.csv", tmp_path / "r", settings)
    assert "split val has not been evaluated; run `vtnpipe evaluate" in _notes(tmp_path / "r")
    evaluate(tmp_path / "r", tmp_path / "m.csv")
    page = report(tmp_path / "r").read_text()
    assert page.count("data-attention>") == 4
    assert page.count("<img ") == 40
    Path(rows[2].path).unlink()
    assert "only 3 videos are shown" in _notes(tmp_path / "r")


def test_partial_videos_are_shown_with_what_is_lost(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    path = str(write_video(tmp_path / "v.mp4", 30))
    extract_rows(folder, [VideoRow(video_id="v", path=path, label="a")])
    failure = Failure("v", path, "partial", "damaged", "<b>broken</b>", 3)
    write_failures([failure], folder.failures)
    page = report(folder.root).read_text()
    assert "30 frames stored, 3 lost" in page
    assert "<b>broken</b>" not in page
    assert page.count("<img ") == 10


def test_invalid_input_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path)
    monkeypatch.chdir(tmp_path)
    settings: dict[str, Any]
    for run, settings, message in (
        ("none", {}, "not a model or run folder"),
        ("r", {"output": "no/r.html"}, "--output no/r.html: its folder is missing"),
        ("r", {"source": "none"}, "--source none: no such feature folder"),
        ("f", {"source": "f"}, "--source f: f is a feature folder"),
        ("f", {"videos": 2}, "--videos 2: f is a feature folder"),
    ):
        with pytest.raises(VtnpipeError, match=message):
            report(run, ReportSettings(**settings))
    with pytest.raises(SettingsError, match="--frames 0"):
        ReportSettings(frames=0)


def test_a_run_without_its_source_still_has_a_page(tmp_path: Path) -> None:
    run = _run(tmp_path)
    evaluate(run, tmp_path / "f")
    (tmp_path / "f").rename(tmp_path / "moved")
    assert f"{tmp_path / 'f'} is gone" in _notes(run)
    page = (run / "report.html").read_text()
    assert "Curves" in page
    assert "</strong>top-1" in page
    assert '<figure class="strip"' not in page
    assert "is gone" not in _notes(run, source=str(tmp_path / "moved"))
    shutil.rmtree(run / "predictions")
    assert "has not been evaluated" in _notes(run)


@pytest.fixture(scope="module")
def page(pages: Path) -> Path:
    """The report of the run `r`, with its predictions."""
    evaluate(pages / "r", pages / "f")
    return report(pages / "r", ReportSettings(videos=2))


@pytest.mark.slow
def test_a_runs_page(pages: Path, page: Path, browser: Browser) -> None:
    browser.open(page)
    assert browser.faults == []
    assert browser.run("return document.title") == "r – vtnpipe"
    record = json.loads((pages / "r/predictions/val.json").read_text())
    top1 = f"{record['metrics']['top1']:.1%}"
    assert f"{top1}top-1" in browser.texts(".metrics li")[0].replace("\n", "")
    low, high = record["intervals"]["top1"]
    assert f"95%: {low:.1%} to {high:.1%}" in browser.texts(".metrics li")[0]

    num_epochs = len((pages / "r/metrics.jsonl").read_text().splitlines())
    counts = browser.run(
        "return [...document.querySelectorAll('#curves svg[role=img]')]"
        ".map(e => e.querySelectorAll('circle').length)"
    )
    # Learning rate; two losses; top-1, top-5 and mean class accuracy.
    # The learning rate; losses; top-1 and mean class accuracy, as top-5 of two classes is always 1.
    assert sorted(counts) == [num_epochs, 2 * num_epochs, 2 * num_epochs]
    assert browser.count("#curves .mark") == 3
    cells = [int(text) for text in browser.texts(".matrix tbody td")]
    assert cells == [n for row in record["metrics"]["confusion"] for n in row]
    assert HOSTILE in browser.texts(".matrix tbody th")
    assert browser.count(".strip[data-attention]") == 4
    assert browser.count("#videos img") == 40
    alts = browser.run("return [...document.querySelectorAll('img')].map(e => e.alt)")
    assert all(alt.startswith("frame ") for alt in alts)


@pytest.mark.slow
@pytest.mark.usefixtures("page")
def test_the_attention_of_any_layer_and_head_is_the_models(pages: Path, browser: Browser) -> None:
    report(pages / "r", ReportSettings(videos=1, output=str(pages / "one.html")))
    browser.open(pages / "one.html")
    (video_id, _) = browser.texts(".strip[data-attention] .title")
    expected = dense_attention(pages, video_id)  # [2, 2, 1 + T]
    own = browser.run(
        "return JSON.parse(document.querySelector('.strip[data-attention] script').textContent)"
        ".cls_to_cls"
    )
    torch.testing.assert_close(torch.tensor(own), expected[..., 0], atol=1e-5, rtol=0)
    first = torch.tensor(browser.bars(0))  # at first the last layer, the mean of its heads
    torch.testing.assert_close(first, expected[1].mean(0)[1:], atol=1e-5, rtol=0)
    for layer, head, wanted in (
        (1, "mean", expected[1].mean(0)),
        (0, "mean", expected[0].mean(0)),
        (0, "1", expected[0, 1]),
    ):
        browser.choose(0, layer, head)
        drawn = torch.tensor(browser.bars(0))
        assert len(drawn) == LENGTH
        torch.testing.assert_close(drawn, wanted[1:], atol=1e-5, rtol=0)
        assert abs(float(drawn.sum()) + float(wanted[0]) - 1) < 1e-5


@pytest.mark.slow
def test_tables_are_sorted_by_a_click_on_their_head(page: Path, browser: Browser) -> None:
    browser.open(page)
    browser.web.find_element("css selector", "#curves details summary").click()
    head = browser.web.find_element("css selector", "#curves th:first-child button")
    epochs = [f"{n}" for n in range(1, 4)]
    first = "#curves tbody td:first-child"
    assert browser.texts(first) == epochs
    head.click()
    head.send_keys("\n")  # and by the keyboard
    assert browser.texts(first) == epochs[::-1]
    sort = browser.run("return document.querySelector('#curves th').getAttribute('aria-sort')")
    assert sort == "descending"


@pytest.mark.slow
def test_a_feature_folders_page(pages: Path, browser: Browser) -> None:
    run_cli(pages, "report", "f")
    browser.open(pages / "f/report.html", 390, is_dark=True)
    assert browser.faults == []
    assert browser.overflow == 0
    metrics = [text.replace("\n", "") for text in browser.texts("#extraction .metrics li")]
    assert metrics[:3] == ["12videos ok", "1videos partial", "1videos failed"]
    reasons = browser.texts("#extraction table")[0]
    assert "truncated" in reasons
    assert "missing" in reasons
    store = open_features(pages / "f")
    assert browser.count("#extraction .strip img") == min(10, store.num_frames("cut"))
    assert "calm" in browser.texts("#extraction table")[2]
    # Sizes and rates of files are folded away.
    browser.run("document.querySelector('#extraction details').open = true")
    properties = browser.texts("#extraction table")[3]
    assert "h264" in properties
    assert "128x64" in properties
    counted = browser.run(
        "return [...document.querySelectorAll('#statistics .chart')][0]"
        ".querySelectorAll('rect').length"
    )
    assert counted == 24
    facts = " ".join(browser.texts("#statistics .facts"))
    assert f"{sum(map(store.num_frames, store)):,} frames of {len(store)} videos" in facts


@pytest.mark.slow
@pytest.mark.parametrize("is_dark", [False, True])
def test_pages_fit_a_phone_and_have_enough_contrast(
    page: Path, browser: Browser, is_dark: bool
) -> None:
    browser.open(page, 390, is_dark=is_dark)
    assert browser.overflow == 0
    assert browser.faults == []
    colors = browser.run(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    assert _contrast(*colors) > 7


def _contrast(one: str, other: str) -> float:
    """Return WCAG's contrast of two colors, each `rgb(r, g, b)`."""
    lights = []
    for color in (one, other):
        parts = [int(part) / 255 for part in color[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def _large_run(root: Path, clips: dict[str, Path]) -> Path:
    """Write a run of 400 classes with predictions of 20,000 videos."""
    classes = [f"class {number:03d}" for number in range(400)]
    labels = {f"v{number:05d}": classes[number % 400] for number in range(20_000)}
    made_up_features(root / "f", {"val": labels}, paths=[*clips.values()])
    rows = read_manifest(root / "f/manifest.csv")
    store = open_features(root / "f")
    torch.manual_seed(0)
    config = NetworkConfig(
        spec=store.spec,
        temporal=TemporalConfig(
            feature_dim=16, num_classes=400, num_heads=4, intermediate_dim=16, head_dim=8
        ),
        class_names=classes,
    )
    files = RunFolder(root / "r")
    files.root.mkdir()
    write_model(files, TemporalClassifier(config.temporal), config)
    targets = torch.arange(20_000) % 400
    logits = torch.randn(20_000, 400)
    logits[torch.arange(20_000), targets] += 2
    logits[torch.arange(20_000), (targets + 7) % 400] += 1  # each class has a rival
    metrics = task_metrics(logits, targets, classes, config.temporal)
    counts = {"expected": 20_000, "scored": 20_000, "missing": 0, "partial": 0}
    record: dict[str, Any] = {
        "settings": vars(EvaluateSettings()), "faults": [], "classes": classes,
        "source": f"features {store.fingerprint}", "model": model_digest(files.kept),
        "metrics": vars(metrics), "intervals": {}, "counts": counts,
    }  # fmt: skip
    video_ids = [row.video_id for row in rows]
    found = Predictions(video_ids=video_ids, logits=logits, targets=targets, record=record)
    write_predictions(files.predictions, "val", found, rows, config)
    return files.root


@pytest.mark.slow
def test_400_classes_and_20_000_videos(
    tmp_path: Path, clips: dict[str, Path], browser: Browser
) -> None:
    run = _large_run(tmp_path, clips)
    page = report(run, ReportSettings(source=str(tmp_path / "f")))
    assert page.stat().st_size < 10e6
    browser.open(page)
    assert browser.faults == []
    assert browser.count("#classes tbody tr") == 400
    assert browser.count(".strip[data-attention]") == 8
    canvas = "document.querySelector('.overview canvas')"
    assert browser.run(f"return {canvas}.width") == 800
    painted = browser.run(
        f"const c = {canvas}; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height)"
        ".data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n"
    )
    with np.load(run / "predictions/val.npz") as arrays:
        found = np.unique(np.stack([arrays["targets"], arrays["logits"].argmax(1)]), axis=1)
    assert painted == 4 * found.shape[1]  # a cell has two by two pixels

    browser.web.find_element("css selector", ".overview canvas").send_keys("")
    browser.run(f"{canvas}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight'}}))")
    (text,) = browser.texts(".overview output")
    assert "of 50 videos" in text
    browser.web.find_elements("css selector", "#classes th button")[2].click()
    values = browser.run(
        "return [...document.querySelectorAll('#classes tbody td:nth-child(3)')]"
        ".map(e => +e.dataset.value)"
    )
    assert values == sorted(values)
