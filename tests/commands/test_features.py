"""`vtnpipe features`: show, verify (with --recompute), and export."""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from command_line import Vtnpipe
from feature_folders import extract_rows, made_up_features, make_folder
from numbered_videos import number_of_blocks, write_video
from pyarrow import parquet
from vtnpipe.manifests.errors import FeaturesError, SettingsError
from vtnpipe.manifests.feature_folder import read_extraction
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.manifests.plan import Computation, with_file_state, write_plan
from vtnpipe.pipelines.extraction import export_features as export_module
from vtnpipe.pipelines.features import ExportSettings, export_features

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
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means", feature_dtype="float16")
    planned = [with_file_state(row) for row in rows]
    write_plan(
        folder,
        [planned],
        fingerprint=read_extraction(folder).fingerprint,
        computation=Computation(16),
    )
    write_manifest(rows, folder.manifest)
    extract_rows(folder, planned)
    return tmp_path


def test_show_a_folder_and_its_videos(folder: Path, vtnpipe: Vtnpipe) -> None:
    lines = vtnpipe("features", "show", "f").stdout.splitlines()
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in lines[1:]}
    assert shown["backbone"] == "toy_backbones:block_means, weights none"
    assert shown["fingerprint"] == open_features(folder / "f").fingerprint
    assert shown["features"] == "16 float16 per frame, computed in float32"
    assert shown["videos"] == "3 of 3: 2 ok, 0 partial, 1 failed"
    assert shown["frames"].startswith("58 (")
    assert shown["shards"].startswith("1 (")
    assert shown["decoders"] == "pyav 2"
    shown_video = vtnpipe("features", "show", "f", "run/a b.mp4", "gone").stdout
    assert "50 × 16 float16" in shown_video
    assert "0.000 to 1.960 (25.000 fps)" in shown_video
    assert "failed       missing: " in shown_video
    ran = vtnpipe("features", "show", "f", "x", code=2)
    assert "'x' has not been extracted" in ran.stderr
    assert "not a feature folder" in vtnpipe("features", "show", ".", code=2).stderr


def test_verify_finds_damaged_shards_and_drops_them(folder: Path, vtnpipe: Vtnpipe) -> None:
    assert "1 shards are sound" in vtnpipe("features", "verify", "f").stdout
    (shard,) = (folder / "f/shards").iterdir()
    data = bytearray(shard.read_bytes())
    features = open_features(folder / "f")["run/a b.mp4"].features
    data[data.index(features[0].tobytes()) + 2] ^= 16
    shard.write_bytes(data)
    ran = vtnpipe("features", "verify", "f", code=1)
    assert "video_id 'run/a b.mp4': its checksum is wrong" in ran.stdout
    assert "1 of 1 shards are damaged; --drop removes them" in ran.stdout
    assert shard.exists()
    ran = vtnpipe("features", "verify", "f", "--drop", code=1)
    assert "removed 1 of 1 shards" in ran.stdout
    assert not shard.exists()
    assert "1 of 1 tasks have no shard yet" in vtnpipe("features", "verify", "f").stdout
    (folder / "f/backbone.safetensors").write_bytes(b"other weights")
    ran = vtnpipe("features", "verify", "f", "--drop", code=1)
    assert "its SHA-256 is not" in ran.stdout
    assert "none of which --drop repairs" in ran.stdout


def test_verify_recomputes_features_of_a_sample(folder: Path, vtnpipe: Vtnpipe) -> None:
    ran = vtnpipe("features", "verify", "f", "--recompute", 20)
    assert "1 shards are sound" in ran.stdout
    assert "20 features of 2 videos, computed in float32 and stored in float16" in ran.stdout
    assert "wrong" not in ran.stdout
    (folder / "a.mp4").write_bytes(write_video(folder / "b.mp4", 50, first=500).read_bytes())
    ran = vtnpipe("features", "verify", "f", "--recompute", 20, code=1)
    assert "cosines below 0.99: these features are wrong" in ran.stdout
    listed = [line for line in ran.stdout.splitlines() if " frame " in line and "cosine" in line]
    assert listed[0].startswith("  run/a b.mp4 frame ")
    (folder / "a.mp4").unlink()
    ran = vtnpipe("features", "verify", "f", "--recompute", 20, code=1)
    assert "a.mp4: not found" in ran.stderr
    assert "--recompute -1: it must be at least 0" in (
        vtnpipe("features", "verify", "f", "--recompute", -1, code=2).stderr
    )


def test_export_by_the_command_line(folder: Path, vtnpipe: Vtnpipe) -> None:
    ran = vtnpipe("features", "export", "f", "out", code=1)
    assert "out: 2 videos; 1 have no features" in ran.stdout
    store = open_features(folder / "f")
    assert {path.name for path in (folder / "out").iterdir()} == {
        *("run%2Fa%20b.mp4.npy", "run%2Fa%20b.mp4.json", "irregular.npy", "irregular.json"),
    }
    features = np.load(folder / "out/run%2Fa%20b.mp4.npy")
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, store["run/a b.mp4"].features.astype(np.float32))
    record = json.loads((folder / "out/run%2Fa%20b.mp4.json").read_text())
    assert (record["fps"], record["num_frames"], record["duration"]) == pytest.approx((25, 50, 2.0))
    assert record["times"] == store["run/a b.mp4"].timestamps.tolist()
    assert record["frame_index"] == list(range(50))
    assert record["largest_offset_seconds"] < 1e-9
    irregular = json.loads((folder / "out/irregular.json").read_text())
    assert irregular["times"] == pytest.approx([ms / 1000 for ms in IRREGULAR])
    assert irregular["largest_offset_seconds"] > 0.2  # and the record tells it


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
    with pytest.raises(SettingsError, match=r"cannot create the folder .*/file \(File exists\)"):
        export_features(tmp_path / "f", tmp_path / "file")
    with pytest.raises(FeaturesError, match="has no video_id 'x'"):
        export_features(tmp_path / "f", tmp_path / "o", ["x"])
    assert not (tmp_path / "o").exists()


def test_long_ids_get_short_file_names(tmp_path: Path) -> None:
    ids = ["走" * 100 + str(number) for number in range(2)] + ["a/" * 120]
    made_up_features(tmp_path / "f", {"train": dict.fromkeys(ids, "x")})
    report = export_features(tmp_path / "f", tmp_path / "out")
    assert report.num_videos == 3
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 6
    records = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")]
    assert {record["video_id"] for record in records} == set(ids)
    assert all(len(name.encode()) <= 210 for name in names)


@pytest.mark.parametrize("file_bytes", [1, 2**20])
def test_archives_for_webdataset(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    monkeypatch.setattr(export_module, "FILE_BYTES", file_bytes)
    settings = ExportSettings(format="webdataset", dtype="float16")
    report = export_features(extracted / "f", tmp_path / "out", settings=settings)
    assert (report.num_videos, report.num_missing) == (12, 1)
    store, found = open_features(extracted / "f"), {}
    paths = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in paths] == [
        f"features-{n:05d}.tar" for n in range(12 if file_bytes == 1 else 1)
    ]
    for path in paths:
        with tarfile.open(path) as archive:
            members = {one.name: archive.extractfile(one).read() for one in archive.getmembers()}
        for name, data in members.items():
            key, _, extension = name.partition(".")
            if extension == "json":
                record = json.loads(data)
                found[record["video_id"]] = np.load(io.BytesIO(members[f"{key}.npy"]))
                assert record["label"] in ("up", "down")
                assert record["times"] == store[record["video_id"]].timestamps.tolist()
    assert set(found) == set(store)
    for video_id, features in found.items():
        np.testing.assert_array_equal(features, store[video_id].features.astype(np.float16))


def test_parquet_through_the_command_line(folder: Path, vtnpipe: Vtnpipe) -> None:
    vtnpipe("features", "export", "f", "out", "--format", "parquet", "--view", "all", code=1)
    (path,) = (folder / "out").iterdir()
    file, store = parquet.ParquetFile(path), open_features(folder / "f")
    assert file.num_row_groups == len(store)
    table = file.read().to_pandas()
    for video_id, of_video in table.groupby("video_id", observed=True):
        video = store[str(video_id)]
        np.testing.assert_array_equal(of_video.frame_index, video.frame_index)
        np.testing.assert_array_equal(of_video.timestamp, video.timestamps)
        features = np.stack(of_video.features.to_list()).reshape(video.features.shape)
        np.testing.assert_allclose(features, video.features, rtol=1e-6)


def test_parquet_without_pyarrow(
    extracted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(SettingsError, match=r"needs pyarrow; install vtnpipe\[parquet\]"):
        export_features(extracted / "f", tmp_path / "x", settings=ExportSettings(format="parquet"))
    assert list(tmp_path.iterdir()) == []
