"""One task → one shard: rows, batches across videos, restarts, and values that can't be stored."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_folders import extract_rows, make_folder
from numbered_videos import CLIP_LENGTHS, number_of_blocks
from vtnpipe.extract.batching import Progress
from vtnpipe.extract.decode.cuts import cut_video
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.probe import probe
from vtnpipe.extract.decode.protocol import Restarted
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import look_at
from vtnpipe.manifests.shards import open_features


@pytest.fixture
def rows(clips: dict[str, Path]) -> list[VideoRow]:
    return [VideoRow(video_id=name, path=str(path)) for name, path in clips.items()]


def test_every_frame_lands_in_its_row(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    missing = VideoRow(video_id="missing", path=str(tmp_path / "none.mp4"))
    span = VideoRow(video_id="span", path=rows[0].path, start=0.4, end=0.8)
    seen: list[Progress] = []
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


@pytest.mark.parametrize("num_children", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batches_and_children_change_no_frame(
    tmp_path: Path, rows: list[VideoRow], batch_size: int, num_children: int
) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means")
    extract_rows(folder, rows, batch_size=batch_size, num_children=num_children)
    store = open_features(folder.root)
    assert [number_of_blocks(row) for row in store["b"].features] == list(range(1000, 1033))
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS


def test_a_restart_changes_no_bit(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(undisturbed, rows)
    run = DecoderPool.run
    for after in (1, 2, 5, 7):  # events of a video before it begins again

        def restarting(self: Any, requests: Any, after: int = after) -> Any:
            held: list[Any] = []
            for row, event in run(self, requests):
                held = held if held and held[0][0] == row else []
                if hasattr(event, "images"):
                    event = event._replace(images=event.images.copy())
                held.append((row, event))
                yield row, event
                if len(held) == after and row in (1, 3):
                    yield row, Restarted()
                    yield from held

        monkeypatch.setattr(DecoderPool, "run", restarting)
        disturbed = make_folder(tmp_path / f"g{after}", "toy_backbones:mixer")
        extract_rows(disturbed, rows)
        monkeypatch.undo()
        one, other = open_features(undisturbed.root), open_features(disturbed.root)
        for name in CLIP_LENGTHS:
            np.testing.assert_array_equal(one[name].features, other[name].features)


def test_a_child_killed_in_the_middle_changes_no_bit(tmp_path: Path, rows: list[VideoRow]) -> None:
    undisturbed = make_folder(tmp_path / "f", "toy_backbones:mixer")
    extract_rows(undisturbed, rows)
    folder = make_folder(tmp_path / "g", "toy_backbones:mixer")
    is_killed = False

    def kill(progress: Progress) -> None:
        nonlocal is_killed
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if progress.num_frames and not is_killed:
            is_killed = True
            for pid in children:
                if b"decode.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    extract_rows(folder, rows, on_progress=kill)
    assert is_killed
    one, other = open_features(undisturbed.root), open_features(folder.root)
    assert list(one) == list(other)
    for name in CLIP_LENGTHS:
        np.testing.assert_array_equal(one[name].features, other[name].features)


def test_values_beyond_float16_name_the_remedy(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:huge", store="float16")
    with pytest.raises(
        FeaturesError, match=r"'a', frame \d+.*beyond float16.*--feature-dtype float32"
    ):
        extract_rows(folder, rows)
    assert list(folder.shards.iterdir()) == []
    other = make_folder(tmp_path / "g", "toy_backbones:huge", store="float32")
    extract_rows(other, rows)
    assert open_features(other.root)["a"].features.max() > 1e5


def test_values_that_are_not_finite_are_an_error(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = make_folder(tmp_path / "f", "toy_backbones:not_a_number")
    with pytest.raises(FeaturesError, match="not finite"):
        extract_rows(folder, rows)
    extract_rows(
        make_folder(tmp_path / "g", "toy_backbones:block_means"), rows
    )  # the children still serve


def test_parts_are_joined_and_some_frames_are_views(tmp_path: Path, rows: list[VideoRow]) -> None:
    views = ("center", "flip")
    folder = make_folder(tmp_path / "f", "toy_backbones:block_means", views=views, frame_stride=2)
    sampling = Sampling(frame_stride=2)
    cuts = cut_video(probe(rows[0].path), [0, 9, 17], sampling)
    assert len(cuts) == 3
    for number, cut in enumerate(cuts):
        row = look_at(rows[0])._replace(part=number, num_parts=3, cut=cut)
        others = [look_at(rows[number + 1])]
        extract_rows(folder, [row, *others], f"000-{number:05d}", num_children=2)
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
                    folder, [look_at(rows[number])], f"000-{number:05d}", num_children=2
                ),
                range(4),
            )
        )
    turns = sorted((report.begin, report.end) for report in reports)
    assert all(one[1] <= other[0] for one, other in pairwise(turns))
    store = open_features(folder.root)
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS
