"""What an extraction says at its end: failures.csv, report.json, and the same in a few lines."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from rich.console import Console

from ...manifests.atomic import read_json, write_json
from ...manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ...manifests.feature_folder import FeatureFolder
from ...manifests.manifest import VideoRow
from ..console import in_words, say, say_table
from .failures import Failure, say_failures, write_failures
from .pace import Finished, Pace, pace_of

if TYPE_CHECKING:
    from ...manifests.feature_store import FeatureStore
    from .tuning import Tuning
    from .workers import Workers


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
    from ...manifests.feature_store import FeatureStore

    folder = earlier.folder
    store = FeatureStore(folder.root, earlier=earlier)  # other parts may have added shards
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
        before = read_json(folder.report, "remove it, and run the same command again")
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
    from ...manifests.feature_store import FeatureStore

    store = FeatureStore(earlier.folder.root, earlier=earlier)
    write_failures(_failures(store, store.statuses, rows), store.folder.failures)


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
    say_failures(console, failures, folder.failures)
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
