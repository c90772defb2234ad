"""The pages of `vtnpipe report` and `vtnpipe explain`: opened in a real Chromium, and compared with
the model.
"""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, open_browser
from command_line import run_cli
from feature_folders import made_up_features
from longformer_reference import dense_cls_attention, longformer_model
from numbered_videos import write_video
from rich.console import Console
from torch import Tensor
from vtnpipe.manifests.errors import FeaturesError, SettingsError, VtnpipeError
from vtnpipe.manifests.manifest import read_manifest
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.evaluate import EvaluateSettings, evaluate
from vtnpipe.pipelines.explain import ExplainSettings, explain
from vtnpipe.pipelines.inference.predictions import Predictions, write_predictions
from vtnpipe.pipelines.models.model_folder import (
    NetworkConfig,
    load_temporal,
    model_digest,
    read_config,
    write_model,
)
from vtnpipe.pipelines.report import ReportSettings, report
from vtnpipe.temporal.batch import frame_positions
from vtnpipe.temporal.config import TemporalConfig
from vtnpipe.temporal.metrics import task_metrics
from vtnpipe.temporal.model import TemporalClassifier
from vtnpipe.temporal.run_folder import RunFolder

HOSTILE = "<script>document.title = 'taken over'</script>"
LENGTH = 30
SMALL = "--layers 2 --heads 2 --intermediate 16 --head-dim 8 --epochs 3 --optimizer adamw".split()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of clips, one with a hostile name and one damaged clip: features `f`, run `r`."""
    root = tmp_path_factory.mktemp("pages")
    lines = ["video_id,path,label,split"]
    for number in range(12):
        path = write_video(root / f"{number}.mp4", LENGTH, first=number * 200)
        label = "calm" if number < 6 else HOSTILE
        lines.append(f'v{number},{path.name},"{label}",{("train", "val")[number % 2]}')
    whole = write_video(root / "whole.mkv", LENGTH).read_bytes()
    (root / "cut.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    lines += ["cut,cut.mkv,calm,train", "gone,none.mp4,calm,train"]
    (root / "m.csv").write_text("\n".join(lines) + "\n")
    means = (
        "--backbone",
        "toy_backbones:block_means",
        "--weights",
        "none",
        "--feature-dtype",
        "float32",
    )
    run_cli(root, "extract", "m.csv", "f", *means, code=1)
    run_cli(root, "train-temporal", "f", "r", *SMALL)
    return root


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    """The run's report, by the command line."""
    ran = run_cli(folder, "report", "r", "--videos", 2)
    assert "split val has not been evaluated: evaluating it" in ran.stdout
    assert not (folder / "r/predictions").exists()
    evaluate(folder / "r", folder / "f")
    said = io.StringIO()
    report(folder / "r", ReportSettings(videos=2), console=Console(file=said, width=200))
    assert "evaluating" not in said.getvalue()
    assert "r/report.html" in ran.stdout
    return folder / "r/report.html"


def _dense(folder: Path, video_id: str) -> Tensor:
    """[CLS]'s attention [L, H, 1 + T], by transformers' model and dense products."""
    files = RunFolder(folder / "r")
    ours = load_temporal(files, read_config(files))
    theirs = longformer_model(ours.config).eval()
    theirs.load_state_dict(ours.encoder.model.state_dict())  # type: ignore[union-attr]
    video = open_features(folder / "f")[video_id]
    positions = frame_positions(video.timestamps, video.frame_index, position_fps=25.0)
    features = torch.from_numpy(np.array(video.features, dtype=np.float32))[None]
    places = torch.from_numpy(positions)[None]
    with torch.inference_mode():
        return dense_cls_attention(
            theirs,
            ours.encoder.cls_token,
            features,
            places,
            torch.ones_like(places).bool(),  # type: ignore[arg-type]
        )[0]


def _drawn(browser: Browser, strip: int, layer: int, head: str) -> list[float]:
    """The values of a strip's bars after its layer and head were chosen."""
    script = """
        const figure = document.querySelectorAll('.strip[data-attention]')[arguments[0]];
        const [layer, head] = figure.querySelectorAll('select');
        layer.value = arguments[1];
        head.value = arguments[2];
        layer.dispatchEvent(new Event('change'));
        head.dispatchEvent(new Event('change'));
        return [...figure.querySelectorAll('.attention rect')].map(bar => +bar.dataset.value);
    """
    found: list[float] = browser.run(script, strip, str(layer), head)
    return found


def test_a_runs_report(folder: Path, page: Path, browser: Browser) -> None:
    browser.open(page)
    assert browser.faults == []
    assert browser.run("return document.title") == "r – vtnpipe"
    record = json.loads((folder / "r/predictions/val.json").read_text())
    top1 = f"{record['metrics']['top1']:.1%}"
    assert f"{top1}top-1" in browser.texts(".figures li")[0].replace("\n", "")
    low, high = record["intervals"]["top1"]
    assert f"95%: {low:.1%} to {high:.1%}" in browser.texts(".figures li")[0]

    dots = [len(open_lines(folder)), 2 * len(open_lines(folder)), 3 * len(open_lines(folder))]
    counts = browser.run(
        "return [...document.querySelectorAll('#curves svg[role=img]')]"
        ".map(e => e.querySelectorAll('circle').length)"
    )
    assert sorted(counts) == dots  # learning rate; two losses; top-1, top-5, mean class accuracy
    cells = [int(text) for text in browser.texts(".matrix tbody td")]
    assert cells == [n for row in record["metrics"]["confusion"] for n in row]
    assert HOSTILE in browser.texts(".matrix tbody th")
    assert browser.count(".strip[data-attention]") == 4
    assert browser.count("#videos img") == 40
    assert all(alt.startswith("frame ") for alt in browser.run(
        "return [...document.querySelectorAll('img')].map(e => e.alt)"
    ))  # fmt: skip


def open_lines(folder: Path) -> list[str]:
    return (folder / "r/metrics.jsonl").read_text().splitlines()


@pytest.mark.usefixtures("page")
def test_attention_drawn_is_the_models(folder: Path, browser: Browser) -> None:
    report(folder / "r", ReportSettings(videos=1, output=str(folder / "one.html")))
    browser.open(folder / "one.html")
    (video_id, _) = browser.texts(".strip[data-attention] .title")
    expected = _dense(folder, video_id)  # [2, 2, 1 + T]
    own = browser.run(
        "return JSON.parse(document.querySelector('.strip[data-attention] script').textContent).own"
    )
    torch.testing.assert_close(torch.tensor(own), expected[..., 0], atol=1e-5, rtol=0)
    first_drawn = browser.run(
        "return [...document.querySelectorAll('.attention rect')].map(bar => +bar.dataset.value)"
    )[:LENGTH]
    for layer, head, wanted in (
        (1, "mean", expected[1].mean(0)),
        (0, "mean", expected[0].mean(0)),
        (0, "1", expected[0, 1]),
    ):
        drawn = torch.tensor(_drawn(browser, 0, layer, head))
        assert len(drawn) == LENGTH
        torch.testing.assert_close(drawn, wanted[1:], atol=1e-5, rtol=0)
        own_share = float(wanted[0])
        assert abs(float(drawn.sum()) + own_share - 1) < 1e-5
        heights = browser.run(
            "return [...document.querySelectorAll('.strip[data-attention] .attention')][0]"
            ".querySelectorAll('rect').length"
        )
        assert heights == LENGTH
    torch.testing.assert_close(
        torch.tensor(first_drawn), expected[1].mean(0)[1:], atol=1e-5, rtol=0
    )


def test_tables_are_sorted_by_a_click_on_their_head(page: Path, browser: Browser) -> None:
    browser.open(page)
    button = browser.web.find_element("css selector", "#curves details summary")
    button.click()
    head = browser.web.find_element("css selector", "#curves th:first-child button")
    epochs = [f"{n}" for n in range(1, 4)]
    first = "#curves tbody td:first-child"
    assert browser.texts(first) == epochs
    head.click()
    head.send_keys("\n")  # and by the keyboard
    assert browser.texts(first) == epochs[::-1]
    sort = browser.run("return document.querySelector('#curves th').getAttribute('aria-sort')")
    assert sort == "descending"


def test_a_feature_folders_report(folder: Path, browser: Browser) -> None:
    run_cli(folder, "report", "f")
    browser.open(folder / "f/report.html", 390, is_dark=True)
    assert browser.faults == []
    assert browser.overflow == 0
    figures = [text.replace("\n", "") for text in browser.texts("#extraction .figures li")]
    assert figures[:3] == ["12videos ok", "1videos partial", "1videos failed"]
    reasons = browser.texts("#extraction table")[0]
    assert "truncated" in reasons
    assert "missing" in reasons
    store = open_features(folder / "f")
    assert browser.count("#extraction .strip img") == min(10, store.num_frames("cut"))
    kinds = browser.texts("#extraction table")[2]
    assert "h264" in kinds
    assert "128x64" in kinds
    counted = browser.run(
        "return [...document.querySelectorAll('#statistics .chart')][0]"
        ".querySelectorAll('rect').length"
    )
    assert counted == 24
    facts = " ".join(browser.texts("#statistics .facts"))
    assert f"{sum(map(store.num_frames, store)):,} frames of {len(store)} videos" in facts


def test_pages_fit_a_phone_and_a_dark_room(page: Path, browser: Browser) -> None:
    for is_dark in (False, True):
        browser.open(page, 390, is_dark=is_dark)
        assert browser.overflow == 0
        assert browser.faults == []
        colors = browser.run(
            "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        )
        assert _contrast(*colors) > 7


def _contrast(one: str, other: str) -> float:
    """WCAG's contrast of two colors as `rgb(r, g, b)`."""
    lights = []
    for color in (one, other):
        parts = [int(part) / 255 for part in color[4:-1].split(",")]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_explain_writes_a_page(folder: Path, browser: Browser) -> None:
    options = ("--most", 3, "--occlusions", 10, "--prefixes", 5, "--frames", 6)
    ran = run_cli(folder, "explain", "r", "7.mp4", "-o", "e.html", *options)
    assert "rank correlation" in ran.stdout
    browser.open(folder / "e.html")
    assert browser.faults == []
    expected = _dense(folder, "v7")
    drawn = torch.tensor(_drawn(browser, 0, 1, "0"))
    torch.testing.assert_close(drawn, expected[1, 0, 1:], atol=1e-5, rtol=0)
    assert browser.count(".attention rect") == LENGTH
    assert browser.count(".more rect") == 10
    assert browser.count(".frames img") == 6
    assert browser.count(".most img") == 3
    assert browser.count(".chart circle") == 2 * 5
    attended = sorted(expected[1].mean(0)[1:].argsort(descending=True)[:3].tolist())
    alts = browser.run("return [...document.querySelectorAll('.most img')].map(e => e.alt)")
    assert [int(alt.split(",")[0].split()[1]) for alt in alts] == attended


def test_what_explain_says_is_what_the_model_says(folder: Path) -> None:
    found = explain(folder / "r", folder / "7.mp4", ExplainSettings(occlusions=1000))
    assert found.spans == [(n, n + 1) for n in range(LENGTH)]
    assert found.exit_code == 0
    files = RunFolder(folder / "r")
    model, video = load_temporal(files, read_config(files)), open_features(folder / "f")["v7"]
    features = torch.from_numpy(np.array(video.features))[None]
    positions = torch.arange(LENGTH)[None]
    mask = torch.ones(1, LENGTH, dtype=torch.bool)
    with torch.inference_mode():
        whole = model(features, positions)[0]
        mask[0, 4] = False
        without = model(features, positions, mask)[0]
    shares = whole.softmax(-1).double()
    torch.testing.assert_close(found.scores, shares, atol=2e-3, rtol=0)  # extracted in bfloat16
    torch.testing.assert_close(found.prefixes[-1][1], found.scores)
    first = int(whole.argmax())
    odds = [float(logits[first] - logits[1 - first]) for logits in (whole, without)]
    assert abs(found.drops[4] - (odds[0] - odds[1])) < 2e-3


def test_explain_writes_a_picture(folder: Path) -> None:
    from PIL import Image

    ran = run_cli(folder, "explain", "r", "cut.mkv", "-o", "e.png", code=1)  # a partial one
    assert "partial: truncated" in ran.stdout
    picture = Image.open(folder / "e.png")
    assert picture.format == "PNG"
    assert picture.width > 1000
    assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_what_is_wrong_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for run, settings, message in (
        ("none", {}, "not a model or run folder"),
        ("r", {"output": "no/r.html"}, "--output no/r.html: its folder is missing"),
        ("r", {"source": "none"}, "--source none: no such feature folder"),
        ("f", {"source": "f"}, "--source f: f is a feature folder, and no run; leave it out"),
    ):
        with pytest.raises(VtnpipeError, match=message):
            report(run, ReportSettings(**settings))
    with pytest.raises(SettingsError, match=r"must end in \.html or \.png"):
        ExplainSettings(output="e.pdf")
    for span in ({"start": 3.0, "end": 1.0}, {"start": -1.0}):
        with pytest.raises(SettingsError, match="a span must begin at 0 or later"):
            ExplainSettings(**span)
    with pytest.raises(FeaturesError, match="not a model or run folder"):
        explain("f", "7.mp4")
    assert "none.mp4" in run_cli(folder, "explain", "r", "none.mp4", code=1).stderr


def test_a_run_without_its_source_says_so(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "r", tmp_path / "r", ignore=shutil.ignore_patterns("*.html"))
    settings = json.loads((tmp_path / "r/settings.json").read_text())
    settings["source"] = str(tmp_path / "moved")
    (tmp_path / "r/settings.json").write_text(json.dumps(settings))
    shutil.rmtree(tmp_path / "r/predictions", ignore_errors=True)
    page = report(tmp_path / "r").read_text()
    assert "moved is gone" in page
    assert "has not been evaluated" in page
    assert "Curves" in page
    with pytest.raises(SettingsError, match="--frames 0"):
        ReportSettings(frames=0)


def _large_run(root: Path, clips: dict[str, Path]) -> Path:
    """A run of 400 classes with predictions of 20,000 videos, three layers and twelve heads."""
    classes = [f"class {number:03d}" for number in range(400)]
    labels = {f"v{number:05d}": classes[number % 400] for number in range(20_000)}
    made_up_features(root / "f", {"val": labels}, paths=[*clips.values()])
    rows = read_manifest(root / "f/manifest.csv")
    store = open_features(root / "f")
    torch.manual_seed(0)
    config = NetworkConfig(
        identity=store.extraction["identity"],
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
    logits[torch.arange(20_000), (targets + 7) % 400] += 1  # each has a rival
    metrics = task_metrics(logits, targets, classes, config.temporal)
    counts = {"expected": 20_000, "scored": 20_000, "missing": 0, "partial": 0}
    record: dict[str, Any] = {
        "settings": vars(EvaluateSettings()), "faults": [], "classes": classes,
        "source": f"features {store.extraction['fingerprint']}", "model": model_digest(files),
        "metrics": vars(metrics), "intervals": {}, "counts": counts,
    }  # fmt: skip
    video_ids = [row.video_id for row in rows]
    found = Predictions(video_ids=video_ids, logits=logits, targets=targets, record=record)
    write_predictions(files.predictions, "val", found, rows, config)
    return files.root


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
    assert painted == 4 * found.shape[1]  # a cell is two by two pixels

    browser.web.find_element("css selector", ".overview canvas").send_keys("")
    browser.run(f"{canvas}.dispatchEvent(new KeyboardEvent('keydown', {{key: 'ArrowRight'}}))")
    (words,) = browser.texts(".overview output")
    assert "of 50 videos" in words
    accuracy = browser.web.find_elements("css selector", "#classes th button")[2]
    accuracy.click()
    values = [float(v) for v in browser.run(
        "return [...document.querySelectorAll('#classes tbody td:nth-child(3)')]"
        ".map(e => e.dataset.value)"
    )]  # fmt: skip
    assert values == sorted(values)
