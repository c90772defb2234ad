"""What plans leave to do: rows that none holds as they are now, and tasks whose files moved."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType

from .atomic import file_state
from .errors import ManifestError
from .manifest import VideoRow
from .plan import PlannedRow, Task, look_at


def rows_to_plan(
    rows: Iterable[VideoRow],
    tasks: Iterable[Task],
    outcomes: Mapping[str, tuple[str, str]],
    *,
    redo_changed: bool = False,
    retry: Container[str] = (),
    pending: Container[str] = (),
    counting: Mapping[str, int] = MappingProxyType({}),
) -> list[PlannedRow]:
    """The manifest's rows that no plan holds as they are now, and those to be tried again.

    A video whose file was missing is tried again by itself, once the file is there.

    Args:
        rows: the manifest.
        tasks: of all plans, oldest first.
        outcomes: id → (`ok`, `partial` or `failed`, the reason), of the videos that are finished.
        redo_changed: extract rows again whose file or span has changed since.
        retry: reasons for which a video that failed or is partial is extracted again.
        pending: ids in tasks that are still to be done, which need no other one.
        counting: id → number of the plan whose rows count, of the videos that are finished: one
            that only failed hides no rows of an earlier one.

    Raises:
        ManifestError: a row with stored features has changed, and `redo_changed` is not set.
    """
    planned = {
        row.video_id: row
        for task in tasks
        for row in task.rows
        if task.plan <= counting.get(row.video_id, task.plan) or row.video_id in pending
    }
    new, changed = [], []
    for row in rows:
        now, before = look_at(row), planned.get(row.video_id)
        if before is not None:
            status, reason = outcomes.get(row.video_id, ("", ""))
            is_stored = status in ("ok", "partial")
            # Gone is not changed, nor is it to have come between the planning and its task.
            may_differ = before.is_same_span(now) and None in (before.size, now.size)
            if before.is_same_video(now) or (is_stored and may_differ):
                may_help = now.size is not None and row.video_id not in pending
                if not may_help or not (reason in retry or reason == "missing"):
                    continue
            elif row.video_id in pending and (now.size is None or may_differ):
                continue  # its task will say so
            elif is_stored:
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


def at_present_paths(task: Task, paths: Mapping[str, str]) -> Task:
    """The task with its files where they lie now, if they only moved since they were planned.

    Args:
        task: that is still to be done.
        paths: id → path.
    """
    rows = tuple(_at_present_path(row, paths.get(row.video_id, row.path)) for row in task.rows)
    return task if rows == task.rows else replace(task, rows=rows)


def _at_present_path(row: PlannedRow, path: str) -> PlannedRow:
    if path == row.path:
        return row
    size, mtime_ns = file_state(path)
    now = row._replace(path=path, size=size, mtime_ns=mtime_ns)
    return now if size is not None and now.is_same_video(row) else row
