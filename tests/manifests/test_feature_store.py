"""The mapping over shards: round trip, parts, newest plans, other processes, open files."""

import multiprocessing
import operator
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_shards import video_part, write_parts, write_spec
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.feature_store import FeatureStore, num_noted, open_features
from vtnpipe.manifests.shards import VideoPart, checksum

OLD_FOLDER = Path(__file__).parents[1] / "fixtures/v0.1/features"


def test_round_trip(folder: FeatureFolder) -> None:
    parts = [
        video_part("v1", 5, seed=1, decoder="decord"),
        video_part("ünï/../x", 1, seed=2, decoder="pyav"),
        video_part("none", 0, reason="empty", message="0 bytes"),
        video_part("v2", 3, seed=3, first=4, status="partial", num_lost_frames=2, reason="damaged"),
    ]
    write_parts(folder, "000-00000", *parts)
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


def test_several_views_and_float32(folder: FeatureFolder) -> None:
    write_spec(folder, 2, 3)
    features = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    part = VideoPart(
        video_id="v",
        features=features,
        frame_index=np.arange(4),
        timestamps=np.arange(4.0),
        status="ok",
    )
    write_parts(
        *(folder, "000-00000", part),
        row_shape=(2, 3),
        dtype="float32",
        views=["center", "flip"],
    )
    store = open_features(folder.root)
    np.testing.assert_array_equal(store["v"].features, features)
    assert (store.num_views, store.dtype) == (2, np.float32)
    write_spec(folder, 3)
    with pytest.raises(FeaturesError, match=r"000-00000\.h5: .*\[2, 3\] per frame.*\[3\]"):
        open_features(folder.root)


def test_a_shard_of_failures_only(folder: FeatureFolder) -> None:
    write_parts(folder, "000-00000", video_part("v1", 0, reason="missing"))
    store = open_features(folder.root)
    assert len(store) == 0
    assert store.statuses == {"v1": "failed"}


def test_parts_are_joined_and_a_missing_part_makes_the_video_absent(folder: FeatureFolder) -> None:
    parts = [video_part("v", 3, seed=n, first=3 * n, part=n, num_parts=3) for n in range(3)]
    write_parts(folder, "000-00000", parts[2], video_part("w", 1))
    write_parts(folder, "000-00002", parts[0])
    assert list(open_features(folder.root)) == ["w"]
    write_parts(folder, "000-00001", parts[1])
    store = open_features(folder.root)
    video = store["v"]
    assert video.frame_index.tolist() == list(range(9))
    np.testing.assert_array_equal(video.features, np.concatenate([p.features for p in parts]))
    assert not video.features.flags.writeable
    assert video.fps == pytest.approx(30)
    rows = np.array([8, 0, 3, 3, 5])
    np.testing.assert_array_equal(store.take("v", rows), video.features[rows])


def test_the_newest_complete_entry_counts(folder: FeatureFolder) -> None:
    write_parts(folder, "000-00000", video_part("v", 2, seed=1))
    write_parts(folder, "001-00000", video_part("v", 4, seed=2))
    write_parts(folder, "002-00000", video_part("v", 9, seed=3, part=0, num_parts=2))
    assert len(open_features(folder.root)["v"].features) == 4


def test_the_plan_that_counts_is_told(folder: FeatureFolder) -> None:
    write_parts(folder, "000-00000", video_part("v", 2), video_part("w", 0, reason="damaged"))
    write_parts(folder, "001-00000", video_part("v", 0, reason="stalled"), video_part("w", 3))
    store = open_features(folder.root)
    assert store.plans == {"v": 0, "w": 1}


def test_a_number_of_parts_that_lies_costs_nothing(folder: FeatureFolder) -> None:
    write_parts(folder, "000-00000", video_part("v", 2, num_parts=2**60))
    assert "v" not in open_features(folder.root)


def test_a_part_that_failed_in_passing_hides_no_whole_video(folder: FeatureFolder) -> None:
    stalled = {"status": "failed", "reason": "stalled", "part": 1, "num_parts": 2}
    write_parts(folder, "000-00000", video_part("v", 9), video_part("w", 0, reason="damaged"))
    write_parts(
        folder, "001-00000", video_part("v", 4, num_parts=2), video_part("w", 4, num_parts=2)
    )
    write_parts(folder, "001-00001", video_part("v", 0, **stalled), video_part("w", 0, **stalled))
    store = open_features(folder.root)
    assert len(store["v"].features) == 9
    assert len(store["w"].features) == 4  # better than what failed before


def test_an_earlier_store_spares_reading_its_shards(
    folder: FeatureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parts(folder, "000-00000", video_part("v", 2))
    earlier = FeatureStore(folder.root)
    path = write_parts(folder, "000-00001", video_part("w", 3))
    read = []
    read_shard = FeatureStore.__init__.__globals__["read_shard"]
    monkeypatch.setattr(
        "vtnpipe.manifests.feature_store.read_shard",
        lambda *args: read.append(args[0]) or read_shard(*args),
    )
    store = FeatureStore(folder.root, earlier=earlier)
    assert read == [path]
    assert {name: store.num_frames(name) for name in store} == {"v": 2, "w": 3}


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_store_works_in_other_processes(folder: FeatureFolder, method: str) -> None:
    part = video_part("v", 50)
    write_parts(folder, "000-00000", part)
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
        write_parts(folder, f"000-{number:05}", video_part(f"v{number}", 2, seed=number))
    store = open_features(folder.root)
    before = _open_file_count()
    for _ in range(2):
        for number in range(12):
            np.testing.assert_array_equal(
                store[f"v{number}"].features, video_part("", 2, seed=number).features
            )
    assert _open_file_count() - before <= 5


def test_a_low_limit_of_open_files_is_kept(
    folder: FeatureFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda what: (16, 16))
    for number in range(12):
        write_parts(folder, f"000-{number:05}", video_part(f"v{number}", 2, seed=number))
    store = open_features(folder.root)
    before = _open_file_count()
    assert len([store[video_id].features.sum() for video_id in store]) == 12
    assert _open_file_count() - before <= 4


def test_an_unknown_id_is_told_with_the_known_ones(folder: FeatureFolder) -> None:
    write_parts(folder, "000-00000", *(video_part(f"v{number}", 2) for number in range(7)))
    store = open_features(folder.root)
    with pytest.raises(KeyError, match="no features of 'w'; it has those of 7 videos: 'v0', 'v1'"):
        store["w"]
    assert store.get("w") is None


def test_videos_are_counted_by_note(folder: FeatureFolder) -> None:
    parts = [
        replace(video_part("a", 2), message="its clock jumps; HDR"),
        replace(video_part("b", 2), message="HDR"),
        video_part("c", 2),
    ]
    write_parts(folder, "000-00000", *parts)
    assert num_noted(open_features(folder.root).entries) == {"its clock jumps": 1, "HDR": 2}


def test_a_damaged_shard_is_refused(folder: FeatureFolder) -> None:
    path = write_parts(folder, "000-00000", video_part("v", 2))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FeaturesError, match=r"000-00000\.h5"):
        open_features(folder.root)


def test_refuses_a_folder_without_extraction(tmp_path: Path) -> None:
    with pytest.raises(FeaturesError, match="not a feature folder"):
        open_features(tmp_path)


def test_a_folder_of_version_0_1_still_opens() -> None:
    store = open_features(OLD_FOLDER)
    assert store.statuses == {**{f"v{n}": "ok" for n in range(6)}, "lost": "failed"}
    assert store["v0"].features.shape[1:] == (2, 16)
    assert store["v0"].frame_index[:3].tolist() == [0, 2, 4]
