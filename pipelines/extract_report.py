"""What an extraction says at its end: failures.csv, report.json, and the same in a few lines."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ..manifests.files import atomic_text, write_json
from ..manifests.folder import FeatureFolder
from ..manifests.videos import VideoRow
from .progress import say

if TYPE_CHECKING:
    from ..extract.worker import TaskReport
    from ..manifests.store import FeatureStore

MAX_LISTED = 20  # failures printed; all are in failures.csv


class Failure(NamedTuple):
    """A line of failures.csv."""

    video_id: str
    path: str
    status: str
    reason: str
    message: str
    num_lost_frames: int


@dataclass(frozen=True, kw_only=True)
class ExtractReport:
    """How an extraction ended; also in the folder's report.json.

    Attributes:
        num_videos: of the folder, by status: ok, partial, failed.
        num_frames: stored in the folder.
        num_extracted_frames: of them, by this run.
        seconds: that this run took, from first to last task.
        seconds_by_stage: that its workers spent, added up.
    """

    num_videos: dict[str, int]
    num_frames: int
    num_extracted_frames: int
    seconds: float
    seconds_by_stage: dict[str, float]

    @property
    def exit_code(self) -> int:
        """1 where the folder lists failed or partial videos."""
        has_failures = self.num_videos["partial"] + self.num_videos["failed"] > 0
        return EXIT_WITH_FAILURES if has_failures else EXIT_OK


def write_report(
    folder: FeatureFolder,
    rows: list[VideoRow],
    reports: list["TaskReport"],
    seconds: float,
    console: Console,
    *,
    is_idle: bool,
) -> ExtractReport:
    """Writes failures.csv and report.json from what lies in the folder, and prints them."""
    from ..manifests.shards import open_features

    store = open_features(folder.root)
    statuses = store.statuses
    counts = Counter(statuses.values())
    stages: Counter[str] = Counter()
    for task_report in reports:
        stages.update(task_report.seconds)
    report = ExtractReport(
        num_videos={status: counts[status] for status in ("ok", "partial", "failed")},
        num_frames=sum(entry.length for parts in store.entries.values() for entry in parts),
        num_extracted_frames=sum(task_report.num_frames for task_report in reports),
        seconds=round(seconds, 3),
        seconds_by_stage={stage: round(spent, 3) for stage, spent in sorted(stages.items())},
    )
    failures = list(_failures(store, statuses, rows))
    with atomic_text(folder.failures) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Failure._fields)
        writer.writerows(failures)
    if not is_idle or not folder.report.exists():
        write_json(asdict(report), folder.report)
    _print(report, failures, folder, console, is_idle=is_idle)
    return report


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
    report: ExtractReport,
    failures: list[Failure],
    folder: FeatureFolder,
    console: Console,
    *,
    is_idle: bool,
) -> None:
    for failure in failures[:MAX_LISTED]:
        say(console, f"{failure.status} {failure.video_id}: {failure.reason}: {failure.message}")
    if len(failures) > MAX_LISTED:
        say(console, f"… and {len(failures) - MAX_LISTED:,} more in {folder.failures}")
    counts = ", ".join(f"{count:,} {status}" for status, count in report.num_videos.items())
    if is_idle:
        say(console, f"{folder.root}: nothing to do: all videos were extracted before ({counts})")
        return
    rate = report.num_extracted_frames / max(report.seconds, 1e-9)
    say(
        console,
        f"{folder.root}: {report.num_extracted_frames:,} frames in {report.seconds:,.1f} s "
        f"({rate:,.1f}/s); videos: {counts}",
    )
