"""`vtnpipe plan`: what extracting a manifest's videos will be, before any of it is done."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console

from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ..manifests.feature_folder import FeatureFolder
from ..manifests.manifest import read_manifest
from ..manifests.plan import PlannedRow, look_at
from .console import in_words, say, say_some
from .dask_cluster.client import client_when_needed
from .dask_cluster.jobqueue import JobSettings
from .extraction.feature_spec import Extraction, settle, with_model_settings
from .extraction.planning import LookedAt, divide, kinds_of, look_at_files
from .extraction.preparation import create_folder, hire, size_of_tasks
from .extraction.settings import ExtractSettings
from .extraction.tuning import Tuning
from .extraction.workers import Workers
from .inference.figures import counts_text

MAX_KINDS = 6  # of codecs, sizes and the like, in a line


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What extraction will be.

    Attributes:
        looked_at: the manifest's rows.
        tasks: what each holds.
        seconds: that it will take, about.
    """

    looked_at: list[LookedAt]
    tasks: list[list[PlannedRow]]
    seconds: float

    @property
    def exit_code(self) -> int:
        """1 where a file can't be read."""
        return EXIT_OK if all(one.glance for one in self.looked_at) else EXIT_WITH_FAILURES


def plan(
    manifest: str | Path,
    settings: ExtractSettings | None = None,
    *,
    console: Console | None = None,
) -> Plan:
    """Looks at every video of a manifest, measures the backbone here, and says what is to be done.

    Args:
        manifest: CSV file.
        settings: those that `extract` would get; by default, `ExtractSettings()`.
        console: for what is found; by default, nothing is printed.

    Raises:
        VtnpipeError: the manifest or a setting breaks a rule.
    """
    settings = settings or ExtractSettings()
    console = console or Console(quiet=True)
    rows = [look_at(row) for row in read_manifest(manifest)]
    limits = settings.limits
    if settings.weights == "pretrained":
        settings = replace(settings, weights="none")  # they are as fast, and nothing is downloaded
    if not settings.is_here:
        say(console, "measured on this machine, not where --cluster or --scheduler would run it")
    settings = replace(
        settings, cluster="local", scheduler=None, jobs="1", job=JobSettings(), part=None
    )
    settings = with_model_settings(settings, console)
    with TemporaryDirectory(prefix="vtnpipe-plan-") as temporary:
        folder = FeatureFolder(Path(temporary))
        extraction = settle(folder, settings, console)
        create_folder(folder, extraction, settings)
        looked_at = look_at_files(rows, extraction.sampling, limits, with_orientation=True)
        say(console, *_videos(looked_at, extraction))
        unreadable = [
            f"unreadable  {one.row.video_id}: {one.reason}: {one.message}"
            for one in looked_at
            if one.glance is None
        ]
        say_some(console, unreadable)
        with client_when_needed(settings, folder.jobs, lambda line: say(console, line)) as client:
            crew = hire(folder, extraction, settings, looked_at, [], client, console)
            workers, tuning = crew.workers, crew.tuning
            size = size_of_tasks(looked_at, extraction, settings, crew)
            tasks = divide(looked_at, extraction.sampling, size, limits, may_cut=settings.may_cut)
    num_frames = sum(row.num_frames for task in tasks for row in task)
    seconds = num_frames / (workers.num_workers * tuning.worker_fps)
    say(console, *_work(tasks, num_frames, seconds, workers, tuning))
    return Plan(looked_at=looked_at, tasks=tasks, seconds=seconds)


def _videos(looked_at: Sequence[LookedAt], extraction: Extraction) -> Iterator[str]:
    """Lines about the videos."""
    readable = [one for one in looked_at if one.glance is not None]
    glances = [one.glance for one in readable if one.glance is not None]
    num_frames = sum(one.row.num_frames for one in readable)
    counted = sum(one.row.num_frames for one in readable if one.glance and one.glance.is_counted)
    seconds = sum(
        min(one.row.end or glance.seconds, glance.seconds) - (one.row.start or 0.0)
        for one, glance in zip(readable, glances, strict=True)
    )
    shape = " x ".join(map(str, extraction.records["row_shape"]))
    yield f"videos      {len(looked_at):,}, {in_words(seconds)}"
    yield (
        f"frames      {num_frames:,} to extract; {counted:,} by their files' index, "
        f"{num_frames - counted:,} estimated"
    )
    yield (
        f"features    {shape} {extraction.identity['store']} a frame: "
        f"{num_frames * extraction.bytes_per_frame / 2**20:,.1f} MiB"
    )
    kinds = kinds_of(looked_at)
    for what in ("container", "codec", "size", "frames/s", "rotation", "estimate"):
        name = what if what in ("frames/s", "rotation") else f"{what}s"
        yield f"{name:10}  {counts_text(kinds.get(what, {}), MAX_KINDS)}"


def _work(
    tasks: list[list[PlannedRow]],
    num_frames: int,
    seconds: float,
    workers: Workers,
    tuning: Tuning,
) -> Iterator[str]:
    """Lines about the work."""
    cut = {row.video_id: row.num_parts for task in tasks for row in task if row.num_parts > 1}
    largest = max(sum(row.num_frames for row in task) for task in tasks)
    yield (
        f"tasks       {len(tasks):,} of at most {largest:,} frames; {len(cut):,} long videos in "
        f"{sum(cut.values()):,} parts"
    )
    yield (
        f"time        about {in_words(seconds)} for {num_frames:,} frames: {workers.num_workers} "
        f"workers, {tuning.worker_fps:,.1f} frames/s each"
    )
