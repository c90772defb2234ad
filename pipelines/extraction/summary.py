"""Summary of an extraction: failures.csv, report.json with the throughput, and printed lines."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from math import ceil

from rich.console import Console

from ...extract.nvdec_process import NUM_THREADS
from ...extract.task import TaskReport
from ...manifests.atomic import read_json, write_json
from ...manifests.errors import EXIT_OK, EXIT_WITH_FAILURES, counted
from ...manifests.failures import Failure, write_failures
from ...manifests.feature_folder import FeatureFolder
from ...manifests.feature_store import FeatureStore, failures_of, num_noted
from ...manifests.manifest import VideoRow
from ..console import duration_text, say, say_failures, say_table
from ..dask_cluster.jobqueue import THREADS_PER_WORKER
from .workers import Workers

MAX_SPANS = 40  # spans of time whose throughput is recorded

# What is busy → what helps if it is the limit.
LIMITS = {
    "backbone": "a smaller backbone, fewer pixels (--image-size), or more cores or GPUs",
    "decoding": "more --decoder-processes or cores, or videos of fewer pixels",
    "preparing frames": "more --workers, or videos of fewer pixels",
    "video engines": "more cores, or videos of fewer pixels",
}
MIN_BUSY = 0.5  # share from which on something is called the limit


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
            that their devices spent on batches.
        seconds_by_stage: added up over workers: `decode` in the decoder processes; `forward` on the
            backbones' devices; `copy` (to the device), `preprocess`, `wait` (for the backbone) and
            `write` in the worker processes.
        busy: shares of the time in which the backbones, the decoder processes, and the workers'
            threads that prepare frames were busy.
        limit: the limit by these shares, and what would help.
        seconds_of_tasks: duration from the first task's beginning to the last one's end.
        frames_per_second_over_time: frames per second in equal spans of that.
    """

    seconds: float
    frames_per_second: float
    possible_frames_per_second: float
    seconds_by_stage: dict[str, float]
    busy: dict[str, float]
    limit: str
    seconds_of_tasks: float
    frames_per_second_over_time: list[float]


def throughput_of(run: FinishedRun) -> Throughput:
    """Compute the throughput of a run."""
    reports, workers = run.reports, run.workers
    # Each worker runs two tasks at a time; workers of jobs may arrive later.
    num_workers = max(workers.num_workers, ceil(_most_at_once(reports) / THREADS_PER_WORKER))
    stages: Counter[str] = Counter()
    for one in reports:
        stages.update(one.seconds)
    num_frames = sum(one.num_frames for one in reports)
    span = max(one.end for one in reports) - min(one.begin for one in reports)
    available = max(1e-9, num_workers * span)
    busy = {
        "backbone": stages["forward"] / available,
        "decoding": stages["decode"] / (workers.num_decoder_processes * available),
        "preparing frames": (stages["copy"] + stages["preprocess"]) / available,
    }
    if "nvdec" in stages:
        busy["video engines"] = stages["nvdec"] / (NUM_THREADS * available)
    return Throughput(
        seconds=round(run.seconds, 3),
        frames_per_second=round(num_frames / max(run.seconds, 1e-9), 2),
        possible_frames_per_second=round(
            num_workers * num_frames / max(stages["forward"], 1e-9), 2
        ),
        seconds_by_stage={stage: round(spent, 3) for stage, spent in sorted(stages.items())},
        busy={what: round(share, 3) for what, share in busy.items()},
        limit=limit_of(busy),
        seconds_of_tasks=round(span, 3),
        frames_per_second_over_time=_over_time(reports),
    )


def _most_at_once(reports: Sequence[TaskReport]) -> int:
    """Return the largest number of tasks that were at work at the same time."""
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


def limit_of(busy: Mapping[str, float]) -> str:
    """Return what was busy for which share of the time, and what would help, in a sentence.

    >>> limit_of({"backbone": 0.42, "decoding": 0.97, "preparing frames": 0.1})
    'decoding was busy for 97% of the time, backbone for 42%: more --decoder-processes or cores, \
or videos of fewer pixels would help'
    """
    first, second, *_ = sorted(busy, key=lambda what: -busy[what])
    shares = f"{first} was busy for {busy[first]:.0%} of the time, {second} for {busy[second]:.0%}"
    if busy[first] < MIN_BUSY:
        return f"{shares}: most of it went to starting, opening files and waiting for the last ones"
    return f"{shares}: {LIMITS[first]} would help"


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
    counts = Counter(store.statuses.values())
    report = ExtractReport(
        num_videos={status: counts[status] for status in ("ok", "partial", "failed")},
        num_frames=sum(entry.length for parts in store.entries.values() for entry in parts),
        num_extracted_frames=sum(one.num_frames for one in run.reports) if run else 0,
        throughput=throughput_of(run) if run else None,
        workers=run.workers if run else None,
    )
    failures = failures_of(store, rows)
    write_failures(failures, folder.failures)
    record = asdict(report)
    if run is None and folder.report.exists():  # keep the record of the last run
        before = read_json(folder.report, "remove it, and rerun the command")
        for key in ("num_extracted_frames", "throughput", "workers"):
            record[key] = before.get(key)
        record["throughput"] = record["throughput"] or before.get("pace")  # of vtnpipe 0.1
    write_json(record, folder.report)
    _print(report, failures, folder, console)
    for note, count in num_noted(store.entries).items():
        say(console, f"note: {counted(count, 'video')}: {note}")
    return report


def note_failures(earlier: FeatureStore, rows: list[VideoRow]) -> None:
    """Write failures.csv from the folder's contents, for a run that stops early.

    Args:
        earlier: the folder's store before the run.
        rows: rows of its manifest.
    """
    store = FeatureStore(earlier.folder.root, earlier=earlier)
    write_failures(failures_of(store, rows), store.folder.failures)


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


def _print(
    report: ExtractReport, failures: list[Failure], folder: FeatureFolder, console: Console
) -> None:
    say_failures(console, failures, folder.failures)
    counts = ", ".join(f"{count:,} {status}" for status, count in report.num_videos.items())
    if report.throughput is None:
        say(console, f"{folder.root}: nothing to do: all videos were extracted before ({counts})")
        return
    found = report.throughput
    share = min(1.0, found.frames_per_second / max(1e-9, found.possible_frames_per_second))
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
        f"{folder.root}: {counted(report.num_extracted_frames, 'frame')} in {found.seconds:,.1f} s "
        f"({found.frames_per_second:,.1f}/s); videos: {counts}",
    )
