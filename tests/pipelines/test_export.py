"""`vtnpipe features export`: what is written."""

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run_cli
from feature_folders import extract_rows, made_up_features, make_folder
from numbered_videos import number_of_blocks, write_video
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.shards import open_features
from vtnpipe.pipelines.export import ExportSettings, export_features

IRREGULAR = [0, 40, 80, 400, 440, 1000, 1040, 1080]  # ms


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Features `f` of a regular video, one of irregular times, and one whose file is missing."""
    rows = [
        VideoRow(
            video_id="run/a b.mp4",
            path=str(write_video(tmp_path / "a.mp4", 50)),
            label="run",
            split="val",
        ),
        VideoRow(
            video_id="irregular",
            path=str(write_video(tmp_path / "i.mkv", 8, times=IRREGULAR)),
            label="",
            split="train",
        ),
        VideoRow(video_id="gone", path=str(tmp_path / "none.mp4"), label="run", split="train"),
    ]
    extract_rows(make_folder(tmp_path / "f", "toy_backbones:block_means"), rows)
    return tmp_path


def test_export_by_the_command_line(folder: Path) -> None:
    ran = run_cli(folder, "features", "export", "f", "out", code=1)
    assert "out: 2 videos; 1 have no features" in ran.stdout
    store = open_features(folder / "f")
    assert {path.name for path in (folder / "out").iterdir()} == {
        *("run%2Fa%20b.mp4.npy", "run%2Fa%20b.mp4.json", "irregular.npy", "irregular.json"),
        "database.json",
    }
    features = np.load(folder / "out/run%2Fa%20b.mp4.npy")
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, store["run/a b.mp4"].features)
    record = json.loads((folder / "out/run%2Fa%20b.mp4.json").read_text())
    assert (record["fps"], record["num_frames"], record["duration"]) == pytest.approx((25, 50, 2.0))
    assert record["times"] == store["run/a b.mp4"].timestamps.tolist()
    assert record["frame_index"] == list(range(50))
    assert record["largest_offset_seconds"] < 1e-9
    irregular = json.loads((folder / "out/irregular.json").read_text())
    assert irregular["times"] == pytest.approx([ms / 1000 for ms in IRREGULAR])
    assert irregular["largest_offset_seconds"] > 0.2  # and it says so
    database = json.loads((folder / "out/database.json").read_text())["database"]
    assert database["run%2Fa%20b.mp4"]["subset"] == "validation"
    assert database["run%2Fa%20b.mp4"]["annotations"] == [
        {"segment": [0.0, pytest.approx(2.0)], "label": "run"}
    ]
    assert database["irregular"]["annotations"] == []


def test_a_steady_rate_takes_the_nearest_frames(folder: Path) -> None:
    export_features(folder / "f", folder / "o", ["irregular"], ExportSettings(fps=10))
    record = json.loads((folder / "o/irregular.json").read_text())
    rows = np.load(folder / "o/irregular.npy")
    times = np.array(IRREGULAR) / 1000
    moments = np.arange(len(rows)) / 10
    expected = [int(np.abs(times - moment).argmin()) for moment in moments]
    assert [number_of_blocks(row) for row in rows] == expected
    assert record["frame_index"] == expected
    assert record["fps"] == 10
    assert len(rows) == int(np.ceil(record["duration"] * 10 - 1e-6))
    assert record["largest_offset_seconds"] == pytest.approx(
        max(abs(times[row] - moment) for row, moment in zip(expected, moments, strict=True))
    )


def test_views_and_dtypes(tmp_path: Path) -> None:
    made_up_features(tmp_path / "f", {"train": {"v": "a"}}, views=("center", "flip"))
    features = open_features(tmp_path / "f")["v"].features
    for view, expected in (
        ("first", features[:, 0]),
        ("flip", features[:, 1]),
        ("all", features),
    ):
        settings = ExportSettings(view=view, dtype="float16")
        assert export_features(tmp_path / "f", tmp_path / view, settings=settings).exit_code == 0
        found = np.load(tmp_path / view / "v.npy")
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, expected.astype(np.float16))
    with pytest.raises(SettingsError, match=r"--view left: .* has center, flip"):
        export_features(tmp_path / "f", tmp_path / "o", settings=ExportSettings(view="left"))
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="file: can't be made as a folder"):
        export_features(tmp_path / "f", tmp_path / "file")
    with pytest.raises(FeaturesError, match="has no video_id 'x'"):
        export_features(tmp_path / "f", tmp_path / "o", ["x"])
    assert not (tmp_path / "o").exists()
