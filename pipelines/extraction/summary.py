"""Summary of an extraction: failures.csv, report.json with the throughput, and printed lines."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate

from rich.console import Console

from ...extract.task import TaskReport
from ...manifests.atomic import read_json, write_json
from ...manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ...manifests.failures import Failure, write_failures
from ...manifests.feature_folder import FeatureFolder
from ...manifests.feature_store import FeatureStore
from ...manifests.manifest import VideoRow
from ..console import duration_text, say, say_failures, say_table
from .workers import Workers

MAX_SPANS = 40  # spans of time whose throughput is recorded

BOTTLENECKS = {
    "forward": "the backbone: --precision bfloat16 or --compile if they help, a smaller one, or "
    "more cores or GPUs",
    "wait": "decoding: more --decoder-processes or cores, or videos of fewer pixels",
    "preprocess": "resizing frames: more cores, or videos of fewer pixels",
    "copy": "copying frames to the GPU: videos of fewer pixels",
    "idle": "waiting for tasks: fewer --workers, or smaller --shard-frames",
}


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run of tasks.

    Attributes:
        reports: reports of the tasks.
        seconds: duration, from the first task to the last.
        workers: workers that ran them.
    """

    reports: list[TaskReport]
    seconds: float
    workers: Workers


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Throughput of a run, and what limited it.

    Attributes:
        seconds: duration, from the first task to the last.
        frames_per_second: stored frames per second.
        possible_frames_per_second: frames per second of all workers' backbones alone, by the time
            that they spent in the backbone.
        seconds_by_stage: added up over workers: `decode` in the decoder processes; `copy`,
            `preprocess`, `forward` and `wait` (for frames) one after the other; `write` beside the
            next task; `idle` without a task, between the first task's beginning and the last
            one's end.
        busy_at_end: share of the last tenth of the time in which workers had a task.
        limit: the stage that took most of the time, and what would help.
        seconds_of_tasks: duration from the first task's beginning to the last one's end.
        frames_per_second_over_time: frames per second in equal spans of that.
    """

    seconds: float
    frames_per_second: float
    possible_frames_per_second: float
    seconds_by_stage: dict[str, float]
    busy_at_end: float
    limit: str
    seconds_of_tasks: float
    frames_per_second_over_time: list[float]


def throughput_of(run: FinishedRun) -> Throughput:
    """Compute the throughput of a run."""
    reports = run.reports
    num_workers = max(run.workers.num_workers, _most_at_once(reports))  # jobs may arrive later
    stages: defaultdict[str, float] = defaultdict(float)
    for one in reports:
        for stage, spent in one.seconds.items():
            stages[stage] += spent
    in_tasks = sum(one.end - one.begin for one in reports)
    seconds_of_tasks = max(one.end for one in reports) - min(one.begin for one in reports)
    stages["idle"] = max(0.0, num_workers * seconds_of_tasks - in_tasks)
    num_frames = sum(one.num_frames for one in reports)
    return Throughput(
        seconds=round(run.seconds, 3),
        frames_per_second=round(num_frames / max(run.seconds, 1e-9), 2),
        possible_frames_per_second=round(
            num_workers * num_frames / max(stages["forward"], 1e-9), 2
        ),
        seconds_by_stage={stage: round(spent, 3) for stage, spent in sorted(stages.items())},
        busy_at_end=round(_busy_at_end(reports, num_workers), 3),
        limit=limit_of(stages),
        seconds_of_tasks=round(seconds_of_tasks, 3),
        frames_per_second_over_time=_over_time(reports),
    )


def _most_at_once(reports: Sequence[TaskReport]) -> int:
    """Return the largest number of tasks that had a backbone at the same time."""
    changes = sorted(change for one in reports for change in ((one.begin, 1), (one.end, -1)))
    return max(accumulate(change for _, change in changes))


def _over_time(reports: Sequence[TaskReport]) -> list[float]:
    """Return frames per second in equal spans, each task's frames spread over its duration."""
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


def _busy_at_end(reports: Sequence[TaskReport], num_workers: int) -> float:
    """Return the share of the last tenth of the time in which workers had a task."""
    begin, end = min(one.begin for one in reports), max(one.end for one in reports)
    last = end - (end - begin) / 10
    busy = sum(max(0.0, one.end - max(one.begin, last)) for one in reports)
    return busy / max(1e-9, num_workers * (end - last))


def limit_of(seconds: Mapping[str, float]) -> str:
    """Return the stage that took most of the workers' time, and what would help.

    >>> limit_of({"forward": 5.0, "wait": 20.0, "decode": 25.0})
    '80% of the time went to decoding: more --decoder-processes or cores, or videos of fewer pixels'
    """
    of_workers = {stage: spent for stage, spent in seconds.items() if stage in BOTTLENECKS}
    stage = max(of_workers, key=lambda one: of_workers[one])
    share = of_workers[stage] / max(1e-9, sum(of_workers.values()))
    return f"{share:.0%} of the time went to {BOTTLENECKS[stage]}"


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """Result of an extraction, also stored in report.json.

    Attributes:
        num_videos: number of videos in the folder by status: ok, partial, failed.
        num_frames: number of frames in the folder.
        num_extracted_frames: number of frames that this run extracted.
        throughput: throughput of this run; None if there was nothing to do.
        workers: workers of this run.
    """

    num_videos: dict[str, int]
    num_frames: int
    num_extracted_frames: int = 0
    throughput: Throughput | None = None
    workers: Workers | None = None

    @property
    def exit_code(self) -> int:
        """1 if the folder has failed or partial videos."""
        has_failures = self.num_videos["partial"] + self.num_videos["failed"] > 0
        return EXIT_WITH_FAILURES if has_failures else EXIT_OK


def write_summary(
    earlier: FeatureStore, rows: list[VideoRow], run: FinishedRun | None, console: Console
) -> ExtractReport:
    """Write failures.csv and report.json from the folder's contents, and print them.

    Args:
        earlier: the folder's store before the run.
        rows: rows of its manifest.
        run: the run; None if there was nothing to do.
        console: the console.
    """
    folder = earlier.folder
    store = FeatureStore(folder.root, earlier=earlier)  # other parts may have added shards
    statuses = store.statuses
    counts = Counter(statuses.values())
    report = ExtractReport(
        num_videos={status: counts[status] for status in ("ok", "partial", "failed")},
        num_frames=sum(entry.length for parts in store.entries.values() for entry in parts),
        num_extracted_frames=sum(one.num_frames for one in run.reports) if run else 0,
        throughput=throughput_of(run) if run else None,
        workers=run.workers if run else None,
    )
    failures = list(_failures(store, statuses, rows))
    write_failures(failures, folder.failures)
    record = asdict(report)
    if run is None and folder.report.exists():  # keep the record of the last run
        before = read_json(folder.report, "remove it, and rerun the command")
        for key in ("num_extracted_frames", "throughput", "workers"):
            record[key] = before.get(key)
        record["throughput"] = record["throughput"] or before.get("pace")  # of vtnpipe 0.1
    write_json(record, folder.report)
    _print(report, failures, folder, console)
    return report


def note_failures(earlier: FeatureStore, rows: list[VideoRow]) -> None:
    """Write failures.csv from the folder's contents, for a run that stops early.

    Args:
        earlier: the folder's store before the run.
        rows: rows of its manifest.
    """
    store = FeatureStore(earlier.folder.root, earlier=earlier)
    write_failures(_failures(store, store.statuses, rows), store.folder.failures)


def part_summary(
    folder: FeatureFolder, run: FinishedRun | None, num_left: int, console: Console
) -> ExtractReport:
    """Print the result of a part while others are running; write nothing.

    Args:
        folder: the folder that all parts share.
        run: the run of this part; None if it had nothing to do.
        num_left: number of tasks of all parts without a shard.
        console: the console.
    """
    counts: Counter[str] = Counter()
    for one in run.reports if run else ():
        counts.update(one.num_videos)
    num_frames = sum(one.num_frames for one in run.reports) if run else 0
    say(
        console,
        f"{folder.root}: this part is done, {num_frames:,} frames; {num_left:,} tasks of other "
        "parts are not: the last part writes the report, or the same command with --finish instead "
        "of --part",
    )
    return ExtractReport(
        num_videos={status: counts[status] for status in ("ok", "partial", "failed")},
        num_frames=num_frames,
        num_extracted_frames=num_frames,
        throughput=throughput_of(run) if run else None,
    )


def _failures(
    store: FeatureStore, statuses: Mapping[str, str], rows: list[VideoRow]
) -> Iterator[Failure]:
    """Yield the rows of failures.csv, in the manifest's order."""
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
    say_failures(console, failures, folder.failures)
    counts = ", ".join(f"{count:,} {status}" for status, count in report.num_videos.items())
    if report.throughput is None:
        say(console, f"{folder.root}: nothing to do: all videos were extracted before ({counts})")
        return
    found = report.throughput
    share = found.frames_per_second / max(1e-9, found.possible_frames_per_second)
    stages = ", ".join(f"{stage} {spent:,.1f}" for stage, spent in found.seconds_by_stage.items())
    if console.is_terminal:
        rows = [
            ("videos", counts),
            ("frames", f"{report.num_extracted_frames:,} in {duration_text(found.seconds)}"),
            ("frames/s", f"{found.frames_per_second:,.1f}, {share:.0%} of the backbone alone"),
            ("limit", found.limit),
            ("seconds spent", stages),
        ]
        say_table(console, str(folder.root), rows)
        return
    say(
        console,
        f"seconds of workers and decoder processes: {stages}",
        f"{share:.0%} of the throughput of the backbone alone "
        f"({found.possible_frames_per_second:,.1f}/s); {found.limit}",
        f"{folder.root}: {report.num_extracted_frames:,} frames in {found.seconds:,.1f} s "
        f"({found.frames_per_second:,.1f}/s); videos: {counts}",
    )
