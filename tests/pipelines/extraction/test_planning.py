"""Planning: quick probes of rows, sizes of tasks, and how rows become tasks."""

from dataclasses import replace
from pathlib import Path

import pytest
from numbered_videos import write_video
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.feature_folder import Extraction, FeatureSpec
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import TaskSize, with_file_state
from vtnpipe.pipelines.extraction import planning
from vtnpipe.pipelines.extraction.planning import (
    ASSUMED_WORKERS,
    CUT_FROM,
    MAX_SHARD_BYTES,
    MIN_TASK_FRAMES,
    TASK_FRAMES,
    automatic_task_size,
    divide,
    expected_workers,
    file_properties,
    max_task_frames,
    probe_rows,
)
from vtnpipe.pipelines.extraction.settings import ExtractSettings

EXTRACTION = Extraction(
    spec=FeatureSpec(backbone="x", feature_dtype="float16"),
    fingerprint="x",
    row_shape=(768,),
    weights="none",
)


def test_long_videos_are_cut_and_short_ones_share_a_task(tmp_path: Path) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", length) for n, length in enumerate((9, 100, 9, 9))]
    rows = [with_file_state(VideoRow(video_id=path.stem, path=str(path))) for path in paths]
    probed = probe_rows([*rows, rows[0]._replace(video_id="again", end=0.2)], Sampling())
    assert [one.row.num_frames for one in probed] == [9, 100, 9, 9, 5]
    tasks = divide(probed, Sampling(), TaskSize(30))
    assert [[(row.video_id, row.part) for row in task] for task in tasks] == [
        [("0", 0)],
        [("1", 0)],
        [("1", 1)],
        [("1", 2)],
        [("2", 0), ("3", 0), ("again", 0)],
    ]
    parts = [row for task in tasks for row in task if row.video_id == "1"]
    assert [row.num_parts for row in parts] == [3, 3, 3]
    cuts = [row.cut for row in parts if row.cut is not None]
    assert [(cut.first_frame, cut.stop_frame) for cut in cuts] == [(0, 30), (30, 60), (60, 100)]
    assert [(cut.start, cut.end) for cut in cuts] == [(0.0, 1.2), (1.2, 2.4), (2.4, None)]
    whole = divide(probed, Sampling(), TaskSize(30), may_cut=False)  # as decord decodes
    assert [[(row.video_id, row.num_parts) for row in task] for task in whole] == [
        [("0", 1)],
        [("1", 1)],
        [("2", 1), ("3", 1), ("again", 1)],
    ]


def test_wanted_frames_are_estimated_by_sampling(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", 100)
    row = with_file_state(VideoRow(video_id="a", path=str(path)))
    rows = [row, row._replace(start=1.0), row._replace(start=1.0, end=2.0), row._replace(start=9.0)]
    for sampling, expected in (
        (Sampling(), [100, 75, 25, 1]),
        (Sampling(frame_stride=10), [10, 8, 3, 1]),
        (Sampling(fps=5), [20, 15, 5, 1]),
        (Sampling(fps=500), [100, 75, 25, 1]),
    ):
        found = [one.row.num_frames for one in probe_rows(rows, sampling)]
        assert found == expected


def test_unreadable_files_have_an_error_and_no_properties(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 10)
    write_video(tmp_path / "wide.mp4", 10, width=256)
    (tmp_path / "text.mp4").write_text("no video")
    names = ("a.mp4", "wide.mp4", "text.mp4", "none.mp4")
    rows = [with_file_state(VideoRow(video_id=n, path=str(tmp_path / n))) for n in names]
    probed = probe_rows(rows, Sampling(), Limits(max_pixels=64 * 128), with_orientation=True)
    assert [one.row.video_id for one in probed] == list(names)
    assert [one.error.reason if one.error else "" for one in probed] == [
        *("", "too-large", "not-a-video", "missing"),
    ]
    properties = file_properties(probed)
    assert properties["codec"] == {"h264": 1}
    assert properties["size"] == {"128x64": 1}
    assert properties["rotation"] == {"upright": 1}
    assert "estimate" not in properties  # the index of an MP4 is exact


def test_tasks_keep_all_workers_busy_and_are_bounded_in_bytes() -> None:
    most = max_task_frames(EXTRACTION)
    for num_frames, expected in ((10**6, TASK_FRAMES["cpu"]), (4800, 300), (10, 64)):
        size = automatic_task_size(num_frames, device="cpu", num_workers=2, most=most)
        assert size.num_frames == expected
    assert MIN_TASK_FRAMES["cpu"] == 64
    size = automatic_task_size(10**9, device="cuda:1", num_workers=8, most=most)
    assert size.num_frames == TASK_FRAMES["cuda"]
    assert size.num_frames * EXTRACTION.bytes_per_frame * CUT_FROM <= MAX_SHARD_BYTES
    assert size.num_frames_in_tail == TASK_FRAMES["cuda"] // 8
    assert size.num_tail_frames == 16 * size.num_frames
    large = replace(EXTRACTION, row_shape=(3, 1_000_000))
    most = max_task_frames(large)
    assert most * large.bytes_per_frame * CUT_FROM <= MAX_SHARD_BYTES
    assert (most + 1) * large.bytes_per_frame * CUT_FROM > MAX_SHARD_BYTES
    size = automatic_task_size(10**9, device="cpu", num_workers=8, most=most)
    assert size.num_frames == size.num_frames_in_tail == most


def test_the_workers_that_tasks_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "num_cpus", lambda: 8)
    monkeypatch.setattr(planning, "num_gpus", lambda device: 4)
    for device, expected in (("cpu", 8), ("cuda", 4)):
        assert expected_workers(ExtractSettings(), device) == expected
    assert expected_workers(ExtractSettings(workers=3), "cpu") == 3
    assert expected_workers(ExtractSettings(scheduler="a"), "cpu") == ASSUMED_WORKERS
    jobs = ExtractSettings(cluster="slurm", jobs=5, job={"cores": 6})
    assert expected_workers(jobs, "cpu") == 30
    assert expected_workers(replace(jobs, device="cuda"), "cuda") == 5
