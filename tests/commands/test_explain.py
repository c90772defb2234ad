"""`vtnpipe explain`: its numbers are the model's; the page in a real browser, and the figure."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser
from command_line import run_cli
from numbered_videos import write_video
from PIL import Image
from report_pages import LENGTH, dense_attention
from stage_two import PAPER, make_sensitive
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.failures import VideoError
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.pipelines.explain import ExplainSettings, explain
from vtnpipe.pipelines.train_temporal import train_temporal
from vtnpipe.temporal.checkpoint import RunFolder


@pytest.fixture
def sensitive(folder: Path) -> Path:
    """The extracted clips, and a run `r` in whose logits order, positions and frames matter."""
    train_temporal(folder / "f", folder / "r", PAPER)
    make_sensitive(RunFolder(folder / "r"))
    return folder


def test_scores_prefixes_and_drops_are_the_models(sensitive: Path) -> None:
    found = explain(sensitive / "r", sensitive / "7.mp4", ExplainSettings(occlusions=1000))
    num_frames = 27
    assert found.spans == [(n, n + 1) for n in range(num_frames)]
    assert found.exit_code == 0
    model = make_sensitive(RunFolder(sensitive / "r"))
    features = torch.from_numpy(np.array(open_features(sensitive / "f")["v7"].features))[None]
    positions = torch.arange(num_frames)[None]
    mask = torch.ones(1, num_frames, dtype=torch.bool)
    with torch.inference_mode():
        whole = model(features, positions)[0].double()
        beginning = model(features[:, :9], positions[:, :9])[0].double()
        mask[0, 4] = False
        without = model(features, positions, mask)[0].double()
    torch.testing.assert_close(found.scores, whole.softmax(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.prefixes[-1][1], found.scores)
    prefixes = {round(seconds * 25): scores for seconds, scores in found.prefixes}
    torch.testing.assert_close(prefixes[8], beginning.softmax(-1), atol=1e-4, rtol=0)
    first = int(whole.argmax())
    assert found.top_class == first
    odds = [float(logits[first] - logits[1 - first]) for logits in (whole, without)]
    assert abs(odds[0] - odds[1]) > 1e-3
    assert abs(found.drops[4] - (odds[0] - odds[1])) < 1e-3


def test_through_the_command_line(sensitive: Path) -> None:
    ran = run_cli(sensitive, "explain", "r", "7.mp4", "-o", "e.html", "--most", 3, "--frames", 5)
    assert "rank correlation" in ran.stdout
    assert ran.stdout.count("  attention ") == 3
    page = (sensitive / "e.html").read_text()
    assert page.count("<img ") == 5 + 3
    assert "7.mp4" in page
    span = ("--start", 0.2, "--end", 0.6)
    ran = run_cli(sensitive, "explain", "r", "7.mp4", *span, "--occlusions", 2, "--prefixes", 3)
    assert "frame 5, at 0.20 s" in ran.stdout
    assert "frame 15," not in ran.stdout


def test_a_figure_of_a_partial_video_is_written(sensitive: Path) -> None:
    whole = write_video(sensitive / "whole.mkv", 30).read_bytes()
    (sensitive / "cut.mkv").write_bytes(whole[: 2 * len(whole) // 3])
    ran = run_cli(sensitive, "explain", "r", "cut.mkv", "-o", "e.png", code=1)
    assert "partial: truncated" in ran.stdout
    figure = Image.open(sensitive / "e.png")
    assert figure.format == "PNG"
    assert figure.width > 1000
    assert len(np.unique(np.asarray(figure.convert("L")))) > 50


def test_invalid_input_raises(sensitive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sensitive)
    settings: dict[str, Any]
    for settings, message in (
        ({"output": "e.pdf"}, r"--output e\.pdf.*\.html or \.png"),
        ({"frames": 3}, "--frames 3"),
        ({"start": 3.0, "end": 1.0}, r"--start 3\.0 --end 1\.0"),
        ({"start": -1.0}, r"--start -1\.0"),
    ):
        with pytest.raises(SettingsError, match=message):
            ExplainSettings(**settings)
    with pytest.raises(SettingsError, match=r"--output no/e\.html: its folder is missing"):
        explain("r", "7.mp4", ExplainSettings(output="no/e.html"))
    with pytest.raises(FeaturesError, match="not a model or run folder"):
        explain("f", "7.mp4")
    with pytest.raises(VideoError, match=r"none\.mp4") as caught:
        explain("r", "none.mp4")
    assert (caught.value.reason, caught.value.exit_code) == ("missing", 1)


@pytest.mark.slow
def test_the_page_shows_attention_frames_and_predictions(pages: Path, browser: Browser) -> None:
    options = ("--most", 3, "--occlusions", 10, "--prefixes", 5, "--frames", 6)
    run_cli(pages, "explain", "r", "7.mp4", "-o", "e.html", *options)
    browser.open(pages / "e.html")
    assert browser.faults == []
    expected = dense_attention(pages, "v7")
    browser.choose(0, 1, "0")
    drawn = torch.tensor(browser.bars(0))
    torch.testing.assert_close(drawn, expected[1, 0, 1:], atol=1e-5, rtol=0)
    assert browser.count(".attention rect") == LENGTH
    assert browser.count(".more rect") == 10
    assert browser.count(".frames img") == 6
    assert browser.count(".most img") == 3
    assert browser.count(".chart circle") == 2 * 5
    attended = sorted(expected[1].mean(0)[1:].argsort(descending=True)[:3].tolist())
    alts = browser.run("return [...document.querySelectorAll('.most img')].map(e => e.alt)")
    assert [int(alt.split(",")[0].split()[1]) for alt in alts] == attended
