"""One task → one shard: rows, batches across videos, new starts, and values not to be stored."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from feature_folders import extract_rows, make_folder
from numbered_videos import CLIP_LENGTHS, number_of_blocks
from read_videos import write_video_that_loses_a_frame
from vtnpipe.extract.batching import TaskProgress
from vtnpipe.extract.decode.cuts import cut_video
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.pool import DecodeAgain, DecoderPool
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.decode.protocol import DecodeEvent, DecodeRequest
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import with_file_state


def assert_same(one: FeatureFolder, other: FeatureFolder) -> None:
    """The same videos, with the same bits."""
    stores = [open_features(folder.root) for folder in (one, other)]
    assert stores[0].statuses == stores[1].statuses
    assert list(stores[0]) == list(stores[1])
    for name in stores[0]:
        for array in ("features", "frame_index", "timestamps"):
            found = [getattr(store[name], array) for store in stores]
            np.testing.assert_array_equal(*found)


def test_every_frame_lands_in_its_row(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    missing = VideoRow(video_id="missing", path=str(tmp_path / "none.mp4"))
    span = VideoRow(video_id="span", path=rows[0].path, start=0.4, end=0.8)
    seen: list[TaskProgress] = []
    report = extract_rows(folder, [rows[0], missing, *rows[1:], span], on_progress=seen.append)
    store = open_features(folder.root)
    for k, (name, length) in enumerate(CLIP_LENGTHS.items()):
        numbers = [number_of_blocks(row) for row in store[name].features]
        assert numbers == list(range(1000 * k, 1000 * k + length))
        assert store[name].frame_index.tolist() == list(range(length))
        assert store[name].fps == pytest.approx(25, rel=0.01)
    assert [number_of_blocks(row) for row in store["span"].features] == list(range(10, 20))
    assert store["span"].frame_index.tolist() == list(range(10, 20))
    assert store.entries["missing"][0].reason == "missing"
    total = sum(CLIP_LENGTHS.values())
    assert report.num_frames == total + 10
    assert report.num_videos == {"ok": 5, "failed": 1}
    assert sum(progress.num_frames for progress in seen) == total + 10
    assert sum(progress.num_unplanned_frames for progress in seen) == total + 10
    assert set(report.seconds) == {*("decode", "wait", "copy", "preprocess", "forward", "write")}


@pytest.mark.parametrize("num_decoder_processes", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batches_and_processes_change_no_frame(
    tmp_path: Path, rows: list[VideoRow], batch_size: int, num_decoder_processes: int
) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    extract_rows(folder, rows, batch_size=batch_size, num_decoder_processes=num_decoder_processes)
    store = open_features(folder.root)
    assert [number_of_blocks(row) for row in store["b"].features] == list(range(1000, 1033))
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS


def test_a_new_start_changes_no_bit(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(undisturbed, rows)
    decode = DecoderPool.decode
    for after in (1, 2, 3):  # events of videos 1 and 3 before all have to start again
        begun_again: list[int] = []

        def decode_again(
            self: DecoderPool,
            requests: list[DecodeRequest | Outcome],
            after: int = after,
            begun_again: list[int] = begun_again,
        ) -> Iterator[tuple[int, DecodeEvent]]:
            counts = dict.fromkeys(range(len(requests)), 0)
            with closing(decode(self, requests)) as events:
                for row, event in events:
                    yield row, event
                    counts[row] += 1
                    if row in (1, 3) and counts[row] == after and row not in begun_again:
                        begun_again.append(row)
                        raise DecodeAgain(row, requests[row])

        monkeypatch.setattr(DecoderPool, "decode", decode_again)
        disturbed = make_folder(tmp_path / f"g{after}", "toy_backbones:mixer")
        seen: list[TaskProgress] = []
        report = extract_rows(disturbed, rows, on_progress=seen.append)
        monkeypatch.undo()
        assert begun_again == [1, 3]
        assert_same(undisturbed, disturbed)
        total = sum(CLIP_LENGTHS.values())
        assert report.num_frames == total
        assert sum(progress.num_frames for progress in seen) == total
        assert sum(progress.num_unplanned_frames for progress in seen) == total


@pytest.fixture
def faulty_row(tmp_path: Path) -> VideoRow:
    """A video of which decord gives 100 frames before it shows that they are wrong."""
    path = write_video_that_loses_a_frame(tmp_path / "faulty.mov", 100, 9)
    return VideoRow(video_id="faulty", path=str(path))


def test_a_fault_of_decord_in_mid_video_changes_no_bit(
    tmp_path: Path, rows: list[VideoRow], faulty_row: VideoRow
) -> None:
    rows = [*rows[:2], faulty_row, *rows[2:]]
    by_pyav = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(by_pyav, rows, decoder="pyav")
    folder = make_folder(tmp_path / "g", "toy_backbones:mixer")
    report = extract_rows(folder, rows)
    assert_same(by_pyav, folder)
    assert report.num_videos == {"ok": 4, "partial": 1}
    (entry,) = open_features(folder.root).entries["faulty"]
    assert (entry.length, entry.num_lost_frames, entry.decoder) == (99, 1, "pyav")
    assert "decord repeats its last frame" in entry.decoder_reason


def test_a_video_that_fails_after_frames_leaves_no_frames(
    tmp_path: Path, rows: list[VideoRow], faulty_row: VideoRow
) -> None:
    missing = VideoRow(video_id="faulty", path=str(tmp_path / "none.mp4"))
    without = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(without, [*rows[:2], missing, rows[2]], decoder="decord")
    folder = make_folder(tmp_path / "g", "toy_backbones:mixer")
    report = extract_rows(folder, [*rows[:2], faulty_row, rows[2]], decoder="decord")
    assert_same(without, folder)
    assert "faulty" not in open_features(folder.root)
    assert report.num_failed == {"damaged": 1}
    assert str(faulty_row.path) in report.example


@pytest.mark.slow
def test_a_process_killed_in_the_middle_changes_no_bit(
    tmp_path: Path, rows: list[VideoRow]
) -> None:
    undisturbed = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(undisturbed, rows)
    folder = make_folder(tmp_path / "g", "toy_backbones:mixer")
    is_killed = False

    def kill(progress: TaskProgress) -> None:
        nonlocal is_killed
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if progress.num_frames and not is_killed:
            is_killed = True
            for pid in children:
                if b"decode.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    extract_rows(folder, rows, on_progress=kill)
    assert is_killed
    assert_same(undisturbed, folder)
    entries = [entry for one in open_features(folder.root).entries.values() for entry in one]
    assert any("crashed at the first try" in entry.decoder_reason for entry in entries)


def test_parts_are_joined_and_some_frames_are_views(tmp_path: Path, rows: list[VideoRow]) -> None:
    views = ("center", "flip")
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means", views=views, frame_stride=2)
    sampling = Sampling(frame_stride=2)
    cuts = cut_video(probe(rows[0].path), [0, 9, 17], sampling)
    assert len(cuts) == 3
    for number, cut in enumerate(cuts):
        row = with_file_state(rows[0])._replace(part=number, num_parts=3, cut=cut)
        others = [with_file_state(rows[number + 1])]
        extract_rows(folder, [row, *others], f"000-{number:05d}", num_decoder_processes=2)
    store = open_features(folder.root)
    for k, (name, length) in enumerate(CLIP_LENGTHS.items()):
        video = store[name]
        assert video.frame_index.tolist() == list(range(0, length, 2))
        np.testing.assert_allclose(video.timestamps, video.frame_index / 25, atol=1e-3)
        assert video.features.shape == ((length + 1) // 2, 2, 16)
        center, flip = video.features[:, 0], video.features[:, 1]
        assert [number_of_blocks(row) for row in center] == list(
            range(1000 * k, 1000 * k + length, 2)
        )
        np.testing.assert_allclose(
            flip.reshape(-1, 4, 4), center.reshape(-1, 4, 4)[..., ::-1], atol=1e-3
        )
    (folder.shards / "000-00001.h5").unlink()
    assert "a" not in open_features(folder.root)  # a video with a part missing is absent


def test_two_tasks_at_a_time_take_turns(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    with ThreadPoolExecutor(2) as pool:
        reports = list(
            pool.map(
                lambda number: extract_rows(
                    folder,
                    [with_file_state(rows[number])],
                    f"000-{number:05d}",
                    num_decoder_processes=2,
                ),
                range(4),
            )
        )
    turns = sorted((report.begin, report.end) for report in reports)
    assert all(one[1] <= other[0] for one, other in pairwise(turns))
    store = open_features(folder.root)
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS
