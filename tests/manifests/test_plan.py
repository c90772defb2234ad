"""Plans: packing, round trip, and what is left to do."""

from pathlib import Path

import pytest
from vtnpipe.manifests.errors import FeaturesError, ManifestError
from vtnpipe.manifests.feature_folder import FeatureFolder
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import (
    MAX_TASK_ROWS,
    Cut,
    PlannedRow,
    Speed,
    TaskSize,
    look_at,
    pack,
    read_plans,
    read_sizes,
    write_plan,
)
from vtnpipe.manifests.replanning import at_present_paths, rows_to_plan


@pytest.fixture
def folder(tmp_path: Path) -> FeatureFolder:
    folder = FeatureFolder(tmp_path / "features")
    folder.plans.mkdir(parents=True)
    return folder


def _rows(*num_frames: int) -> list[PlannedRow]:
    return [
        PlannedRow(f"v{n}", f"/v{n}.mp4", None, None, 1, 1, num_frames=frames)
        for n, frames in enumerate(num_frames)
    ]


def test_pack_keeps_every_row_once_and_in_order() -> None:
    rows = _rows(*range(1, 500))
    tasks = pack(rows, TaskSize(2000))
    assert [row for task in tasks for row in task] == rows
    assert all(sum(row.num_frames for row in task) <= 2000 for task in tasks)
    assert len(tasks) < 1.3 * sum(range(500)) / 2000
    assert pack([], TaskSize(1)) == []
    assert [len(task) for task in pack(_rows(10, 10, 10), TaskSize(5))] == [1, 1, 1]


def test_tasks_are_smaller_towards_the_end() -> None:
    tasks = pack(_rows(*[1] * 100), TaskSize(20, num_tail_frames=40, num_frames_in_tail=5))
    assert [len(task) for task in tasks] == [20] * 3 + [5] * 8


def test_rows_without_frames_do_not_make_an_endless_task() -> None:
    tasks = pack(_rows(*[0] * (2 * MAX_TASK_ROWS + 1)), TaskSize(1000))
    assert [len(task) for task in tasks] == [MAX_TASK_ROWS, MAX_TASK_ROWS, 1]


def test_the_newest_plan_is_the_one_of_the_highest_number(folder: FeatureFolder) -> None:
    speed = Speed(8)
    write_plan(folder, [_rows(1)], "f", speed)
    plan = (folder.plans / "000.json").read_text()
    (folder.plans / "999.json").write_text(plan.replace(", 1, 1,", ", 999, 1,"))
    (folder.plans / "1000.json").write_text(plan.replace(", 1, 1,", ", 1000, 1,"))
    assert read_sizes(folder, ["v0"]) == {"v0": 1000}
    (folder.plans / "1000.json").write_text('{"\n["v0"')
    with pytest.raises(FeaturesError, match=r"1000\.json: not a readable plan"):
        read_sizes(folder, ["v0"])


def test_plans_round_trip_and_count_up(folder: FeatureFolder) -> None:
    rows = _rows(1, 2, 3)
    cut = Cut(0.5, None, 12, 20, 8, 0, 4, (4, 300, 200), None)
    parts = [rows[2]._replace(part=1, num_parts=2, cut=cut)]
    first = write_plan(folder, [rows[:2], rows[2:]], "f", Speed(32))
    second = write_plan(folder, [parts], "f", Speed(8, channels_last=True))
    assert [task.name for task in first + second] == ["000-00000", "000-00001", "001-00000"]
    found = read_plans(folder, "f")
    assert found == first + second
    assert found[2].rows[0].cut == cut
    assert isinstance(found[2].rows[0].cut, Cut)
    assert [task.num_frames for task in found] == [3, 3, 3]
    with pytest.raises(FeaturesError, match=r"000\.json.*'f'"):
        read_plans(folder, "other")


def test_a_damaged_or_a_missing_plan_is_named(folder: FeatureFolder) -> None:
    for _ in range(2):
        write_plan(folder, [_rows(1)], "f", Speed(8))
    (folder.plans / "000.json").unlink()
    with pytest.raises(FeaturesError, match=r"000\.json: is missing, but 001\.json is there"):
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
    tasks = write_plan(folder, [[look_at(row)]], "f", Speed(8))
    for statuses in ({}, {"v": ("ok", "")}, {"v": ("failed", "damaged")}):
        assert rows_to_plan([row], tasks, statuses) == []
    other = VideoRow(video_id="w", path=row.path)
    assert [new.video_id for new in rows_to_plan([row, other], tasks, {})] == ["w"]


def test_a_changed_file_is_an_error_that_names_both(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = write_plan(folder, [[look_at(row)]], "f", Speed(8))
    Path(row.path).write_bytes(b"another video")
    with pytest.raises(ManifestError, match=r"'v'.*5 bytes.*13 bytes.*--redo-changed"):
        rows_to_plan([row], tasks, {"v": ("ok", "")})
    assert rows_to_plan([row], tasks, {"v": ("ok", "")}, redo_changed=True) == [look_at(row)]
    assert rows_to_plan([row], tasks, {"v": ("failed", "damaged")}) == [look_at(row)]
    assert rows_to_plan([row], tasks, {}) == [look_at(row)]


def test_a_changed_span_or_name_is_a_change(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = write_plan(folder, [[look_at(row)]], "f", Speed(8))
    span = VideoRow(video_id="v", path=row.path, start=1.0)
    with pytest.raises(ManifestError, match=r"\[1, …\)"):
        rows_to_plan([span], tasks, {"v": ("ok", "")})
    renamed = Path(row.path).rename(Path(row.path).with_name("w.mp4"))
    with pytest.raises(ManifestError, match=r"v\.mp4.*w\.mp4"):
        rows_to_plan([VideoRow(video_id="v", path=str(renamed))], tasks, {"v": ("ok", "")})


def test_a_file_that_moved_or_is_gone_is_no_change(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = write_plan(folder, [[look_at(row)]], "f", Speed(8))
    moved = Path(row.path).parent / "elsewhere" / "v.mp4"
    moved.parent.mkdir()
    Path(row.path).rename(moved)
    assert rows_to_plan([VideoRow(video_id="v", path=str(moved))], tasks, {"v": ("ok", "")}) == []
    assert rows_to_plan([row], tasks, {"v": ("ok", "")}) == []
    now = at_present_paths(tasks[0], {"v": str(moved)})
    assert [(one.path, one.size) for one in now.rows] == [(str(moved), 5)]
    moved.write_bytes(b"another video")
    assert at_present_paths(tasks[0], {"v": str(moved)}) is tasks[0]
    assert at_present_paths(tasks[0], {}) is tasks[0]
    span = VideoRow(video_id="v", path=row.path, start=1.0)  # that is a change, file or none
    with pytest.raises(ManifestError, match=r"\[1, …\)"):
        rows_to_plan([span], tasks, {"v": ("ok", "")})


def test_a_file_that_comes_before_its_task_is_no_change(
    folder: FeatureFolder, row: VideoRow
) -> None:
    tasks = write_plan(folder, [[look_at(row)._replace(size=None, mtime_ns=None)]], "f", Speed(8))
    assert rows_to_plan([row], tasks, {"v": ("ok", "")}) == []
    assert rows_to_plan([row], tasks, {}, pending={"v"}) == []
    assert rows_to_plan([row], tasks, {"v": ("failed", "missing")}) == [look_at(row)]


def test_what_failed_again_hides_no_change(folder: FeatureFolder, row: VideoRow) -> None:
    """The first plan's rows count, as the second one's attempt at the changed file crashed."""
    tasks = write_plan(folder, [[look_at(row)]], "f", Speed(8))
    Path(row.path).write_bytes(b"another video")
    tasks += write_plan(folder, [[look_at(row)]], "f", Speed(8))
    stored, counting = {"v": ("ok", "")}, {"v": 0}
    assert rows_to_plan([row], tasks, stored, pending={"v"}, counting=counting) == []
    with pytest.raises(ManifestError, match=r"5 bytes.*13 bytes.*--redo-changed"):
        rows_to_plan([row], tasks, stored, counting=counting)
    found = rows_to_plan([row], tasks, stored, counting=counting, redo_changed=True)
    assert found == [look_at(row)]
    assert rows_to_plan([row], tasks, stored, counting={"v": 1}) == []
