"""One task → one shard: rows, lanes that are decoded side by side, and new starts."""

import gc
import os
import random
import signal
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import extract_rows, make_folder
from numbered_videos import CLIP_LENGTHS, number_of_blocks, write_video
from read_videos import write_video_that_loses_a_frame
from vtnpipe.extract.batching import Batcher, ExtractedVideo, TaskProgress
from vtnpipe.extract.decode import groups
from vtnpipe.extract.decode.cuts import cut_video
from vtnpipe.extract.decode.frames import Outcome
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.decode.protocol import Chunk
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.extract.preprocessing import Transform
from vtnpipe.extract.task import joined_outcome, release_worker
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.feature_store import open_features
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import PlannedRow, with_file_state


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


@pytest.mark.parametrize("lane_frames", [None, 20, 40])
def test_lanes_that_start_again_change_no_bit(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch, lane_frames: int | None
) -> None:
    undisturbed = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(undisturbed, _planned(rows), lane_frames=lane_frames)
    handle = groups.Group.handle
    for after in (1, 2, 3):  # frames of files 1 and 3
        begun_again: list[str] = []

        def handle_badly(
            group: Any,
            message: Any,
            after: int = after,
            begun_again: list[str] = begun_again,
        ) -> Any:
            request = None if group.is_done else group.requests[group.number]
            path = getattr(request, "path", "")
            is_last = message["kind"] == "end" or message.get("frame_index", [0])[-1] >= after
            if path in (rows[1].path, rows[3].path) and is_last and path not in begun_again:
                begun_again.append(path)
                return request  # takes the place of the request when the group starts again
            return handle(group, message)

        monkeypatch.setattr(groups.Group, "handle", handle_badly)
        disturbed = make_folder(tmp_path / f"g{after}", "toy_backbones:mixer")
        seen: list[TaskProgress] = []
        report = extract_rows(
            disturbed, _planned(rows), lane_frames=lane_frames, on_progress=seen.append
        )
        monkeypatch.undo()
        assert sorted(begun_again) == [rows[1].path, rows[3].path]
        assert_same(undisturbed, disturbed)
        total = sum(CLIP_LENGTHS.values())
        assert report.num_frames == total
        assert sum(progress.num_frames for progress in seen) == total
        assert sum(progress.num_unplanned_frames for progress in seen) == 0


def _planned(rows: list[VideoRow]) -> list[PlannedRow]:
    """Return rows with their numbers of frames, as planning finds them."""
    return [
        with_file_state(row)._replace(num_frames=length)
        for row, length in zip(rows, CLIP_LENGTHS.values(), strict=True)
    ]


@pytest.mark.parametrize("lane_frames", [10, 20, 100])
@pytest.mark.parametrize("num_processes", [1, 3])
def test_lanes_decode_side_by_side_and_change_no_frame(
    tmp_path: Path, rows: list[VideoRow], lane_frames: int, num_processes: int
) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    report = extract_rows(
        folder, _planned(rows), lane_frames=lane_frames, num_decoder_processes=num_processes
    )
    store = open_features(folder.root)
    for k, (name, length) in enumerate(CLIP_LENGTHS.items()):
        numbers = [number_of_blocks(row) for row in store[name].features]
        assert numbers == list(range(1000 * k, 1000 * k + length))
        assert store[name].frame_index.tolist() == list(range(length))
        assert len(store.entries[name]) == 1  # parts are joined before they are stored
    assert report.num_frames == sum(CLIP_LENGTHS.values())


def test_the_number_of_processes_and_timing_change_no_bit(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []
    prepare = Batcher.prepare
    for num_processes, seconds in ((1, 0.0), (2, 0.0), (3, 0.03)):
        folder = make_folder(tmp_path / f"{num_processes}", "toy_backbones:mixer")

        def slow(batcher: Batcher, chunk: Chunk, seconds: float = seconds) -> Any:
            time.sleep(seconds * random.random())
            return prepare(batcher, chunk)

        monkeypatch.setattr(Batcher, "prepare", slow)
        extract_rows(folder, _planned(rows), lane_frames=20, num_decoder_processes=num_processes)
        monkeypatch.undo()
        folders.append(folder)
    assert_same(folders[0], folders[1])
    assert_same(folders[0], folders[2])


def test_memory_is_given_back_when_it_has_been_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, whose copies go on after `upload` has returned."""
    long = with_file_state(VideoRow(video_id="v", path=str(write_video(tmp_path / "v.mp4", 300))))
    copies: deque[tuple[torch.Tensor, np.ndarray]] = deque()

    class Event:
        def synchronize(self) -> None:
            tensor, images = copies.popleft()
            assert torch.equal(tensor, torch.from_numpy(images))  # not overwritten until now

    def upload(transform: object, data: np.ndarray, *, is_pinned: bool) -> Any:
        tensor = torch.empty(data.shape, dtype=torch.uint8)
        copies.append((tensor, data))
        return tensor, Event()

    monkeypatch.setattr(Transform, "upload", upload)
    resize = Transform.resize

    def resize_later(transform: Transform, data: torch.Tensor, *args: Any) -> torch.Tensor:
        data.copy_(torch.from_numpy(copies[-1][1]))
        return resize(transform, data, *args)

    monkeypatch.setattr(Transform, "resize", resize_later)
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    for number in range(6):  # more tasks than a process has slots
        row = long._replace(video_id=f"v{number}")
        extract_rows(folder, [row], f"000-{number:05d}")
        assert not copies
    store = open_features(folder.root)
    for video in store.values():
        assert [number_of_blocks(row) for row in video.features] == list(range(300))


def _video(num_expected: int, **outcome: Any) -> ExtractedVideo:
    video = ExtractedVideo("v", num_expected)
    video.outcome = Outcome(**outcome)
    return video


OK = {"status": "ok", "decoder": "pyav"}
FAILED = {"status": "failed", "reason": "damaged", "message": "m"}
PARTIAL = {"status": "partial", "reason": "truncated", "message": "p", "num_lost_frames": 3}


@pytest.mark.parametrize(
    ("parts", "status", "reason", "num_lost"),
    [
        ([OK, OK], "ok", "", 0),
        ([OK, FAILED], "partial", "damaged", 10),
        ([OK, PARTIAL, FAILED], "partial", "truncated", 13),
        ([FAILED, FAILED], "failed", "damaged", 0),
        ([OK, {**FAILED, "reason": "missing"}], "failed", "missing", 0),
        ([PARTIAL], "partial", "truncated", 3),
    ],
)
def test_the_outcome_of_a_video_in_parts(
    parts: list[dict[str, Any]], status: str, reason: str, num_lost: int
) -> None:
    outcome = joined_outcome([_video(10, **part) for part in parts])
    assert (outcome.status, outcome.reason, outcome.num_lost_frames) == (status, reason, num_lost)


def test_the_message_of_a_video_in_parts_is_about_all_of_them() -> None:
    noted = {**OK, "message": "its clock jumps; HDR"}
    outcome = joined_outcome([_video(10, **part) for part in (noted, {**OK, "message": "HDR"})])
    assert (outcome.status, outcome.message) == ("ok", "its clock jumps; HDR")
    outcome = joined_outcome([_video(10, **part) for part in (OK, PARTIAL, FAILED)])
    assert outcome.message == "13 of 13 frames are lost, in 2 of 3 parts; the first: p"


def test_a_video_that_fails_after_frames_leaves_no_frames(
    tmp_path: Path, rows: list[VideoRow]
) -> None:
    path = write_video_that_loses_a_frame(tmp_path / "faulty.mov", 100, 9)  # decord sees it late
    faulty = VideoRow(video_id="faulty", path=str(path))
    missing = VideoRow(video_id="faulty", path=str(tmp_path / "none.mp4"))
    without = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(without, [*rows[:2], missing, rows[2]], decoder="decord")
    folder = make_folder(tmp_path / "g", "toy_backbones:mixer")
    report = extract_rows(folder, [*rows[:2], faulty, rows[2]], decoder="decord")
    assert_same(without, folder)
    assert "faulty" not in open_features(folder.root)
    assert report.num_failed == {"damaged": 1}
    assert str(path) in report.example


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


def test_two_tasks_at_a_time_share_a_worker(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    with ThreadPoolExecutor(2) as pool:
        list(
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
    store = open_features(folder.root)
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS


def test_a_worker_can_be_released(tmp_path: Path, rows: list[VideoRow]) -> None:
    def decoders() -> int:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        commands = (Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children)
        return sum(b"decode.process" in command for command in commands)

    extract_rows(make_folder(tmp_path / "f", "toy_backbones:block_means"), rows)
    assert decoders() > 0
    release_worker()
    gc.collect()
    assert decoders() == 0
    extract_rows(make_folder(tmp_path / "g", "toy_backbones:block_means"), rows)
