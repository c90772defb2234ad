"""Plans: which task extracts which rows, written before the work and never changed.

A plan file is `plan/PPP.json`; its task T makes the shard `shards/PPP-TTTTT.h5`. A grown manifest
or a file that changed adds a plan; of an id in several plans the newest finished one counts.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .atomic import atomic_text, file_state
from .errors import FeaturesError
from .feature_folder import REMEDY, FeatureFolder
from .manifest import VideoRow

FORMAT, VERSION = "vtnpipe.plan", 2
MAX_TASK_ROWS = 2000


class Cut(NamedTuple):
    """A part of a video, and what is to be read for it alone.

    Attributes:
        start: seconds of its first frame.
        end: seconds of the next part's first frame; None for the last part.
        first_frame: rank of its first frame among the presented ones.
        stop_frame: rank after that of its last one.
        num_frames: of them that are wanted.
        origin_pts: timestamp of the file's first presented frame.
        window_frame: rank of the first frame presented in what is read.
        keyframe: (packet, pts, dts) from which to read; None for the file's beginning.
        num_packets: that are read; None for all.
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
        """From what JSON made of one: tuples are lists."""
        fields: list[Any] = [tuple(v) if isinstance(v, list) else v for v in values]
        return cls(*fields)


class PlannedRow(NamedTuple):
    """A manifest row, or a part of one, as it was found on disk when it was planned; `size` and
    `mtime_ns` are None for no file.
    """

    video_id: str
    path: str
    start: float | None
    end: float | None
    size: int | None
    mtime_ns: int | None
    part: int = 0
    num_parts: int = 1
    num_frames: int = 0  # wanted ones, as far as a look at the file tells
    cut: Cut | None = None  # of a part

    def is_same_video(self, other: "PlannedRow") -> bool:
        """Whether both mean the same span of the same file; a file that only moved to another
        folder does.
        """
        state = (self.size, self.mtime_ns)
        return state == (other.size, other.mtime_ns) and self.is_same_span(other)

    def is_same_span(self, other: "PlannedRow") -> bool:
        """Whether both mean the same span of a file of the same name, whatever is in it."""
        names = [os.path.basename(one.path) for one in (self, other)]  # noqa: PTH119
        return (self.start, self.end) == (other.start, other.end) and names[0] == names[1]

    def describe(self) -> str:
        """Path, span, size and time in words, for messages."""
        span = (
            "" if self.start is self.end is None else f" [{self.start or 0:g}, {self.end or '…'})"
        )
        size = "no file" if self.size is None else f"{self.size} bytes, mtime {self.mtime_ns} ns"
        return f"{self.path}{span} ({size})"


class Speed(NamedTuple):
    """How a plan's tasks go through the backbone: what may change a feature's last bits, so that
    resuming changes none.

    Attributes:
        batch_size: images at once.
        channels_last: whether images lie in memory pixel by pixel.
        fused_attention: whether attention is one kernel, or products and a softmax.
    """

    batch_size: int
    channels_last: bool = False
    fused_attention: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The unit of work: its rows become one shard."""

    name: str  # PPP-TTTTT
    rows: tuple[PlannedRow, ...]
    speed: Speed

    @property
    def plan(self) -> int:
        """The number of its plan."""
        return int(self.name.partition("-")[0])

    @property
    def num_frames(self) -> int:
        """As many as are expected."""
        return sum(row.num_frames for row in self.rows)

    def shard(self, folder: FeatureFolder) -> Path:
        """Where the task's shard lies once it is finished."""
        return folder.shards / f"{self.name}.h5"


def look_at(row: VideoRow) -> PlannedRow:
    """The row with its file's size and time; a missing or unreadable file has neither, and fails
    later, by name.
    """
    return PlannedRow(row.video_id, row.path, row.start, row.end, *file_state(row.path))


class TaskSize(NamedTuple):
    """How many frames a task holds: towards the end of the work less, so that all workers end at
    about the same time.

    Attributes:
        num_frames: of a task.
        num_tail_frames: at the work's end that are divided into smaller tasks.
        num_frames_in_tail: of a task there.
    """

    num_frames: int
    num_tail_frames: int = 0
    num_frames_in_tail: int = 0

    def at(self, num_left: int) -> int:
        """Of a task that begins when so many frames are left."""
        is_tail = num_left <= self.num_tail_frames
        return self.num_frames_in_tail if is_tail else self.num_frames


def pack(rows: Sequence[PlannedRow], size: TaskSize) -> list[list[PlannedRow]]:
    """Divides rows, in order, into tasks of about equal numbers of frames.

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


def write_plan(
    folder: FeatureFolder,
    tasks: Iterable[Sequence[PlannedRow]],
    fingerprint: str,
    speed: Speed,
    kinds: Mapping[str, Mapping[str, int]] | None = None,
) -> list[Task]:
    """Writes the next plan file; returns its tasks.

    Args:
        folder: whose.
        tasks: their rows.
        fingerprint: of the folder.
        speed: of the tasks.
        kinds: what the files are, a record: `codec` → `h264` → how many.
    """
    number = len(list(folder.plans.glob("*.json")))
    tasks = list(tasks)
    head = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "speed": speed._asdict(),
        "columns": PlannedRow._fields,
        "cut_columns": Cut._fields,
        "kinds": kinds or {},
    }
    with atomic_text(folder.plans / f"{number:03d}.json") as file:
        # A task a line: easy to read, and a million rows are never one string.
        file.write(json.dumps(head)[:-1] + ', "tasks": [')
        for index, rows in enumerate(tasks):
            file.write(("," if index else "") + "\n" + json.dumps(rows, ensure_ascii=False))
        file.write("\n]}\n")
    return [_task(number, index, rows, speed) for index, rows in enumerate(tasks)]


def read_plans(folder: FeatureFolder, fingerprint: str) -> list[Task]:
    """The tasks of all plans, oldest plan first.

    Raises:
        FeaturesError: a plan is damaged, is missing, or belongs to another fingerprint.
    """
    tasks = []
    for number, path in enumerate(_plan_files(folder)):
        with _readable(path):
            plan = json.loads(path.read_text(encoding="utf-8"))
            _check_head(path, number, plan, fingerprint)
            speed = Speed(**plan["speed"])
            rows_by_task = [list(map(_row, rows)) for rows in plan["tasks"]]
        tasks += [_task(number, index, rows, speed) for index, rows in enumerate(rows_by_task)]
    return tasks


def _check_head(path: Path, number: int, plan: Mapping[str, Any], fingerprint: str) -> None:
    """Refuses a plan that is not the next one of this folder.

    Raises:
        FeaturesError: it is not.
    """
    if path.name != (expected := f"{number:03d}.json"):
        raise FeaturesError(
            f"{path.with_name(expected)}: is missing, but {path.name} is there; put it back"
        )
    for name, value in {"format": FORMAT, "version": VERSION}.items():
        if plan[name] != value:
            raise FeaturesError(
                f"{path}: its {name} is {plan[name]!r}, but {value!r} is expected; use the vtnpipe "
                "that made it, or extract into a new folder"
            )
    if plan["fingerprint"] != fingerprint:
        raise FeaturesError(
            f"{path}: its fingerprint is {plan['fingerprint']!r}, but {fingerprint!r} is expected: "
            "it is of another feature folder; put back the one that belongs here"
        )


def _plan_files(folder: FeatureFolder) -> list[Path]:
    """Oldest first."""
    return sorted(folder.plans.glob("*.json"), key=lambda path: path.stem.zfill(9))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A context in which a plan is read.

    Raises:
        FeaturesError: it is damaged.
    """
    try:
        yield
    except FeaturesError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FeaturesError(f"{path}: not a readable plan ({error}); {REMEDY}") from None


def read_kinds(folder: FeatureFolder) -> dict[str, Counter[str]]:
    """What the files of all plans are, as far as the plans say: `codec` → `h264` → how many.

    A file that was planned again counts again.

    Raises:
        FeaturesError: a plan is damaged.
    """
    found: dict[str, Counter[str]] = {}
    for path in _plan_files(folder):
        with _readable(path), path.open(encoding="utf-8") as file:
            head = file.readline().rstrip()  # up to the tasks, of which there may be a million
            kinds = json.loads(head + "]}").get("kinds", {})
        for what, counts in kinds.items():
            found.setdefault(what, Counter()).update(counts)
    return found


def read_sizes(folder: FeatureFolder, video_ids: Iterable[str]) -> dict[str, int | None]:
    """How large the files of a few videos were when they were planned last; quick, however many
    rows there are.

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


def _task(plan: int, index: int, rows: Iterable[PlannedRow], speed: Speed) -> Task:
    return Task(name=f"{plan:03d}-{index:05d}", rows=tuple(rows), speed=speed)
