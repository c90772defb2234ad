"""From rows to tasks: a look at every file, parts for long videos, tasks of about equal work."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ...manifests.plan import PlannedRow, TaskSize, pack
from ..processors import num_cpus

if TYPE_CHECKING:
    from ...extract.decode.glance import Glance
    from ...extract.decode.limits import Limits
    from ...extract.decode.sampling import Sampling

CHILDREN_PER_CPU = 2  # that look at files: part of their time they wait for the disk
MAX_KINDS = 100  # of codecs, sizes and the like that are noted
CUT_FROM = 1.5  # tasks' worth of frames in one video

TASK_SECONDS = 90.0
MIN_TASK_SECONDS = 2.0
TASKS_PER_WORKER = 8  # at least, where that makes no task shorter than that
TAIL_TASKS_PER_WORKER = 2  # whose work is divided into eighths
MAX_SHARD_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class LookedAt:
    """A row, and what a look at its file told.

    Attributes:
        row: with the number of frames wanted of it.
        glance: None where the file can't be opened.
        reason: why it can't.
        message: the same for a person.
    """

    row: PlannedRow
    glance: "Glance | None"
    reason: str = ""
    message: str = ""


def look_at_files(
    rows: Sequence[PlannedRow],
    sampling: "Sampling",
    limits: "Limits | None" = None,
    *,
    with_orientation: bool = False,
) -> list[LookedAt]:
    """Looks at the files of rows, each file once, several at a time.

    Args:
        rows: which.
        sampling: of their frames.
        limits: of what a file may take; by default, `Limits()`.
        with_orientation: decode each file's first frame, too.
    """
    from ...extract.decode.frames import Outcome
    from ...extract.decode.pool import DecodingChildren
    from ...extract.decode.protocol import Answer, Look

    paths = list(dict.fromkeys(row.path for row in rows if row.size is not None))
    glances: dict[str, Glance] = {}
    faults: dict[str, tuple[str, str]] = {}
    num_children = min(len(paths), CHILDREN_PER_CPU * num_cpus())
    with DecodingChildren(max(1, num_children), limits) as children:
        for number, event in children.run([Look(path, with_orientation) for path in paths]):
            if isinstance(event, Answer):
                glances[paths[number]] = event.value
            elif isinstance(event, Outcome) and event.status == "failed":
                faults[paths[number]] = (event.reason, event.message)
    return [_looked_at(row, glances.get(row.path), faults, sampling) for row in rows]


def _looked_at(
    row: PlannedRow,
    glance: "Glance | None",
    faults: dict[str, tuple[str, str]],
    sampling: "Sampling",
) -> LookedAt:
    if glance is None:
        reason, message = faults.get(
            row.path,
            ("missing", f"{row.path}: is not there, or can't be reached; correct its path"),
        )
        return LookedAt(row=row, glance=None, reason=reason, message=message)
    return LookedAt(
        row=row._replace(num_frames=wanted_frames(row, glance, sampling)), glance=glance
    )


def kinds_of(looked_at: Iterable[LookedAt]) -> dict[str, dict[str, int]]:
    """What readable files are: `codec` → `h264` → how many, the most frequent first."""
    counts: dict[str, Counter[str]] = {}
    for one in looked_at:
        if (glance := one.glance) is None:
            continue
        for what, value in (
            ("container", glance.container.split(",")[0]),
            ("codec", glance.codec),
            ("size", f"{glance.width}x{glance.height}"),
            ("frames/s", f"{glance.fps:.4g}"),
            ("rotation", glance.orientation),
            ("estimate", "" if glance.is_counted else f"by {glance.source}"),
        ):
            if value:
                counts.setdefault(what, Counter())[value] += 1
    return {what: dict(found.most_common(MAX_KINDS)) for what, found in counts.items()}


def wanted_frames(row: PlannedRow, glance: "Glance", sampling: "Sampling") -> int:
    """How many frames are wanted of a row, by a look at its file; at least one."""
    end = glance.seconds if row.end is None else min(row.end, glance.seconds)
    seconds = max(0.0, end - (row.start or 0.0))
    num_frames = glance.num_frames * min(1.0, seconds / (glance.seconds or 1.0))
    if sampling.fps is not None:
        num_frames = min(num_frames, seconds * sampling.fps)
    return max(1, ceil(num_frames / sampling.every))


def most_frames(bytes_per_frame: int) -> int:
    """Of a task, so that its shard has at most 256 MiB of features."""
    return max(1, int(MAX_SHARD_BYTES / (CUT_FROM * bytes_per_frame)))


def task_size(
    num_frames: int,
    *,
    frames_per_second: float,
    bytes_per_frame: int,
    num_workers: int,
) -> TaskSize:
    """Tasks of one and a half minutes, of less where there is too little work for all workers, of
    at most 256 MiB of features; towards the end eighths of that.

    Args:
        num_frames: in all.
        frames_per_second: of one worker.
        bytes_per_frame: of features.
        num_workers: among whom the work is divided.
    """
    most = min(TASK_SECONDS * frames_per_second, most_frames(bytes_per_frame))
    least = min(MIN_TASK_SECONDS * frames_per_second, most)
    size = max(least, min(most, num_frames / (TASKS_PER_WORKER * num_workers)))
    return TaskSize(
        num_frames=max(1, int(size)),
        num_tail_frames=round(TAIL_TASKS_PER_WORKER * num_workers * size),
        num_frames_in_tail=max(1, int(max(size / 8, least))),
    )


def divide(
    looked_at: Sequence[LookedAt],
    sampling: "Sampling",
    size: TaskSize,
    limits: "Limits | None" = None,
    *,
    may_cut: bool = True,
) -> list[list[PlannedRow]]:
    """Tasks for rows: long videos are cut into parts, unless they may not be; short ones share a
    task.
    """
    if not may_cut:
        return pack([one.row for one in looked_at], size)
    return pack(list(_cut_long(looked_at, sampling, size, limits)), size)


def _cut_long(
    looked_at: Sequence[LookedAt], sampling: "Sampling", size: TaskSize, limits: "Limits | None"
) -> Iterator[PlannedRow]:
    """The rows, of which long ones come in parts."""
    from ...extract.decode.pool import DecodingChildren
    from ...extract.decode.protocol import Answer, CutUp

    num_left = sum(one.row.num_frames for one in looked_at)
    requests: dict[int, CutUp] = {}
    for index, one in enumerate(looked_at):
        row = one.row
        offsets = _offsets(row.num_frames, num_left, size)
        if len(offsets) > 1:
            requests[index] = CutUp(row.path, offsets, sampling, row.start, row.end)
        num_left -= row.num_frames
    cuts = {}
    with DecodingChildren(max(1, min(len(requests), num_cpus())), limits) as children:
        numbers = list(requests)
        for number, event in children.run(list(requests.values())):
            if isinstance(event, Answer):
                cuts[numbers[number]] = event.value
    for index, one in enumerate(looked_at):
        parts = cuts.get(index)
        if not parts:  # short, or better left whole; what can't be read fails in its task, by name
            yield one.row
            continue
        for number, part in enumerate(parts):
            yield one.row._replace(
                part=number, num_parts=len(parts), num_frames=part.num_frames, cut=part
            )


def _offsets(num_frames: int, num_left: int, size: TaskSize) -> list[int]:
    """Where the parts of a video begin, counted in wanted frames; one for a short video."""
    offsets = [0]
    while num_frames - offsets[-1] > CUT_FROM * size.at(num_left):
        part = size.at(num_left)
        offsets.append(offsets[-1] + part)
        num_left -= part
    return offsets
