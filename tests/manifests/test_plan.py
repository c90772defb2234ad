"""Plans: packing, round trip, and what is left to do."""

from pathlib import Path

import pytest
from vtnpipe.manifests.errors import FeaturesError, ManifestError
from vtnpipe.manifests.feature_folder import FeatureFolder, read_extraction
from vtnpipe.manifests.manifest import VideoRow
from vtnpipe.manifests.plan import (
    MAX_TASK_ROWS,
    Computation,
    Cut,
    PlannedRow,
    Task,
    TaskSize,
    decide,
    pack,
    read_file_properties,
    read_file_sizes,
    read_plans,
    rows_to_plan,
    with_current_paths,
    with_file_state,
    write_plan,
)

OLD_FOLDER = FeatureFolder(Path(__file__).parents[1] / "fixtures/v0.1/features")


def _rows(*num_frames: int) -> list[PlannedRow]:
    return [
        PlannedRow(f"v{n}", f"/v{n}.mp4", None, None, 1, 1, num_frames=frames)
        for n, frames in enumerate(num_frames)
    ]


def _write(folder: FeatureFolder, *tasks: list[PlannedRow], batch_size: int = 8) -> list[Task]:
    return write_plan(
        folder, tasks, fingerprint="f", computation=Computation(batch_size, 300, True)
    )


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
    _write(folder, _rows(1))
    plan = (folder.plans / "000.json").read_text()
    (folder.plans / "999.json").write_text(plan.replace(", 1, 1,", ", 999, 1,"))
    (folder.plans / "1000.json").write_text(plan.replace(", 1, 1,", ", 1000, 1,"))
    assert read_file_sizes(folder, ["v0"]) == {"v0": 1000}
    (folder.plans / "1000.json").write_text('{"\n["v0"')
    with pytest.raises(FeaturesError, match=r"1000\.json: not a readable plan"):
        read_file_sizes(folder, ["v0"])


def test_plans_round_trip_and_count_up(folder: FeatureFolder) -> None:
    rows = _rows(1, 2, 3)
    cut = Cut(0.5, None, 12, 20, 8, 0, 4, (4, 300, 200), None)
    parts = [rows[2]._replace(part=1, num_parts=2, cut=cut)]
    first = _write(folder, rows[:2], rows[2:], batch_size=32)
    second = _write(folder, parts)
    assert [task.name for task in first + second] == ["000-00000", "000-00001", "001-00000"]
    found = read_plans(folder, "f")
    assert found == first + second
    assert found[2].rows[0].cut == cut
    assert isinstance(found[2].rows[0].cut, Cut)
    assert [task.num_frames for task in found] == [3, 3, 3]
    assert [task.computation for task in found] == [
        Computation(batch_size, 300, True) for batch_size in (32, 32, 8)
    ]
    assert [task.plan for task in found] == [0, 0, 1]
    with pytest.raises(FeaturesError, match=r"000\.json.*'f'"):
        read_plans(folder, "other")


def test_a_plan_of_version_3_is_read(folder: FeatureFolder) -> None:
    _write(folder, _rows(1, 2))
    path = folder.plans / "000.json"
    text = path.read_text().replace('"version": 5', '"version": 3')
    path.write_text(
        text.replace(', "lane_frames": 300, "is_compiled": true, "nvdec_share": 0.0', "")
    )
    (task,) = read_plans(folder, "f")
    assert task.computation == Computation(8)
    assert task.lanes == [range(2)]


def test_lanes_hold_consecutive_rows() -> None:
    rows = tuple(
        row._replace(num_frames=length)
        for row, length in zip(_rows(*range(1, 7)), (4, 4, 30, 4, 9, 1), strict=True)
    )
    task = Task(name="000-00000", rows=rows, computation=Computation(8, lane_frames=10))
    assert task.lanes == [range(2), range(2, 3), range(3, 4), range(4, 6)]


def test_a_damaged_or_a_missing_plan_is_named(folder: FeatureFolder) -> None:
    for _ in range(2):
        _write(folder, _rows(1))
    (folder.plans / "000.json").unlink()
    with pytest.raises(FeaturesError, match=r"000\.json: missing.*001\.json"):
        read_plans(folder, "f")
    (folder.plans / "001.json").write_text('{"format": ')
    with pytest.raises(FeaturesError, match="not a readable plan"):
        read_plans(folder, "f")


def test_a_plan_of_another_version_is_refused(folder: FeatureFolder) -> None:
    _write(folder, _rows(1))
    path = folder.plans / "000.json"
    path.write_text(path.read_text().replace('"version": 5', '"version": 6'))
    with pytest.raises(FeaturesError, match=r"000\.json: .*version 6"):
        read_plans(folder, "f")


def test_properties_of_all_plans_are_added_up(folder: FeatureFolder) -> None:
    assert read_file_properties(folder) == {}
    for counts in ({"h264": 2, "vp9": 1}, {"h264": 3}):
        write_plan(
            folder,
            [_rows(1)],
            fingerprint="f",
            computation=Computation(8),
            properties={"codec": counts},
        )
    assert read_file_properties(folder) == {"codec": {"h264": 5, "vp9": 1}}


def test_a_plan_of_version_2_is_read() -> None:
    extraction = read_extraction(OLD_FOLDER)
    (task,) = read_plans(OLD_FOLDER, extraction.fingerprint)
    assert (task.name, task.computation) == ("000-00000", Computation(8))
    assert task.lanes == [range(7)]  # one after the other, as it was
    assert [row.video_id for row in task.rows] == [*(f"v{n}" for n in range(6)), "lost"]
    assert (task.rows[0].size, task.rows[-1].size) == (1945, None)
    assert read_file_sizes(OLD_FOLDER, ["v0", "lost"]) == {"v0": 1945, "lost": None}
    assert read_file_properties(OLD_FOLDER)["codec"] == {"h264": 6}


ROW = PlannedRow("v", "/videos/v.mp4", None, None, 5, 100)
FILES = {
    "the same": ROW,
    "moved": ROW._replace(path="/elsewhere/v.mp4"),
    "none": ROW._replace(size=None, mtime_ns=None),
    "another": ROW._replace(size=13),
    "newer": ROW._replace(mtime_ns=101),
    "renamed": ROW._replace(path="/videos/w.mp4"),
    "another span": ROW._replace(start=1.0),
    "another span, none": ROW._replace(start=1.0, size=None, mtime_ns=None),
}
SAME, CHANGED = ("the same", "moved"), ("another", "newer", "renamed", "another span")
OUTCOMES = {
    "ok": ("ok", ""),
    "partial": ("partial", "damaged"),
    "missing": ("failed", "missing"),
    "crashed": ("failed", "crashed"),
    "not extracted": ("", ""),
}
STORED, NOT_STORED = ("ok", "partial"), ("missing", "crashed", "not extracted")
# Of the file at planning and now: each row of the table in `decide`, for all that it is about.
DECISIONS = [
    *(("not planned", file, outcome, "", "plan") for file in FILES for outcome in OUTCOMES),
    *(
        ("the same", file, outcome, pending, "keep")
        for file in SAME
        for outcome in ("ok", "partial", "crashed", "not extracted")
        for pending in ("", "pending")
    ),
    *(("the same", file, "missing", "", "plan") for file in SAME),
    *(("the same", file, "crashed", "retry", "plan") for file in SAME),
    *(("the same", file, "partial", "retry", "plan") for file in SAME),
    *(
        ("the same", file, outcome, "retry, pending", "keep")
        for file in SAME
        for outcome in ("missing", "crashed", "partial")
    ),
    *(("none", "none", outcome, "retry", "keep") for outcome in OUTCOMES),
    *(("the same", "none", outcome, "", "keep") for outcome in STORED),
    *(("none", "the same", outcome, "", "keep") for outcome in STORED),
    *(("the same", file, outcome, "", "changed") for file in CHANGED for outcome in STORED),
    *(("the same", "another span, none", outcome, "", "changed") for outcome in STORED),
    *(("the same", "none", outcome, "pending", "keep") for outcome in OUTCOMES),
    *(("the same", "another span, none", outcome, "pending", "keep") for outcome in OUTCOMES),
    *(("none", "the same", outcome, "pending", "keep") for outcome in OUTCOMES),
    *(("the same", file, outcome, "pending", "changed") for file in CHANGED for outcome in STORED),
    *(
        ("the same", file, outcome, pending, "plan")
        for file in CHANGED
        for outcome in NOT_STORED
        for pending in ("", "pending")
    ),
    *(("the same", "none", outcome, "", "plan") for outcome in NOT_STORED),
    *(("none", "the same", outcome, "", "plan") for outcome in NOT_STORED),
]


@pytest.mark.parametrize(("planned", "now", "outcome", "options", "decision"), DECISIONS)
def test_each_row_of_the_table_of_decisions(
    planned: str, now: str, outcome: str, options: str, decision: str
) -> None:
    found = decide(
        FILES[now],
        FILES.get(planned),
        OUTCOMES[outcome],
        is_pending="pending" in options,
        retry=("damaged", "crashed") if "retry" in options else (),
    )
    assert found == decision


@pytest.fixture
def row(tmp_path: Path) -> VideoRow:
    path = tmp_path / "v.mp4"
    path.write_bytes(b"video")
    return VideoRow(video_id="v", path=str(path))


def test_a_planned_row_is_not_planned_again(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = _write(folder, [with_file_state(row)])
    for statuses in ({}, {"v": ("ok", "")}, {"v": ("failed", "damaged")}):
        assert rows_to_plan([row], tasks, statuses) == []
    other = VideoRow(video_id="w", path=row.path)
    assert [new.video_id for new in rows_to_plan([row, other], tasks, {})] == ["w"]


def test_a_changed_file_is_an_error_that_names_both(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = _write(folder, [with_file_state(row)])
    Path(row.path).write_bytes(b"another video")
    with pytest.raises(ManifestError, match=r"'v'.*5 bytes.*13 bytes.*--redo-changed"):
        rows_to_plan([row], tasks, {"v": ("ok", "")})
    assert rows_to_plan([row], tasks, {"v": ("ok", "")}, redo_changed=True) == [
        with_file_state(row)
    ]
    assert rows_to_plan([row], tasks, {"v": ("failed", "damaged")}) == [with_file_state(row)]
    assert rows_to_plan([row], tasks, {}) == [with_file_state(row)]


def test_a_changed_span_or_name_is_a_change(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = _write(folder, [with_file_state(row)])
    span = VideoRow(video_id="v", path=row.path, start=1.0)
    with pytest.raises(ManifestError, match=r"\[1, …\)"):
        rows_to_plan([span], tasks, {"v": ("ok", "")})
    renamed = Path(row.path).rename(Path(row.path).with_name("w.mp4"))
    with pytest.raises(ManifestError, match=r"v\.mp4.*w\.mp4"):
        rows_to_plan([VideoRow(video_id="v", path=str(renamed))], tasks, {"v": ("ok", "")})


def test_a_file_that_moved_or_is_gone_is_no_change(folder: FeatureFolder, row: VideoRow) -> None:
    tasks = _write(folder, [with_file_state(row)])
    moved = Path(row.path).parent / "elsewhere" / "v.mp4"
    moved.parent.mkdir()
    Path(row.path).rename(moved)
    assert rows_to_plan([VideoRow(video_id="v", path=str(moved))], tasks, {"v": ("ok", "")}) == []
    assert rows_to_plan([row], tasks, {"v": ("ok", "")}) == []
    now = with_current_paths(tasks[0], {"v": str(moved)})
    assert [(one.path, one.size) for one in now.rows] == [(str(moved), 5)]
    moved.write_bytes(b"another video")
    assert with_current_paths(tasks[0], {"v": str(moved)}) is tasks[0]
    assert with_current_paths(tasks[0], {}) is tasks[0]
    span = VideoRow(video_id="v", path=row.path, start=1.0)  # that is a change, file or none
    with pytest.raises(ManifestError, match=r"\[1, …\)"):
        rows_to_plan([span], tasks, {"v": ("ok", "")})


def test_a_file_that_comes_before_its_task_is_no_change(
    folder: FeatureFolder, row: VideoRow
) -> None:
    tasks = _write(folder, [with_file_state(row)._replace(size=None, mtime_ns=None)])
    assert rows_to_plan([row], tasks, {"v": ("ok", "")}) == []
    assert rows_to_plan([row], tasks, {}, pending={"v"}) == []
    assert rows_to_plan([row], tasks, {"v": ("failed", "missing")}) == [with_file_state(row)]


def test_what_failed_again_hides_no_change(folder: FeatureFolder, row: VideoRow) -> None:
    """The first plan's rows count, as the second one's attempt at the changed file crashed."""
    tasks = _write(folder, [with_file_state(row)])
    Path(row.path).write_bytes(b"another video")
    tasks += _write(folder, [with_file_state(row)])
    stored, current_plans = {"v": ("ok", "")}, {"v": 0}
    assert rows_to_plan([row], tasks, stored, pending={"v"}, current_plans=current_plans) == []
    with pytest.raises(ManifestError, match=r"5 bytes.*13 bytes.*--redo-changed"):
        rows_to_plan([row], tasks, stored, current_plans=current_plans)
    found = rows_to_plan([row], tasks, stored, current_plans=current_plans, redo_changed=True)
    assert found == [with_file_state(row)]
    assert rows_to_plan([row], tasks, stored, current_plans={"v": 1}) == []
