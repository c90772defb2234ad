"""`vtnpipe plan`: the description of the work, and the plan that `vtnpipe extract` runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Ran, Vtnpipe
from numbered_videos import CLIP_LENGTHS, number_of_blocks, write_video
from vtnpipe.manifests.errors import SettingsError
from vtnpipe.manifests.feature_folder import FeatureFolder, read_extraction
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.plan import read_plans
from vtnpipe.pipelines.extraction.settings import ExtractSettings
from vtnpipe.pipelines.plan import plan

MEANS = ("--backbone", "toy_backbones:block_means", "--weights", "none")


@pytest.fixture(autouse=True)
def _measure_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vtnpipe.pipelines.plan.MEASURE_SECONDS", 0.1)


def _described(ran: Ran) -> dict[str, str]:
    """Return name → text of the lines of the description."""
    return dict(
        re.fullmatch(r"(\S+) +(.*)", line).groups()  # type: ignore[union-attr]
        for line in ran.stdout.splitlines()
        if re.match(r"[a-z/]+ {2,}", line) and "unreadable" not in line
    )


def test_a_plan_describes_the_work(tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_video(tmp_path / "turned.mp4", 30, rotation=90)
    with manifest.open("a") as file:
        file.write("none,none.mp4,x,train\ntext,text.mp4,x,train\nturned,turned.mp4,x,train\n")
    before = set(tmp_path.iterdir())
    ran = vtnpipe("plan", manifest, "f", *MEANS, "--shard-frames", 20, code=1)
    assert set(tmp_path.iterdir()) - before == {tmp_path / "f"}
    found = _described(ran)
    total = sum(CLIP_LENGTHS.values()) + 30
    assert found["videos"] == "7, 6 s"
    assert found["frames"] == f"{total}; 80 by their files' index, 81 estimated"
    assert found["features"].startswith("16 float16 per frame: ")
    assert "h264 (3)" in found["codecs"]
    assert "128x64 (4)" in found["sizes"]
    assert found["rotation"] == "upright (4), turned by 90° (1)"
    assert "unreadable  none: missing:" in ran.stdout
    assert "unreadable  text: not-a-video:" in ran.stdout
    # The AVI, of 41 frames, is not cut.
    assert found["tasks"] == "8 of at most 41 frames; 2 long videos in 4 parts"
    assert f"for {total} frames" in found["time"]


def test_extract_runs_the_plan_and_planning_again_adds_nothing(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe
) -> None:
    vtnpipe("plan", manifest, "f", *MEANS, "--shard-frames", 20)
    assert {path.name for path in (tmp_path / "f").iterdir()} == {
        *("extraction.json", "backbone.safetensors", "manifest.csv", "plan", "shards"),
    }
    assert list((tmp_path / "f/shards").iterdir()) == []
    (path,) = (tmp_path / "f/plan").iterdir()
    planned = path.read_bytes()
    folder = FeatureFolder(tmp_path / "f")
    tasks = read_plans(folder, read_extraction(folder).fingerprint)
    assert [[row.video_id for row in task.rows] for task in tasks] == [
        *(["a"], ["a"], ["b"], ["b"], ["c"], ["d"]),
    ]

    def assert_same_plan() -> None:
        assert list((tmp_path / "f/plan").iterdir()) == [path]
        assert path.read_bytes() == planned

    # Once planned, other sizes of tasks and batches change nothing.
    again = _described(vtnpipe("plan", manifest, "f", *MEANS, "--batch-size", 5))
    assert again["videos"] == "4, 5 s"
    assert "h264 (2)" in again["codecs"]
    assert again["tasks"] == "6 of at most 41 frames; 2 long videos in 4 parts"
    assert_same_plan()
    vtnpipe("extract", manifest, "f", *MEANS)
    assert_same_plan()
    store = open_features(tmp_path / "f")
    shards = {shard.stem for shard in (tmp_path / "f/shards").iterdir()}
    assert shards == {task.name for task in tasks}
    for k, (name, length) in enumerate(CLIP_LENGTHS.items()):
        numbers = [number_of_blocks(row) for row in store[name].features]
        assert numbers == list(range(1000 * k, 1000 * k + length))
    assert "none" in _described(vtnpipe("plan", manifest, "f", *MEANS))["tasks"]
    assert_same_plan()

    # Only a new row is planned, in a plan of its own.
    write_video(tmp_path / "e.mp4", 9)
    with manifest.open("a") as file:
        file.write("e,e.mp4,E,val\n")
    assert _described(vtnpipe("plan", manifest, "f", *MEANS))["videos"] == "5, 6 s"
    assert path.read_bytes() == planned
    head = json.loads((tmp_path / "f/plan/001.json").read_text())
    assert [[row[0] for row in task] for task in head["tasks"]] == [["e"]]


def test_a_plan_for_workers_elsewhere_has_no_predicted_time(tmp_path: Path, manifest: Path) -> None:
    settings = ExtractSettings(
        backbone="toy_backbones:block_means",
        weights="none",
        device="cuda",
        precision="bfloat16",
        scheduler="tcp://127.0.0.1:9",  # planning needs no workers
    )
    report = plan(manifest, tmp_path / "f", settings)
    assert report.seconds is None
    assert {task.computation.batch_size for task in report.plan.pending} == {128}
    folder = FeatureFolder(tmp_path / "f")
    assert read_extraction(folder).spec.precision == "bfloat16"


def test_files_that_cannot_be_opened_are_listed_even_if_nothing_is_planned(
    tmp_path: Path, write_csv: Callable[..., Path], vtnpipe: Vtnpipe
) -> None:
    manifest = write_csv((f"v{number}", f"v{number}.mp4", "x", "train") for number in range(12))
    ran = vtnpipe("plan", manifest, "f", *MEANS, code=3)
    assert ran.stdout.count("unreadable  v") == 12
    assert "12 of 12 videos failed (12 missing)" in ran.stderr
    assert list((tmp_path / "f/plan").iterdir()) == []


def test_planning_again_names_the_same_files(
    tmp_path: Path, manifest: Path, vtnpipe: Vtnpipe
) -> None:
    with manifest.open("a") as file:
        file.write("none,none.mp4,x,train\n")
    for _ in range(2):
        ran = vtnpipe("plan", manifest, "f", *MEANS, code=1)
        assert "unreadable  none: missing:" in ran.stdout


def test_a_plan_is_not_of_a_part(tmp_path: Path, manifest: Path) -> None:
    for settings in (ExtractSettings(part="1/2"), ExtractSettings(finish=True)):
        with pytest.raises(SettingsError, match=r"--part 1/2|--finish True"):
            plan(manifest, tmp_path / "f", settings)
    assert not (tmp_path / "f").exists()
