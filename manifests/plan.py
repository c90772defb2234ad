"""Plans: which task extracts which rows; written before the work and never changed.

Plan file `plan/PPP.json` holds tasks; its task T writes the shard `shards/PPP-TTTTT.h5`. A grown
manifest, changed files or `--retry` add a plan. Of an id in several plans, the newest complete
entry counts.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .atomic import FileState, atomic_text, file_state
from .errors import FeaturesError, ManifestError
from .feature_folder import REMEDY, FeatureFolder
from .manifest import VideoRow

FORMAT, VERSION = "vtnpipe.plan", 5
READABLE_VERSIONS = (2, 3, 4, 5)
MAX_TASK_ROWS = 2000

Decision = Literal["keep", "plan", "changed"]


class Cut(NamedTuple):
    """A part of a video, with the packets that its frames need.

    Attributes:
        start: seconds of its first frame.
        end: seconds of the next part's first frame; None for the last part.
        first_frame: frame index of its first frame.
        stop_frame: frame index after its last frame.
        num_frames: number of its frames that are wanted.
        origin_pts: timestamp of the file's first presented frame.
        window_frame: frame index of the first frame that the packets present.
        keyframe: (packet, pts, dts) at which decoding begins; None for the file's beginning.
        num_packets: number of packets to read; None for all.
    """

    start: float
    end: float | None
    first_frame: int
    stop_frame: int
    num_frames: int
    origin_pts: int
    window_frame: int
    keyframe: tuple[int, int, int | None] | None
    num_packets: int | None

    @classmethod
    def from_json(cls, values: Sequence[Any]) -> "Cut":
        """Create a cut from JSON values, in which tuples are lists."""
        fields: list[Any] = [tuple(v) if isinstance(v, list) else v for v in values]
        return cls(*fields)


class PlannedRow(NamedTuple):
    """A manifest row, or a part of one, with its file's size and time at planning.

    `size` and `mtime_ns` are None if there was no file. `num_frames` estimates the wanted frames.
    `may_use_nvdec` tells whether a GPU's video engines may decode it.
    """

    video_id: str
    path: str
    start: float | None
    end: float | None
    size: int | None
    mtime_ns: int | None
    part: int = 0
    num_parts: int = 1
    num_frames: int = 0
    cut: Cut | None = None
    may_use_nvdec: bool = False

    def is_same_video(self, other: "PlannedRow") -> bool:
        """Return whether both name the same span of the same file, perhaps in another folder."""
        state = (self.size, self.mtime_ns)
        return state == (other.size, other.mtime_ns) and self.is_same_span(other)

    def is_same_span(self, other: "PlannedRow") -> bool:
        """Return whether both name the same span of a file of the same name."""
        names = [os.path.basename(one.path) for one in (self, other)]  # noqa: PTH119
        return (self.start, self.end) == (other.start, other.end) and names[0] == names[1]

    def describe(self) -> str:
        """Return path, span, size and time in words."""
        span = (
            "" if self.start is self.end is None else f" [{self.start or 0:g}, {self.end or '…'})"
        )
        size = "no file" if self.size is None else f"{self.size} bytes, mtime {self.mtime_ns} ns"
        return f"{self.path}{span} ({size})"


class Computation(NamedTuple):
    """Settings of a plan's computation, on which the last bits of its features may depend.

    Attributes:
        batch_size: images per backbone call.
        lane_frames: frames of a lane: rows, or a part of a long one, whose frames fill batches of
            their own, so that several decoder processes work for a task; None for one lane.
        is_compiled: whether the backbone is compiled.
        nvdec_share: share of the frames, of those that may use them, that a GPU's video engines
            decode; by this alone, lanes are divided between engines and CPU.
    """

    batch_size: int
    lane_frames: int | None = None
    is_compiled: bool = False
    nvdec_share: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Unit of work: its rows become one shard.

    Attributes:
        name: PPP-TTTTT, numbers of plan and task.
        rows: videos or parts of videos, in the order of the shard.
        computation: how its features are computed.
    """

    name: str
    rows: tuple[PlannedRow, ...]
    computation: Computation

    @property
    def plan(self) -> int:
        """Number of the task's plan."""
        return int(self.name.partition("-")[0])

    @property
    def num_frames(self) -> int:
        """Estimated number of frames."""
        return sum(row.num_frames for row in self.rows)

    @property
    def lanes(self) -> list[range]:
        """Numbers of the rows of each lane: as many consecutive rows as `lane_frames` allow."""
        if self.computation.lane_frames is None:
            return [range(len(self.rows))]
        lanes, first = [], 0
        for rows in pack(self.rows, TaskSize(self.computation.lane_frames)):
            lanes.append(range(first, first + len(rows)))
            first += len(rows)
        return lanes

    def shard(self, folder: FeatureFolder) -> Path:
        """Return the path of the task's shard."""
        return folder.shards / f"{self.name}.h5"


def pending_tasks(tasks: Sequence[Task], folder: FeatureFolder) -> list[Task]:
    """Return the tasks without a shard."""
    return [task for task in tasks if not task.shard(folder).exists()]


def with_file_state(row: VideoRow, state_of: Callable[[str], FileState] = file_state) -> PlannedRow:
    """Return the row with its file's size and time; both are None if it cannot be read."""
    return PlannedRow(row.video_id, row.path, row.start, row.end, *state_of(row.path))


class TaskSize(NamedTuple):
    """Frames per task; fewer near the end of the work, so that all workers finish together.

    Attributes:
        num_frames: frames of a task.
        num_tail_frames: frames at the end of the work that are divided into smaller tasks.
        num_frames_in_tail: frames of a task there.
    """

    num_frames: int
    num_tail_frames: int = 0
    num_frames_in_tail: int = 0

    def at(self, num_left: int) -> int:
        """Return the size of a task that starts when `num_left` frames are left."""
        is_tail = num_left <= self.num_tail_frames
        return self.num_frames_in_tail if is_tail else self.num_frames


def pack(rows: Sequence[PlannedRow], size: TaskSize) -> list[list[PlannedRow]]:
    """Divide rows, in order, into tasks of about equal numbers of frames.

    >>> rows = [PlannedRow(name, name, None, None, 1, 1, num_frames=4) for name in "abcde"]
    >>> [[row.video_id for row in task] for task in pack(rows, TaskSize(8))]
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    num_left = sum(row.num_frames for row in rows)
    tasks: list[list[PlannedRow]] = []
    room = 0
    for row in rows:
        if not tasks or row.num_frames > room or len(tasks[-1]) >= MAX_TASK_ROWS:
            tasks.append([])
            room = size.at(num_left)
        tasks[-1].append(row)
        room -= row.num_frames
        num_left -= row.num_frames
    return tasks


def decide(
    now: PlannedRow,
    planned: PlannedRow | None,
    outcome: tuple[str, str],
    *,
    is_pending: bool = False,
    retry: Container[str] = (),
) -> Decision:
    """Decide whether a row needs a new task.

    | planned | outcome              | file now                             | decision |
    |---------|----------------------|--------------------------------------|----------|
    | no      |                      |                                      | plan     |
    | yes     | any                  | the same                             | keep     |
    | yes     | `missing`, or a reason in `retry` | there, and not pending  | plan     |
    | yes     | ok, partial          | gone, or missing at planning         | keep     |
    | yes     | ok, partial          | another one, or another span         | changed  |
    | yes     | pending              | gone, or missing at planning         | keep     |
    | yes     | failed or none       | gone, another one, or another span   | plan     |

    Args:
        now: the row with its file as it is now.
        planned: the row in the plan that counts; None if it is in no plan.
        outcome: (status, reason) of the extracted video; ("", "") if there is none.
        is_pending: whether a task that holds the row still has to run.
        retry: reasons for which a failed or partial video is extracted again.
    """
    if planned is None:
        return "plan"
    status, reason = outcome
    is_stored = status in ("ok", "partial")
    has_no_file = planned.is_same_span(now) and None in (planned.size, now.size)
    if planned.is_same_video(now) or (is_stored and has_no_file):
        is_retried = reason == "missing" or reason in retry
        return "plan" if is_retried and now.size is not None and not is_pending else "keep"
    if is_pending and (now.size is None or has_no_file):
        return "keep"  # its task will report the missing file
    return "changed" if is_stored else "plan"


def rows_to_plan(
    rows: Iterable[VideoRow],
    tasks: Iterable[Task],
    outcomes: Mapping[str, tuple[str, str]],
    *,
    pending: Container[str] = (),
    current_plans: Mapping[str, int] | None = None,
    retry: Container[str] = (),
    redo_changed: bool = False,
    state_of: Callable[[str], FileState] = file_state,
) -> list[PlannedRow]:
    """Return the manifest's rows that need a new task; see `decide`.

    Args:
        rows: rows of the manifest.
        tasks: tasks of all plans, oldest first.
        outcomes: id → (status, reason) of the finished videos.
        pending: ids in tasks that still have to run.
        current_plans: id → number of the plan whose entry counts, of the finished videos.
        retry: reasons for which a failed or partial video is extracted again.
        redo_changed: extract changed videos again.
        state_of: path → size and time of the file.

    Raises:
        ManifestError: a video with stored features has changed, and `redo_changed` is not set.
    """
    current_plans = current_plans or {}
    planned = {
        row.video_id: row
        for task in tasks
        for row in task.rows
        if task.plan <= current_plans.get(row.video_id, task.plan) or row.video_id in pending
    }
    new, changed = [], []
    for row in rows:
        now, before = with_file_state(row, state_of), planned.get(row.video_id)
        outcome = outcomes.get(row.video_id, ("", ""))
        decision = decide(now, before, outcome, is_pending=row.video_id in pending, retry=retry)
        if decision == "keep":
            continue
        if decision == "changed":
            assert before is not None
            changed.append((before, now))
        new.append(now)
    if changed and not redo_changed:
        before, now = changed[0]
        others = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ManifestError(
            f"video_id {now.video_id!r}{others} was extracted from {before.describe()} and is now "
            f"{now.describe()}; an id must stay one video: give it another id, restore the file, "
            "or extract it again with --redo-changed"
        )
    return new


def with_current_paths(task: Task, paths: Mapping[str, str]) -> Task:
    """Return a pending task with the present paths of files that only moved since planning.

    Args:
        task: the task.
        paths: id → path, as the manifest has them now.
    """
    rows = tuple(_with_current_path(row, paths.get(row.video_id, row.path)) for row in task.rows)
    return task if rows == task.rows else replace(task, rows=rows)


def _with_current_path(row: PlannedRow, path: str) -> PlannedRow:
    if path == row.path:
        return row
    size, mtime_ns = file_state(path)
    now = row._replace(path=path, size=size, mtime_ns=mtime_ns)
    return now if size is not None and now.is_same_video(row) else row


def write_plan(
    folder: FeatureFolder,
    tasks: Iterable[Sequence[PlannedRow]],
    *,
    fingerprint: str,
    computation: Computation,
    properties: Mapping[str, Mapping[str, int]] | None = None,
) -> list[Task]:
    """Write the next plan file and return its tasks.

    Args:
        folder: the feature folder.
        tasks: rows of each task.
        fingerprint: fingerprint of the folder.
        computation: how the tasks' features are computed.
        properties: counts of the files' properties, a record: `codec` → `h264` → number of files.
    """
    number = len(list(folder.plans.glob("*.json")))
    tasks = list(tasks)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        **computation._asdict(),
        "columns": PlannedRow._fields,
        "cut_columns": Cut._fields,
        "properties": properties or {},
    }
    with atomic_text(folder.plans / f"{number:03d}.json") as file:
        # One task per line: easy to read, and a million rows never become one string.
        file.write(json.dumps(head)[:-1] + ', "tasks": [')
        for index, rows in enumerate(tasks):
            file.write(("," if index else "") + "\n" + json.dumps(rows, ensure_ascii=False))
        file.write("\n]}\n")
    return [_task(number, index, rows, computation) for index, rows in enumerate(tasks)]


def read_plans(folder: FeatureFolder, fingerprint: str) -> list[Task]:
    """Return the tasks of all plans, oldest plan first.

    Raises:
        FeaturesError: a plan is damaged, is missing, or belongs to another fingerprint.
    """
    tasks = []
    for number, path in enumerate(_plan_files(folder)):
        with _readable(path):
            plan = json.loads(path.read_text(encoding="utf-8"))
            _check_head(path, number, plan, fingerprint)
            computation = _computation(plan)
            rows_by_task = [list(map(_row, rows)) for rows in plan["tasks"]]
        tasks += [
            _task(number, index, rows, computation) for index, rows in enumerate(rows_by_task)
        ]
    return tasks


def _computation(plan: Mapping[str, Any]) -> Computation:
    """Return how the features of a plan file are computed."""
    if plan["version"] == 2:  # vtnpipe 0.1 stored the batch size among other, measured, settings
        return Computation(plan["speed"]["batch_size"])
    return Computation(**{name: plan[name] for name in Computation._fields if name in plan})


def _check_head(path: Path, number: int, plan: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse a plan that is not plan `number` of this folder.

    Raises:
        FeaturesError: it is another plan.
    """
    if path.name != (expected := f"{number:03d}.json"):
        raise FeaturesError(
            f"{path.with_name(expected)}: missing, although {path.name} exists; restore it"
        )
    if plan["format"] != FORMAT or plan["version"] not in READABLE_VERSIONS:
        raise FeaturesError(
            f"{path}: is {plan['format']!r} version {plan['version']!r}, but this vtnpipe reads "
            f"{FORMAT!r} versions 2 to {VERSION}; use the vtnpipe that wrote it, or extract into "
            "a new folder"
        )
    if plan["fingerprint"] != fingerprint:
        raise FeaturesError(
            f"{path}: has fingerprint {plan['fingerprint']!r}, but the folder has {fingerprint!r}; "
            "it belongs to another feature folder: restore the right one"
        )


def _plan_files(folder: FeatureFolder) -> list[Path]:
    """Return the plan files, oldest first."""
    return sorted(folder.plans.glob("*.json"), key=lambda path: path.stem.zfill(9))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn errors while a plan is read into one that names the file.

    Raises:
        FeaturesError: the plan is damaged.
    """
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeaturesError(f"{path}: not a readable plan ({error}); {REMEDY}") from None


def read_file_properties(folder: FeatureFolder) -> dict[str, Counter[str]]:
    """Return the counts of the files' properties in all plans: `codec` → `h264` → number of files.

    A file that was planned again counts again.

    Raises:
        FeaturesError: a plan is damaged.
    """
    found: dict[str, Counter[str]] = {}
    for path in _plan_files(folder):
        with _readable(path), path.open(encoding="utf-8") as file:
            head = json.loads(file.readline().rstrip() + "]}")  # without the tasks
            properties = head.get("properties") or head.get("kinds") or {}  # version 2: kinds
        for name, counts in properties.items():
            found.setdefault(name, Counter()).update(counts)
    return found


def read_file_sizes(folder: FeatureFolder, video_ids: Iterable[str]) -> dict[str, int | None]:
    """Return the files' sizes in bytes when some videos were last planned.

    Only lines with these ids are parsed, so it is quick for any number of rows.

    Raises:
        FeaturesError: a plan is damaged.
    """
    marks = {video_id: json.dumps(video_id, ensure_ascii=False) for video_id in video_ids}
    sizes: dict[str, int | None] = {}
    for path in _plan_files(folder):
        with _readable(path), path.open(encoding="utf-8") as file:
            for line in file:
                if not any(mark in line for mark in marks.values()) or not line.startswith("["):
                    continue
                for row in map(_row, json.loads(line.rstrip().removesuffix(","))):
                    if row.video_id in marks:
                        sizes[row.video_id] = row.size
    return sizes


def _row(values: list[Any]) -> PlannedRow:
    row = PlannedRow(*values)
    return row if row.cut is None else row._replace(cut=Cut.from_json(row.cut))


def _task(plan: int, index: int, rows: Iterable[PlannedRow], computation: Computation) -> Task:
    return Task(name=f"{plan:03d}-{index:05d}", rows=tuple(rows), computation=computation)
