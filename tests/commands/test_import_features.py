"""`vtnpipe features import`: others' arrays become a folder that trains and evaluates."""

from pathlib import Path

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import torch
from command_line import run_cli
from vtnpipe.manifests.errors import ManifestError, VtnpipeError
from vtnpipe.manifests.failures import read_failures
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow, write_manifest
from vtnpipe.pipelines.extraction.import_features import ImportSettings, import_features

DIM = 6


def array_of(number: int, length: int) -> npt.NDArray[np.float32]:
    """Features [length, DIM] whose first column tells whether the number is odd."""
    features = np.random.default_rng(number).standard_normal((length, DIM)).astype(np.float32)
    features[:, 0] += 6 * (number % 2)
    return features


def write_arrays(folder: Path, suffix: str = ".npy", num_rows: int = 12) -> Path:
    """Write arrays of a suffix, and a manifest of them; return the manifest."""
    rows = []
    for number in range(num_rows):
        path = folder / f"v{number}{suffix}"
        features = array_of(number, 5 + number)
        if suffix == ".npy":
            np.save(path, features)
        elif suffix == ".npz":
            np.savez(path, rgb=features, flow=features[:1])
        elif suffix == ".pt":
            torch.save({"rgb": torch.from_numpy(features), "flow": torch.zeros(3)}, path)
        else:
            with h5py.File(path, "w") as file:
                file.create_dataset("rgb", data=features, compression="gzip")
                file["flow"] = features[:1]
        rows.append(
            VideoRow(
                video_id=f"v{number}",
                path=str(path),
                label="odd" if number % 2 else "even",
                split="train" if number < 8 else "val",
            )
        )
    manifest = folder / "arrays.csv"
    write_manifest(rows, manifest)
    return manifest


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".h5"])
def test_arrays_of_each_format_are_stored_with_their_times(tmp_path: Path, suffix: str) -> None:
    manifest = write_arrays(tmp_path, suffix)
    key = None if suffix == ".npy" else "rgb"
    settings = ImportSettings(fps=2.5, key=key, name="i3d", feature_dtype="float32")
    report = import_features(manifest, tmp_path / "features", settings)
    assert (report.num_videos, report.num_failed, report.exit_code) == (12, 0, 0)
    store = open_features(tmp_path / "features")
    assert (store.spec.backbone, store.spec.fps, store.row_shape) == ("i3d", 2.5, (DIM,))
    for number in range(12):
        video = store[f"v{number}"]
        assert np.array_equal(video.features, array_of(number, 5 + number))
        assert video.timestamps.tolist() == [row / 2.5 for row in range(5 + number)]


def test_stride_and_spans_choose_frames_and_rows(tmp_path: Path) -> None:
    write_arrays(tmp_path, num_rows=6)
    row = VideoRow(video_id="part", path=str(tmp_path / "v5.npy"), start=1.0, end=4.0)
    write_manifest([row], tmp_path / "part.csv")
    settings = ImportSettings(fps=25, stride=16, feature_dtype="float32")
    import_features(tmp_path / "part.csv", tmp_path / "features", settings)
    video = open_features(tmp_path / "features")["part"]
    assert video.frame_index.tolist() == [32, 48, 64, 80, 96]
    assert video.timestamps.tolist() == [1.28, 1.92, 2.56, 3.2, 3.84]
    assert np.array_equal(video.features, array_of(5, 10)[2:7])


def test_import_trains_evaluates_and_grows(tmp_path: Path) -> None:
    manifest = write_arrays(tmp_path)
    features, run = tmp_path / "features", tmp_path / "run"
    command = ("features", "import", manifest, features, "--fps", "5", "--name", "i3d")
    result = run_cli(tmp_path, *command)
    assert "12 videos, 126 rows of 6 dimensions from i3d" in result.stdout
    run_cli(tmp_path, "train-temporal", features, run, "--encoder", "mean", "--epochs", "30")
    result = run_cli(tmp_path, "evaluate", run, features, "--bootstrap", "0")
    assert "top-1 100.0%" in result.stdout
    for arguments in (("predict", run, tmp_path / "v.mp4"), ("evaluate", run, manifest)):
        refused = run_cli(tmp_path, *arguments, code=2)
        assert "imported features, 'i3d'" in refused.stderr
    refused = run_cli(tmp_path, "extract", manifest, features, "--weights", "none", code=2)
    assert "contains imported features" in refused.stderr
    run_cli(tmp_path, "features", "verify", features)

    np.save(tmp_path / "v12.npy", array_of(12, 9))
    np.save(tmp_path / "v3.npy", array_of(3, 4))  # changed since
    with manifest.open("a") as file:
        file.write("v12,v12.npy,even,val\n")
    run_cli(tmp_path, *command)
    store = open_features(features)
    assert (len(store), store.num_frames("v3")) == (13, 4)
    assert len(list(store.folder.shards.glob("*.h5"))) == 2


def test_rows_without_an_array_fail_with_their_reason(tmp_path: Path) -> None:
    manifest = write_arrays(tmp_path)
    np.save(tmp_path / "v1.npy", np.zeros((3, DIM + 1)))
    np.save(tmp_path / "v2.npy", np.zeros(DIM))
    np.save(tmp_path / "v3.npy", np.full((3, DIM), np.nan))
    (tmp_path / "v4.npy").write_bytes(b"no array")
    (tmp_path / "v5.npy").unlink()
    report = import_features(manifest, tmp_path / "features")
    assert (report.num_failed, report.exit_code) == (5, 1)
    failures = {one.video_id: one for one in read_failures(tmp_path / "features/failures.csv")}
    reasons = {name: failure.reason for name, failure in failures.items()}
    assert reasons == {**{f"v{n}": "not-an-array" for n in range(1, 5)}, "v5": "missing"}
    for name, words in (("v1", "7 dimensions"), ("v2", "[6]"), ("v3", "not finite")):
        assert words in failures[name].message
    for number in range(1, 6):
        np.save(tmp_path / f"v{number}.npy", array_of(number, 5))
    assert import_features(manifest, tmp_path / "features").exit_code == 0


@pytest.mark.parametrize(
    ("suffix", "settings", "words"),
    [
        (".npz", ImportSettings(), "has 2 entries"),
        (".pt", ImportSettings(key="audio"), "no entry 'audio'"),
        (".h5", ImportSettings(key="audio"), "no data set 'audio'"),
    ],
)
def test_a_manifest_without_any_array_writes_nothing(
    tmp_path: Path, suffix: str, settings: ImportSettings, words: str
) -> None:
    manifest = write_arrays(tmp_path, suffix)
    with pytest.raises(ManifestError, match="none of 12 rows") as caught:
        import_features(manifest, tmp_path / "features", settings)
    assert words in str(caught.value)
    assert not (tmp_path / "features").exists()


def test_key_may_be_the_id_of_the_row(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "all.h5", "w") as file:
        for number in range(3):
            file[f"v{number}/rgb"] = array_of(number, 4)
    rows = [VideoRow(video_id=f"v{n}", path=str(tmp_path / "all.h5")) for n in range(3)]
    write_manifest(rows, tmp_path / "all.csv")
    settings = ImportSettings(key="{video_id}/rgb", feature_dtype="float32")
    import_features(tmp_path / "all.csv", tmp_path / "features", settings)
    store = open_features(tmp_path / "features")
    assert all(np.array_equal(store[f"v{n}"].features, array_of(n, 4)) for n in range(3))


def test_values_beyond_float16_name_the_remedy(tmp_path: Path) -> None:
    manifest = write_arrays(tmp_path, num_rows=1)
    np.save(tmp_path / "v0.npy", np.full((2, DIM), 1e6))
    with pytest.raises(VtnpipeError, match="--feature-dtype float32"):
        import_features(manifest, tmp_path / "features")
