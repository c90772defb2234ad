"""One task → one shard: rows, batches across videos, restarts, and values that can't be stored."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numbered_videos import CLIP_LENGTHS, number_of_blocks
from vtnpipe.extract.backbone import build_backbone
from vtnpipe.extract.batches import Progress
from vtnpipe.extract.children import DecodingChildren, Restarted
from vtnpipe.extract.worker import Job, TaskReport, run_task
from vtnpipe.manifests.errors import FeaturesError
from vtnpipe.manifests.folder import FeatureFolder, write_extraction
from vtnpipe.manifests.plan import Task, look_at
from vtnpipe.manifests.shards import open_features
from vtnpipe.manifests.videos import VideoRow


def _folder(root: Path, backbone: str, store: str = "float32") -> FeatureFolder:
    folder = FeatureFolder(root)
    folder.shards.mkdir(parents=True)
    built = build_backbone(backbone, "none")
    folder.backbone.write_bytes(built.weights)
    identity = {
        "backbone": backbone,
        "weights_digest": built.digest,
        "preprocessing": vars(built.preprocessing),
        "precision": "float32",
        "store": store,
        "views": ["centre"],
    }
    write_extraction(folder, identity, row_shape=[built.dim], settings={}, weights="none")
    return folder


def _run(folder: FeatureFolder, rows: list[VideoRow], **changes: Any) -> TaskReport:
    defaults: dict[str, Any] = {
        "folder": str(folder.root),
        "device": "cpu",
        "num_threads": 1,
        "num_children": 1,
        "batch_size": 16,
        "decoder": "auto",
        "settings": {},
    }
    task = Task(name="000-00000", rows=tuple(look_at(row) for row in rows))
    on_progress = changes.pop("on_progress", lambda progress: None)
    return run_task(task, Job(**{**defaults, **changes}), on_progress)


@pytest.fixture
def rows(clips: dict[str, Path]) -> list[VideoRow]:
    return [VideoRow(video_id=name, path=str(path)) for name, path in clips.items()]


def test_every_frame_lands_in_its_row(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = _folder(tmp_path / "f", "toy_backbones:block_means")
    missing = VideoRow(video_id="missing", path=str(tmp_path / "none.mp4"))
    span = VideoRow(video_id="span", path=rows[0].path, start=0.4, end=0.8)
    seen: list[Progress] = []
    report = _run(folder, [rows[0], missing, *rows[1:], span], on_progress=seen.append)
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
    assert sum(progress.num_probed_frames for progress in seen) == total + 10
    assert set(report.seconds) == {"wait for frames", "resize", "backbone", "write"}


@pytest.mark.parametrize("num_children", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_batches_and_children_change_no_frame(
    tmp_path: Path, rows: list[VideoRow], batch_size: int, num_children: int
) -> None:
    folder = _folder(tmp_path / "f", "toy_backbones:block_means")
    _run(folder, rows, batch_size=batch_size, num_children=num_children)
    store = open_features(folder.root)
    assert [number_of_blocks(row) for row in store["b"].features] == list(range(1000, 1033))
    assert {name: len(store[name].features) for name in store} == CLIP_LENGTHS


def test_a_restart_changes_no_bit(
    tmp_path: Path, rows: list[VideoRow], monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = _folder(tmp_path / "f", "toy_backbones:mixer")
    _run(undisturbed, rows)
    decode = DecodingChildren.decode
    for after in (1, 2, 5, 7):  # events of a video before it begins again

        def restarting(self: Any, requests: Any, after: int = after) -> Any:
            held: list[Any] = []
            for row, event in decode(self, requests):
                held = held if held and held[0][0] == row else []
                if hasattr(event, "images"):
                    event = event._replace(images=event.images.copy())
                held.append((row, event))
                yield row, event
                if len(held) == after and row in (1, 3):
                    yield row, Restarted()
                    yield from held

        monkeypatch.setattr(DecodingChildren, "decode", restarting)
        disturbed = _folder(tmp_path / f"g{after}", "toy_backbones:mixer")
        _run(disturbed, rows)
        monkeypatch.undo()
        one, other = open_features(undisturbed.root), open_features(disturbed.root)
        for name in CLIP_LENGTHS:
            np.testing.assert_array_equal(one[name].features, other[name].features)


def test_a_child_killed_in_the_middle_changes_no_bit(tmp_path: Path, rows: list[VideoRow]) -> None:
    undisturbed = _folder(tmp_path / "f", "toy_backbones:mixer")
    _run(undisturbed, rows)
    folder = _folder(tmp_path / "g", "toy_backbones:mixer")
    is_killed = False

    def kill(progress: Progress) -> None:
        nonlocal is_killed
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if progress.num_frames and not is_killed:
            is_killed = True
            for pid in children:
                if b"extract.child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(int(pid), signal.SIGKILL)

    _run(folder, rows, on_progress=kill)
    assert is_killed
    one, other = open_features(undisturbed.root), open_features(folder.root)
    assert list(one) == list(other)
    for name in CLIP_LENGTHS:
        np.testing.assert_array_equal(one[name].features, other[name].features)


def test_values_beyond_float16_name_the_remedy(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = _folder(tmp_path / "f", "toy_backbones:huge", store="float16")
    with pytest.raises(FeaturesError, match=r"'a', frame \d+.*beyond float16.*--store float32"):
        _run(folder, rows)
    assert list(folder.shards.iterdir()) == []
    other = _folder(tmp_path / "g", "toy_backbones:huge", store="float32")
    _run(other, rows)
    assert open_features(other.root)["a"].features.max() > 1e5


def test_values_that_are_not_finite_are_an_error(tmp_path: Path, rows: list[VideoRow]) -> None:
    folder = _folder(tmp_path / "f", "toy_backbones:not_a_number")
    with pytest.raises(FeaturesError, match="not finite"):
        _run(folder, rows)
    _run(_folder(tmp_path / "g", "toy_backbones:block_means"), rows)  # the children still serve
