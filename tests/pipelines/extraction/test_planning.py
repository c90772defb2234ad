"""Planning: quick probes of rows, sizes of tasks, and how rows become tasks."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from numbered_videos import write_video
from vtnpipe.extract.decode.cuts import PREROLL_IF_CHEAP
from vtnpipe.extract.decode.limits import Limits
from vtnpipe.extract.decode.pool import DecoderPool
from vtnpipe.extract.decode.sampling import Sampling
from vtnpipe.manifests.feature_folder import MAX_SHARD_BYTES, Extraction, FeatureSpec
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import Computation, PlannedRow, TaskSize, with_file_state
from vtnpipe.pipelines.extraction import planning
from vtnpipe.pipelines.extraction.feature_spec import NewExtraction
from vtnpipe.pipelines.extraction.planning import (
    CUT_FROM,
    MAX_LANE_FRAMES,
    MIN_LANE_FRAMES,
    MIN_TASK_FRAMES,
    TASK_FRAMES,
    Division,
    automatic_task_size,
    divide,
    divide_work,
    lane_frames,
    max_task_frames,
    nvdec_share,
)
from vtnpipe.pipelines.extraction.probing import ProbedRow, file_properties, probe_rows
from vtnpipe.pipelines.extraction.settings import ExtractSettings

EXTRACTION = Extraction(
    spec=FeatureSpec(backbone="x", feature_dtype="float16"),
    fingerprint="x",
    row_shape=(768,),
    weights="none",
)


def _division(num_frames: int, **options: Any) -> Division:
    return Division(size=TaskSize(num_frames), computation=Computation(8), **options)


@pytest.fixture(scope="module")
def pool() -> Iterable[DecoderPool]:
    with DecoderPool(2) as pool:
        yield pool


def test_long_videos_are_cut_and_short_ones_share_a_task(tmp_path: Path, pool: DecoderPool) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", length) for n, length in enumerate((9, 100, 9, 9))]
    rows = [with_file_state(VideoRow(video_id=path.stem, path=str(path))) for path in paths]
    probed = probe_rows(
        [*rows, rows[0]._replace(video_id="again", end=0.2)], Sampling(), pool, ExtractSettings()
    )
    assert [one.row.num_frames for one in probed] == [9, 100, 9, 9, 5]
    tasks = divide(probed, Sampling(), _division(30), pool)
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
    # Near multiples of 30, 16 frames after a keyframe.
    assert [(cut.first_frame, cut.stop_frame) for cut in cuts] == [(0, 28), (28, 64), (64, 100)]
    assert [(cut.start, cut.end) for cut in cuts] == [(0.0, 1.12), (1.12, 2.56), (2.56, None)]
    whole = divide(probed, Sampling(), _division(30, may_cut=False), pool)  # as decord decodes
    assert [[(row.video_id, row.num_parts) for row in task] for task in whole] == [
        [("0", 1)],
        [("1", 1)],
        [("2", 1), ("3", 1), ("again", 1)],
    ]


def test_parts_of_a_long_video_are_lanes(tmp_path: Path, pool: DecoderPool) -> None:
    path = write_video(tmp_path / "a.mp4", 100)
    row = with_file_state(VideoRow(video_id="a", path=str(path)))
    division = Division(
        size=TaskSize(60), computation=Computation(8, lane_frames=30), max_preroll=PREROLL_IF_CHEAP
    )
    tasks = divide(
        probe_rows([row], Sampling(), pool, ExtractSettings()), Sampling(), division, pool
    )
    assert [[part.part for part in task] for task in tasks] == [[0], [1], [2]]
    assert [part.num_frames for task in tasks for part in task] == [28, 36, 36]


def test_wanted_frames_are_estimated_by_sampling(tmp_path: Path, pool: DecoderPool) -> None:
    path = write_video(tmp_path / "a.mp4", 100)
    row = with_file_state(VideoRow(video_id="a", path=str(path)))
    rows = [row, row._replace(start=1.0), row._replace(start=1.0, end=2.0), row._replace(start=9.0)]
    for sampling, expected in (
        (Sampling(), [100, 75, 25, 1]),
        (Sampling(frame_stride=10), [10, 8, 3, 1]),
        (Sampling(fps=5), [20, 15, 5, 1]),
        (Sampling(fps=500), [100, 75, 25, 1]),
    ):
        found = [one.row.num_frames for one in probe_rows(rows, sampling, pool, ExtractSettings())]
        assert found == expected


def test_unreadable_files_have_an_error_and_no_properties(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 10)
    write_video(tmp_path / "wide.mp4", 10, width=256)
    (tmp_path / "text.mp4").write_text("no video")
    names = ("a.mp4", "wide.mp4", "text.mp4", "none.mp4")
    rows = [with_file_state(VideoRow(video_id=n, path=str(tmp_path / n))) for n in names]
    with DecoderPool(limits=Limits(max_pixels=64 * 128)) as pool:
        probed = probe_rows(rows, Sampling(), pool, ExtractSettings(), with_orientation=True)
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
    sizes = partial(automatic_task_size, num_workers=2, num_processes=1, most=most)
    for num_frames, expected in ((10**6, TASK_FRAMES["cpu"]), (4800, 300), (10, 64)):
        assert sizes(num_frames, "cpu").num_frames == expected
    assert sizes(10, "cpu", num_workers=1) == TaskSize(TASK_FRAMES["cpu"])
    assert sizes(10**6, "cpu", num_processes=3).num_frames == 3 * TASK_FRAMES["cpu"]
    assert MIN_TASK_FRAMES["cpu"] == 64
    size = sizes(10**9, "cuda", num_workers=8, num_processes=16)
    assert size.num_frames == 16 * TASK_FRAMES["cuda"]
    assert size.num_frames * EXTRACTION.bytes_per_frame * CUT_FROM <= MAX_SHARD_BYTES
    assert size.num_frames_in_tail == 2 * TASK_FRAMES["cuda"]
    assert size.num_tail_frames == 16 * size.num_frames
    large = replace(EXTRACTION, row_shape=(3, 1_000_000))
    most = max_task_frames(large)
    assert most * large.bytes_per_frame * CUT_FROM <= MAX_SHARD_BYTES
    assert (most + 1) * large.bytes_per_frame * CUT_FROM > MAX_SHARD_BYTES
    size = sizes(10**9, "cpu", num_workers=8, most=most)
    assert size.num_frames == size.num_frames_in_tail == most


@pytest.mark.parametrize(
    ("num_frames", "num_processes", "expected"),
    [
        (10**6, 1, None),
        (10**6, 16, MAX_LANE_FRAMES),
        (64_000, 16, 1000),
        (100, 16, MIN_LANE_FRAMES),
    ],
)
def test_lanes_keep_all_processes_busy(
    num_frames: int, num_processes: int, expected: int | None
) -> None:
    assert lane_frames(num_frames, TaskSize(65_536), 1, num_processes) == expected


def test_a_task_has_a_lane_for_every_process() -> None:
    assert lane_frames(10**6, TaskSize(2048), 1, 16) == 128


@pytest.mark.parametrize(
    ("choice", "device", "num_frames", "expected"),
    [
        ("auto", "cuda", 10**7, True),
        ("auto", "cuda", 10**5, False),
        ("auto", "cpu", 10**7, False),
        ("yes", "cpu", 10, True),
        ("no", "cuda", 10**7, False),
    ],
)
def test_compiling_pays_for_long_work_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, choice: Any, device: str, num_frames: int, expected: bool
) -> None:
    monkeypatch.setattr(planning, "expected_workers", lambda *args: (2, 4))
    monkeypatch.setattr(planning, "can_compile", lambda device: True)
    row = PlannedRow("a", "a.mp4", None, None, 1, 1, num_frames=num_frames)
    new = NewExtraction(extraction=EXTRACTION, device=device, weights=None)
    settings = ExtractSettings(compile=choice)
    division = divide_work([ProbedRow(row=row, probe=None)], settings, new)
    assert division.computation.is_compiled is expected
    monkeypatch.setattr(planning, "can_compile", lambda device: False)
    division = divide_work([ProbedRow(row=row, probe=None)], settings, new)
    assert division.computation.is_compiled is (choice == "yes")


@pytest.mark.parametrize(
    ("decoder", "num_engines", "expected"),
    [("auto", 7, 0.532), ("auto", 1, 0.14), ("auto", 0, 0.0), ("pyav", 0, 0.0), ("nvdec", 7, 1.0)],
)
def test_engines_and_cores_end_together(decoder: Any, num_engines: int, expected: float) -> None:
    """An engine decodes as fast as 2.6 cores."""
    new = NewExtraction(
        extraction=EXTRACTION, device="cuda:0", weights=None, num_engines=num_engines
    )
    assert nvdec_share(ExtractSettings(decoder=decoder), new, 16) == expected


def test_a_probe_tells_which_rows_the_engines_may_decode(clips: dict[str, Path]) -> None:
    rows = [VideoRow(video_id=name, path=str(path)) for name, path in clips.items()]
    planned = [with_file_state(row) for row in rows]
    with DecoderPool() as pool:
        probed = probe_rows(planned, Sampling(), pool, ExtractSettings())
    assert {one.row.video_id: one.row.may_use_nvdec for one in probed} == {
        "a": True,
        "b": True,
        "c": True,
        "d": False,  # MPEG-4
    }
