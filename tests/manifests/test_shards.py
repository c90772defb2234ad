"""Shards and the mapping over them: round trip, whole or absent, refusals, parts, processes."""

import multiprocessing
import operator
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_folder import FeatureFolder, write_extraction
from vtnpipe.manifests.shards import (
    VideoPart,
    checksum,
    open_features,
    read_shard,
    write_shard,
)
from vtnpipe.manifests.times import frame_rate

DIM = 6
Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> FeatureFolder:
    folder = FeatureFolder(tmp_path / "features")
    folder.shards.mkdir(parents=True)
    write_extraction(folder, {"backbone": "toy"}, row_shape=[DIM])
    return folder


def _part(video_id: str, length: int, *, seed: int = 0, first: int = 0, **fields: Any) -> VideoPart:
    generator = np.random.default_rng(seed)
    index = np.arange(first, first + length)
    return VideoPart(
        video_id=video_id,
        features=generator.standard_normal((length, DIM)).astype(fields.pop("dtype", "float16")),
        frame_index=index,
        timestamps=index / 30,
        status=fields.pop("status", "ok" if length else "failed"),
        **fields,
    )


def _write(folder: FeatureFolder, name: str, *parts: VideoPart, **changes: Any) -> Path:
    path = folder.shards / f"{name}.h5"
    fingerprint = open_features(folder.root).extraction["fingerprint"]
    arguments: dict[str, Any] = {
        "row_shape": (DIM,),
        "dtype": "float16",
        "fingerprint": fingerprint,
        "views": ["center"],
        "settings": {"batch_size": 32},
    }
    write_shard(path, parts, **{**arguments, **changes})
    return path


def test_round_trip(folder: FeatureFolder) -> None:
    parts = [
        _part("v1", 5, seed=1, decoder="decord"),
        _part("ünï/../x", 1, seed=2, decoder="pyav"),
        _part("none", 0, reason="empty", message="0 bytes"),
        _part("v2", 3, seed=3, first=4, status="partial", num_lost_frames=2, reason="damaged"),
    ]
    _write(folder, "000-00000", *parts)
    store = open_features(folder.root)
    assert list(store) == ["v1", "ünï/../x", "v2"]
    assert len(store) == 3
    assert "none" not in store
    for part in (parts[0], parts[1], parts[3]):
        video = store[part.video_id]
        for name in ("features", "frame_index", "timestamps"):
            stored = getattr(video, name)
            np.testing.assert_array_equal(stored, getattr(part, name))
            assert stored.dtype == getattr(part, name).dtype
            assert not stored.flags.writeable
        assert (video.status, video.reason) == (part.status, part.reason)
        assert video.num_lost_frames == part.num_lost_frames
    assert store["v1"].fps == pytest.approx(30)
    assert np.isnan(store["ünï/../x"].fps)
    assert store.statuses == {"v1": "ok", "ünï/../x": "ok", "none": "failed", "v2": "partial"}
    assert store.entries["none"][0].message == "0 bytes"
    assert store.entries["v2"][0].crc32 == checksum(
        parts[3].features, parts[3].frame_index, parts[3].timestamps
    )
    with pytest.raises(KeyError):
        store["none"]


def test_layout_is_the_documented_one(folder: FeatureFolder) -> None:
    path = _write(folder, "000-00000", _part("v1", 2), _part("v2", 3))
    with h5py.File(path) as file:
        assert file.attrs["format"] == "vtnpipe.features"
        assert file.attrs["version"] == 1
        assert file["features"].shape == (5, DIM)
        assert file["features"].chunks is None
        assert file["frame_index"].dtype == np.int64
        assert file["timestamps"].dtype == np.float64
        assert file["videos/offset"][:].tolist() == [0, 2]
        assert file["videos/length"][:].tolist() == [2, 3]
        assert [v.decode() for v in file["videos/id"][:]] == ["v1", "v2"]
        assert not any(column.dtype.hasobject for column in file["videos"].values())


def test_several_views_and_float32(folder: FeatureFolder) -> None:
    write_extraction(folder, {"backbone": "toy"}, row_shape=[2, 3])
    features = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    part = VideoPart(
        video_id="v",
        features=features,
        frame_index=np.arange(4),
        timestamps=np.arange(4.0),
        status="ok",
    )
    _write(folder, "000-00000", part, row_shape=(2, 3), dtype="float32", views=["center", "flip"])
    np.testing.assert_array_equal(open_features(folder.root)["v"].features, features)
    write_extraction(folder, {"backbone": "toy"}, row_shape=[3])
    with pytest.raises(FeaturesError, match=r"are \[2, 3\] a frame, not \[3\]"):
        open_features(folder.root)


def test_a_shard_of_failures_only(folder: FeatureFolder) -> None:
    _write(folder, "000-00000", _part("v1", 0, reason="missing"))
    store = open_features(folder.root)
    assert len(store) == 0
    assert store.statuses == {"v1": "failed"}


def test_nothing_is_left_of_a_writer_that_fails(folder: FeatureFolder) -> None:
    bad = _part("v", 2)
    object.__setattr__(bad, "features", np.zeros((2, DIM + 1)))
    with pytest.raises((TypeError, ValueError)):
        _write(folder, "000-00000", bad)
    assert list(folder.shards.iterdir()) == []


def test_parts_are_joined_and_a_missing_part_makes_the_video_absent(folder: FeatureFolder) -> None:
    parts = [_part("v", 3, seed=n, first=3 * n, part=n, num_parts=3) for n in range(3)]
    _write(folder, "000-00000", parts[2], _part("w", 1))
    _write(folder, "000-00002", parts[0])
    assert list(open_features(folder.root)) == ["w"]
    _write(folder, "000-00001", parts[1])
    video = open_features(folder.root)["v"]
    assert video.frame_index.tolist() == list(range(9))
    np.testing.assert_array_equal(video.features, np.concatenate([p.features for p in parts]))
    assert not video.features.flags.writeable
    assert video.fps == pytest.approx(30)


def test_the_newest_complete_entry_counts(folder: FeatureFolder) -> None:
    _write(folder, "000-00000", _part("v", 2, seed=1))
    _write(folder, "001-00000", _part("v", 4, seed=2))
    _write(folder, "002-00000", _part("v", 9, seed=3, part=0, num_parts=2))
    assert len(open_features(folder.root)["v"].features) == 4


def test_the_plan_that_counts_is_told(folder: FeatureFolder) -> None:
    _write(folder, "000-00000", _part("v", 2), _part("w", 0, reason="damaged"))
    _write(folder, "001-00000", _part("v", 0, reason="stalled", status="failed"), _part("w", 3))
    store = open_features(folder.root)
    assert store.plans == {"v": 0, "w": 1}


def test_a_number_of_parts_that_lies_costs_nothing(folder: FeatureFolder) -> None:
    _write(folder, "000-00000", _part("v", 2, num_parts=2**60))
    assert "v" not in open_features(folder.root)


def test_a_part_that_failed_in_passing_hides_no_whole_video(folder: FeatureFolder) -> None:
    stalled = {"status": "failed", "reason": "stalled", "part": 1, "num_parts": 2}
    _write(folder, "000-00000", _part("v", 9), _part("w", 0, reason="damaged"))
    _write(folder, "001-00000", _part("v", 4, num_parts=2), _part("w", 4, num_parts=2))
    _write(folder, "001-00001", _part("v", 0, **stalled), _part("w", 0, **stalled))
    store = open_features(folder.root)
    assert len(store["v"].features) == 9
    assert len(store["w"].features) == 4  # better than what failed before


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_store_works_in_other_processes(folder: FeatureFolder, method: str) -> None:
    part = _part("v", 50)
    _write(folder, "000-00000", part)
    store = open_features(folder.root)
    np.testing.assert_array_equal(store["v"].features, part.features)
    with multiprocessing.get_context(method).Pool(1) as pool:
        video = pool.apply(operator.getitem, (store, "v"))
    np.testing.assert_array_equal(video.features, part.features)
    assert len(pickle.dumps(store)) < 10_000


def _open_file_count() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_shards_need_few_file_descriptors(
    folder: FeatureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vtnpipe.manifests.feature_store.MAX_OPEN_MAPS", 4)
    for number in range(12):
        _write(folder, f"000-{number:05}", _part(f"v{number}", 2, seed=number))
    store = open_features(folder.root)
    before = _open_file_count()
    for _ in range(2):
        for number in range(12):
            np.testing.assert_array_equal(
                store[f"v{number}"].features, _part("", 2, seed=number).features
            )
    assert _open_file_count() - before <= 5


def _damage(name: str, path: Path) -> None:
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
        return
    if name == "not HDF5":
        path.write_bytes(b"something else")
        return
    with h5py.File(path, "r+") as file:
        if name == "version":
            file.attrs["version"] = 99
        elif name == "fingerprint":
            file.attrs["fingerprint"] = "other"
        elif name == "table":
            file["videos/length"][0] = 1
        elif name == "external link":
            del file["features"]
            file["features"] = h5py.ExternalLink("/etc/passwd", "/x")
        elif name == "soft link":
            del file["timestamps"]
            file["timestamps"] = h5py.SoftLink("/frame_index")
        elif name == "external storage":
            shape = file["features"].shape
            del file["features"]
            storage = [("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
            file.create_dataset("features", shape, "float16", external=storage)
        elif name == "virtual":
            layout = h5py.VirtualLayout(file["features"].shape, "float16")
            layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=layout.shape)
            del file["features"]
            file.create_virtual_dataset("features", layout)
        elif name == "chunked":
            data = file["features"][:]
            del file["features"]
            file.create_dataset("features", data=data, chunks=(1, DIM))
        elif name == "claims terabytes":
            del file["features"]
            file.create_dataset("features", (2**40, DIM), "float16")
        elif name == "object dtype":
            del file["videos/id"]
            file.create_dataset("videos/id", data=["v1", "v2"], dtype=h5py.string_dtype())
        else:
            raise AssertionError(name)


@pytest.mark.parametrize(
    "damage",
    [
        *("truncated", "not HDF5", "version", "fingerprint", "table", "external link"),
        *("soft link", "external storage", "virtual", "chunked", "claims terabytes"),
        "object dtype",
    ],
)
def test_refuses_what_is_no_shard_of_this_folder(folder: FeatureFolder, damage: str) -> None:
    path = _write(folder, "000-00000", _part("v1", 2), _part("v2", 3))
    _damage(damage, path)
    with pytest.raises(FeaturesError, match=r"000-00000\.h5"):
        open_features(folder.root)


def test_refuses_a_shard_by_another_name(folder: FeatureFolder) -> None:
    path = _write(folder, "000-00000", _part("v1", 2))
    with pytest.raises(FeaturesError, match="not named PPP-TTTTT"):
        read_shard(path.rename(folder.shards / "extra.h5"), "any")


def test_refuses_a_folder_without_extraction(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="not a feature folder"):
        open_features(tmp_path)


def test_frame_rate_is_that_of_what_is_stored() -> None:
    assert frame_rate(np.array([0.0, 0.1, 0.4])) == pytest.approx(5)
    assert np.isnan(frame_rate(np.array([1.0])))
    assert np.isnan(frame_rate(np.array([1.0, 1.0])))
