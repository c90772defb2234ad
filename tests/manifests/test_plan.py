"""Plans: packing, round trip, and what is left to do."""

from pathlib import Path

import pytest
from vtnpipe.manifests.errors import FeaturesError, ManifestError
from vtnpipe.manifests.folder import FeatureFolder
from vtnpipe.manifests.plan import (
    MAX_TASK_BYTES,
    MIN_TASKS,
    PlannedRow,
    look_at,
    pack,
    read_plans,
    rows_to_plan,
    write_plan,
)
from vtnpipe.manifests.videos import VideoRow


@pytest.fixture
def folder(tmp_path: Path) -> FeatureFolder:
    folder = FeatureFolder(tmp_path / "features")
    folder.plans.mkdir(parents=True)
    return folder


def _rows(*sizes: int) -> list[PlannedRow]:
    return [PlannedRow(f"v{n}", f"/v{n}.mp4", None, None, size, 1) for n, size in enumerate(sizes)]


def test_pack_keeps_every_row_once_and_in_order() -> None:
    rows = _rows(*(range(1, 500)))
    tasks = pack(rows)
    assert [row for task in tasks for row in task] == rows
    assert MIN_TASKS <= len(tasks) <= 2 * MIN_TASKS
    limit = sum(row.cost for row in rows) / MIN_TASKS
    assert all(sum(row.cost for row in task) <= limit for task in tasks)


def test_pack_gives_few_rows_a_task_each_and_large_files_too() -> None:
    assert [len(task) for task in pack(_rows(10, 10, 10))] == [1, 1, 1]
    assert len(pack(_rows(*[MAX_TASK_BYTES] * 40))) == 40
    assert pack([]) == []


def test_a_span_costs_no_more_than_its_seconds() -> None:
    whole, span = _rows(10**9, 10**9)
    span = span._replace(start=10.0, end=12.0)
    assert span.cost < 1e-3 * whole.cost


def test_plans_round_trip_and_count_up(folder: FeatureFolder) -> None:
    rows = _rows(1, 2, 3)
    first = write_plan(folder, [rows[:2], rows[2:]], "f")
    second = write_plan(folder, [rows[:1]], "f")
    assert [task.name for task in first + second] == ["000-00000", "000-00001", "001-00000"]
    assert read_plans(folder, "f") == first + second
    with pytest.raises(FeaturesError, match=r"000\.json.*'f'"):
        read_plans(folder, "other")


def test_a_damaged_or_a_missing_plan_is_named(folder: FeatureFolder) -> None:
    for _ in range(2):
        write_plan(folder, [_rows(1)], "f")
    (folder.plans / "000.json").unlink()
    with pytest.raises(FeaturesError, match=r"001\.json"):
        read_plans(folder, "f")
    (folder.plans / "001.json").write_text('{"format": ')
    with pytest.raises(FeaturesError, match="not a readable plan"):
        read_plans(folder, "f")


@pytest.fixture
def row(tmp_path: Path) -> VideoRow:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"video")
    return VideoRow(video_id="v", path=str(path))


def test_a_planned_row_is_not_planned_again(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = write_plan(folder, [[look_at(row)]], "f")
    for statuses in ({}, {"v": "ok"}, {"v": "failed"}):
        assert rows_to_plan([row], tasks, statuses) == []
    other = VideoRow(video_id="w", path=row.path)
    assert [new.video_id for new in rows_to_plan([row, other], tasks, {})] == ["w"]


def test_a_changed_file_is_an_error_that_names_both(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = write_plan(folder, [[look_at(row)]], "f")
    Path(row.path).write_bytes(b"another video")
    with pytest.raises(ManifestError, match=r"'v'.*5 bytes.*13 bytes.*--redo-changed"):
        rows_to_plan([row], tasks, {"v": "ok"})
    assert rows_to_plan([row], tasks, {"v": "ok"}, redo_changed=True) == [look_at(row)]
    assert rows_to_plan([row], tasks, {"v": "failed"}) == [look_at(row)]
    assert rows_to_plan([row], tasks, {}) == [look_at(row)]


def test_a_changed_span_or_name_is_a_change(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = write_plan(folder, [[look_at(row)]], "f")
    span = VideoRow(video_id="v", path=row.path, start=1.0)
    with pytest.raises(ManifestError, match=r"\[1, …\)"):
        rows_to_plan([span], tasks, {"v": "ok"})
    renamed = Path(row.path).rename(Path(row.path).with_name("w.mp4"))
    with pytest.raises(ManifestError, match=r"v\.mp4.*w\.mp4"):
        rows_to_plan([VideoRow(video_id="v", path=str(renamed))], tasks, {"v": "ok"})


def test_a_file_that_moved_or_is_gone_is_no_change(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = write_plan(folder, [[look_at(row)]], "f")
    moved = Path(row.path).parent / "elsewhere" / "v.mp4"
    moved.parent.mkdir()
    Path(row.path).rename(moved)
    assert rows_to_plan([VideoRow(video_id="v", path=str(moved))], tasks, {"v": "ok"}) == []
    assert rows_to_plan([row], tasks, {"v": "ok"}) == []
