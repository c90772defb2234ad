"""Plans: which task extracts which rows, written before the work and never changed; and what is
left to do.

A plan file is `plan/PPP.json`; its task T makes the shard `shards/PPP-TTTTT.h5`. A grown manifest
or a file that changed adds a plan; of an id in several plans the newest finished one counts.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import FeaturesError, ManifestError
from .files import write_json
from .folder import FeatureFolder
from .videos import VideoRow

FORMAT, VERSION = "vtnpipe.plan", 1
MIN_TASKS = 32  # where there are rows enough: so that several workers share the work to the end
MAX_TASK_BYTES = 64 * 2**20  # of encoded video: some minutes of work
MAX_TASK_ROWS = 2000
ASSUMED_BYTES_PER_SECOND = 256 * 2**10  # of a row that is a span of its file


class PlannedRow(NamedTuple):
    """A manifest row as it was found on disk when it was planned; `size` and `mtime_ns` are None
    for no file.
    """

    video_id: str
    path: str
    start: float | None
    end: float | None
    size: int | None
    mtime_ns: int | None
    part: int = 0
    num_parts: int = 1

    @property
    def cost(self) -> float:
        """Encoded bytes to decode: a stand-in for the number of frames that needs no look into the
        file.
        """
        whole = float(self.size or 0)
        if self.end is None:
            return whole
        return min(whole, (self.end - (self.start or 0.0)) * ASSUMED_BYTES_PER_SECOND)

    def is_same_video(self, other: "PlannedRow") -> bool:
        """Whether both mean the same span of the same file; a file that only moved to another
        folder does.
        """
        return (self.start, self.end, self.size, self.mtime_ns) == (
            other.start,
            other.end,
            other.size,
            other.mtime_ns,
        ) and os.path.basename(self.path) == os.path.basename(other.path)  # noqa: PTH119

    def describe(self) -> str:
        """Path, span, size and time in words, for messages."""
        span = (
            "" if self.start is self.end is None else f" [{self.start or 0:g}, {self.end or '…'})"
        )
        size = "no file" if self.size is None else f"{self.size} bytes, mtime {self.mtime_ns} ns"
        return f"{self.path}{span} ({size})"


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """The unit of work: its rows become one shard."""

    name: str  # PPP-TTTTT
    rows: tuple[PlannedRow, ...]

    def shard(self, folder: FeatureFolder) -> Path:
        """Where the task's shard lies once it is finished."""
        return folder.shards / f"{self.name}.h5"


def look_at(row: VideoRow) -> PlannedRow:
    """The row with its file's size and time; a missing or unreadable file has neither, and fails
    later, by name.
    """
    try:
        found = os.stat(row.path)  # noqa: PTH116  # a million times
        size, mtime_ns = found.st_size, found.st_mtime_ns
    except (OSError, ValueError):
        return PlannedRow(row.video_id, row.path, row.start, row.end, None, None)
    return PlannedRow(row.video_id, row.path, row.start, row.end, size, mtime_ns)


def pack(rows: Sequence[PlannedRow]) -> list[list[PlannedRow]]:
    """Divides rows, in order, into tasks of about equal cost, whatever the number of workers."""
    limit = min(MAX_TASK_BYTES, sum(row.cost for row in rows) / MIN_TASKS)
    most_rows = min(MAX_TASK_ROWS, -(-len(rows) // MIN_TASKS))
    tasks: list[list[PlannedRow]] = []
    cost = 0.0
    for row in rows:
        if not tasks or cost + row.cost > limit or len(tasks[-1]) >= most_rows:
            tasks.append([])
            cost = 0.0
        tasks[-1].append(row)
        cost += row.cost
    return tasks


def write_plan(
    folder: FeatureFolder, tasks: Iterable[Sequence[PlannedRow]], fingerprint: str
) -> list[Task]:
    """Writes the next plan file; returns its tasks."""
    number = len(list(folder.plans.glob("*.json")))
    tasks = list(tasks)
    value = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint,
        "columns": PlannedRow._fields,
        "tasks": tasks,
    }
    write_json(value, folder.plans / f"{number:03d}.json", indent=None)
    return [_task(number, index, rows) for index, rows in enumerate(tasks)]


def read_plans(folder: FeatureFolder, fingerprint: str) -> list[Task]:
    """The tasks of all plans, oldest plan first.

    Raises:
        FeaturesError: a plan is damaged, is missing, or belongs to another fingerprint.
    """
    tasks = []
    for number, path in enumerate(
        sorted(folder.plans.glob("*.json"), key=lambda path: path.stem.zfill(9))
    ):
        try:
            plan = json.loads(path.read_text(encoding="utf-8"))
            found = (path.name, plan["format"], plan["version"], plan["fingerprint"])
            columns = tuple(plan["columns"])
            rows_by_task = [[PlannedRow(*row) for row in rows] for rows in plan["tasks"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FeaturesError(f"{path}: not a readable plan ({error})") from None
        expected = (f"{number:03d}.json", FORMAT, VERSION, fingerprint)
        if found != expected or columns != PlannedRow._fields:
            raise FeaturesError(
                f"{path}: is {found}, but {expected} is expected here; it belongs to another "
                "folder or version: move it elsewhere"
            )
        tasks += [_task(number, index, rows) for index, rows in enumerate(rows_by_task)]
    return tasks


def _task(plan: int, index: int, rows: Iterable[PlannedRow]) -> Task:
    return Task(name=f"{plan:03d}-{index:05d}", rows=tuple(rows))


def rows_to_plan(
    rows: Iterable[VideoRow],
    tasks: Iterable[Task],
    statuses: Mapping[str, str],
    *,
    redo_changed: bool = False,
) -> list[PlannedRow]:
    """The manifest's rows that no plan holds as they are now.

    Args:
        rows: the manifest.
        tasks: of all plans, oldest first.
        statuses: id → `ok`, `partial` or `failed`, of the videos that are finished.
        redo_changed: extract rows again whose file or span has changed since.

    Raises:
        ManifestError: a row with stored features has changed, and `redo_changed` is not set.
    """
    planned = {row.video_id: row for task in tasks for row in task.rows}
    new, changed = [], []
    for row in rows:
        now, before = look_at(row), planned.get(row.video_id)
        if before is not None:
            is_stored = statuses.get(row.video_id) in ("ok", "partial")
            if before.is_same_video(now) or (is_stored and now.size is None):  # gone is not changed
                continue
            if is_stored:
                changed.append((before, now))
        new.append(now)
    if changed and not redo_changed:
        before, now = changed[0]
        others = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ManifestError(
            f"video_id {now.video_id!r}{others} was extracted from {before.describe()} and is now "
            f"{now.describe()}; an id must stay one video: give it another id, put the file back, "
            "or extract it again with --redo-changed"
        )
    return new
