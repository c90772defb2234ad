"""What an extraction says at its end: failures.csv, report.json, and the same in a few lines."""

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ..manifests.files import atomic_text, write_json
from ..manifests.folder import FeatureFolder
from ..manifests.videos import VideoRow
from .progress import in_words, is_verbose, say, say_table

if TYPE_CHECKING:
    from ..extract.worker import TaskReport
    from ..manifests.store import FeatureStore
    from .tuning import Tuning, Workers

MAX_LISTED = 20  # failures printed; all are in failures.csv
MAX_SPANS = 40  # of the time, whose speeds are noted


class Failure(NamedTuple):
    """A line of failures.csv."""

    video_id: str
    path: str
    status: str
    reason: str
    message: str
    num_lost_frames: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What a run of tasks leaves to report on.

    Attributes:
        reports: of the tasks.
        seconds: from the first task to the last.
        workers: who ran them.
        tuning: what was measured before.
    """

    reports: list["TaskReport"]
    seconds: float
    workers: "Workers"
    tuning: "Tuning"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a run was, and what kept it from being faster.

    Attributes:
        seconds: from the first task to the last.
        frames_per_second: that were stored.
        possible_frames_per_second: of all workers' backbones alone, as measured on made-up frames
            before the run.
        seconds_by_stage: added up over workers: `decode` in the children; `copy`, `preprocess`,
            `forward` and `wait` (for frames) one after the other; `write` beside the next task;
            `idle` without any task.
        busy_at_end: share of the last tenth of the time in which workers had a task.
        limit: which stage it was, and what would help.
        seconds_of_tasks: from the beginning of the first task's work to the end of the last one's.
        frames_per_second_over_time: in equal spans of that.
    """

    seconds: float
    frames_per_second: float
    possible_frames_per_second: float
    seconds_by_stage: dict[str, float]
    busy_at_end: float
    limit: str
    seconds_of_tasks: float
    frames_per_second_over_time: list[float]


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """How an extraction ended; also in the folder's report.json.

    Attributes:
        num_videos: of the folder, by status: ok, partial, failed.
        num_frames: stored in the folder.
        num_extracted_frames: of them, by this run.
        pace: of this run; None where there was nothing to do.
        workers: who ran it.
        tuning: what was chosen for it, and why.
    """

    num_videos: dict[str, int]
    num_frames: int
    num_extracted_frames: int = 0
    pace: Pace | None = None
    workers: "Workers | None" = None
    tuning: "Tuning | None" = None

    @property
    def exit_code(self) -> int:
        """1 where the folder lists failed or partial videos."""
        has_failures = self.num_videos["partial"] + self.num_videos["failed"] > 0
        return EXIT_WITH_FAILURES if has_failures else EXIT_OK


def write_report(
    earlier: "FeatureStore", rows: list[VideoRow], finished: Finished | None, console: Console
) -> ExtractReport:
    """Writes failures.csv and report.json from what lies in the folder, and prints them.

    Args:
        earlier: the folder's store as it was before the run.
        rows: of its manifest.
        finished: the run; None where there was nothing to do.
        console: where to print.
    """
    from ..manifests.store import FeatureStore

    folder = earlier.folder
    store = earlier if finished is None else FeatureStore(folder.root, earlier=earlier)
    statuses = store.statuses
    counts = Counter(statuses.values())
    report = ExtractReport(
        num_videos={status: counts[status] for status in ("ok", "partial", "failed")},
        num_frames=sum(entry.length for parts in store.entries.values() for entry in parts),
    )
    if finished is not None:
        report = replace(
            report,
            num_extracted_frames=sum(one.num_frames for one in finished.reports),
            pace=pace_of(finished),
            workers=finished.workers,
            tuning=finished.tuning,
        )
    failures = list(_failures(store, statuses, rows))
    write_failures(failures, folder.failures)
    record = asdict(report)
    if finished is None and folder.report.exists():  # how the last run went stays there
        kept = ("num_extracted_frames", "pace", "workers", "tuning")
        before = json.loads(folder.report.read_text(encoding="utf-8"))
        record |= {key: before.get(key) for key in kept}
    write_json(record, folder.report)
    _print(report, failures, folder, console)
    return report


def note_failures(earlier: "FeatureStore", rows: list[VideoRow]) -> None:
    """Writes failures.csv from what lies in the folder, where a run ends before its end.

    Args:
        earlier: the folder's store as it was before the run.
        rows: of its manifest.
    """
    from ..manifests.store import FeatureStore

    store = FeatureStore(earlier.folder.root, earlier=earlier)
    write_failures(_failures(store, store.statuses, rows), store.folder.failures)


def write_failures(failures: Iterable[Failure], path: Path) -> None:
    """Writes failures.csv, atomically."""
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Failure._fields)
        writer.writerows(failures)


def report_of_part(
    folder: FeatureFolder, finished: Finished | None, num_left: int, console: Console
) -> ExtractReport:
    """Prints how a part ended while others are still at work; writes nothing.

    Args:
        folder: that all parts write to.
        finished: what this one ran; None where it had nothing to do.
        num_left: tasks of all parts without a shard.
        console: where to print.
    """
    counts: Counter[str] = Counter()
    for one in finished.reports if finished else ():
        counts.update(one.num_videos)
    num_frames = sum(one.num_frames for one in finished.reports) if finished else 0
    say(
        console,
        f"{folder.root}: this part is done, {num_frames:,} frames; {num_left:,} tasks of other "
        "parts are not yet: the last one writes the report, or the same command with --finish "
        "instead of --part",
    )
    return ExtractReport(
        num_videos={status: counts[status] for status in ("ok", "partial", "failed")},
        num_frames=num_frames,
        num_extracted_frames=num_frames,
        pace=pace_of(finished) if finished else None,
    )


def pace_of(finished: Finished) -> Pace:
    """How fast a run was, and why not faster."""
    reports, workers, tuning = finished.reports, finished.workers, finished.tuning
    stages: defaultdict[str, float] = defaultdict(float)
    for one in reports:
        for stage, spent in one.seconds.items():
            stages[stage] += spent
    num_workers = _most_at_once(reports) if workers.is_elastic else workers.num_workers
    in_turn = sum(one.end - one.begin for one in reports)
    stages["idle"] = max(0.0, num_workers * finished.seconds - in_turn)
    return Pace(
        seconds=round(finished.seconds, 3),
        frames_per_second=round(
            sum(one.num_frames for one in reports) / max(finished.seconds, 1e-9), 2
        ),
        possible_frames_per_second=round(num_workers * tuning.forward_fps, 2),
        seconds_by_stage={stage: round(spent, 3) for stage, spent in sorted(stages.items())},
        busy_at_end=round(_busy_at_end(reports, num_workers), 3),
        limit=limit_of(stages),
        seconds_of_tasks=round(max(o.end for o in reports) - min(o.begin for o in reports), 3),
        frames_per_second_over_time=_over_time(reports),
    )


def _most_at_once(reports: Sequence["TaskReport"]) -> int:
    """How many tasks had a turn at the same time, at most."""
    changes = sorted(change for one in reports for change in ((one.begin, 1), (one.end, -1)))
    return max(accumulate(change for _, change in changes))


def _over_time(reports: Sequence["TaskReport"]) -> list[float]:
    """Frames a second in equal spans of the time, a task's frames being spread over its turn."""
    begin, end = min(one.begin for one in reports), max(one.end for one in reports)
    step = max(1e-9, (end - begin) / MAX_SPANS)
    rates = []
    for number in range(MAX_SPANS):
        start = begin + number * step
        shares = (
            (min(one.end, start + step) - max(one.begin, start)) / max(1e-9, one.end - one.begin)
            for one in reports
        )
        frames = sum(
            max(0.0, share) * one.num_frames for share, one in zip(shares, reports, strict=True)
        )
        rates.append(round(frames / step, 2))
    return rates


def _busy_at_end(reports: Sequence["TaskReport"], num_workers: int) -> float:
    """The share of the last tenth of the time in which workers had a task."""
    begin, end = min(one.begin for one in reports), max(one.end for one in reports)
    last = end - (end - begin) / 10
    busy = sum(max(0.0, one.end - max(one.begin, last)) for one in reports)
    return busy / max(1e-9, num_workers * (end - last))


LIMITS = {
    "forward": "the backbone: --precision bfloat16 or --compile where they pay, a smaller one, "
    "or more cores or GPUs",
    "wait": "decoding: more --decoding-children or cores, or videos of fewer pixels",
    "preprocess": "resizing frames: more cores, or videos of fewer pixels",
    "copy": "copying frames to the GPU: videos of fewer pixels",
    "idle": "too few tasks for the workers: fewer --workers, or smaller --shard-frames",
}


def limit_of(seconds: Mapping[str, float]) -> str:
    """The stage that took most of the workers' time, and what would help.

    >>> limit_of({"forward": 5.0, "wait": 20.0, "decode": 25.0})
    '80% of the time went to decoding: more --decoding-children or cores, or videos of fewer pixels'
    """
    of_workers = {stage: spent for stage, spent in seconds.items() if stage in LIMITS}
    stage = max(of_workers, key=lambda one: of_workers[one])
    share = of_workers[stage] / max(1e-9, sum(of_workers.values()))
    return f"{share:.0%} of the time went to {LIMITS[stage]}"


def _failures(
    store: "FeatureStore", statuses: Mapping[str, str], rows: list[VideoRow]
) -> Iterator[Failure]:
    """The lines of failures.csv, in the manifest's order."""
    for row in rows:
        status = statuses.get(row.video_id, "ok")
        if status != "ok":
            parts = store.entries[row.video_id]
            first = next((part for part in parts if part.status != "ok"), parts[0])
            num_lost = sum(part.num_lost_frames for part in parts)
            yield Failure(row.video_id, row.path, status, first.reason, first.message, num_lost)


def _print(
    report: ExtractReport, failures: list[Failure], folder: FeatureFolder, console: Console
) -> None:
    listed = failures if is_verbose(console) else failures[:MAX_LISTED]
    for failure in listed:
        say(console, f"{failure.status} {failure.video_id}: {failure.reason}: {failure.message}")
    if len(failures) > len(listed):
        say(console, f"… and {len(failures) - len(listed):,} more in {folder.failures}")
    counts = ", ".join(f"{count:,} {status}" for status, count in report.num_videos.items())
    if report.pace is None:
        say(console, f"{folder.root}: nothing to do: all videos were extracted before ({counts})")
        return
    pace = report.pace
    share = pace.frames_per_second / max(1e-9, pace.possible_frames_per_second)
    stages = ", ".join(f"{stage} {spent:,.1f}" for stage, spent in pace.seconds_by_stage.items())
    if console.is_terminal:
        rows = [
            ("videos", counts),
            ("frames", f"{report.num_extracted_frames:,} in {in_words(pace.seconds)}"),
            ("frames/s", f"{pace.frames_per_second:,.1f}, {share:.0%} of the backbone alone"),
            ("limit", pace.limit),
            ("seconds spent", stages),
        ]
        say_table(console, str(folder.root), rows)
        return
    say(
        console,
        f"seconds of workers and their children: {stages}",
        f"{share:.0%} of what the backbone alone reaches "
        f"({pace.possible_frames_per_second:,.1f}/s); {pace.limit}",
        f"{folder.root}: {report.num_extracted_frames:,} frames in {pace.seconds:,.1f} s "
        f"({pace.frames_per_second:,.1f}/s); videos: {counts}",
    )
