"""`vtnpipe extract`: stage one from a manifest to a feature folder; the same command again resumes.

What decides a stored value (the identity) is settled first, in this process: device, precision,
backbone and its weights. Then the files of rows that no plan holds yet are looked at, workers are
started and measured, the rows are divided into tasks, and every task without a shard is run.
"""

import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..manifests.errors import StoppedError, VtnpipeError
from ..manifests.feature_folder import FeatureFolder, locked, planning
from ..manifests.manifest import VideoRow, read_manifest
from ..manifests.plan import Task
from .console import CountProgress, in_words, say, say_more
from .dask_cluster.client import GetClient, client_when_needed
from .dask_cluster.jobqueue import THREADS_PER_WORKER
from .extraction.feature_spec import Extraction, settle, with_model_settings
from .extraction.giving_up import FailureLimit, TimeBudget
from .extraction.pace import Finished
from .extraction.preparation import (
    Crew,
    Work,
    create_folder,
    hire,
    prepare,
    remove_remains,
    tasks_to_do,
    what_is_planned,
)
from .extraction.scheduler import run_tasks
from .extraction.settings import ExtractSettings
from .extraction.summary import (
    ExtractReport,
    note_failures,
    report_of_part,
    write_report,
)

if TYPE_CHECKING:
    from ..extract.task import TaskReport


def extract(
    manifest: str | Path,
    features: str | Path,
    settings: ExtractSettings | None = None,
    *,
    console: Console | None = None,
) -> ExtractReport:
    """Extracts the features of a manifest's videos into a folder; resumes what is there.

    Args:
        manifest: CSV file.
        features: the folder; made if it is not there.
        settings: by default, `ExtractSettings()`.
        console: for progress and results; by default, nothing is printed.

    Raises:
        VtnpipeError: the manifest, a setting, or the folder breaks a rule; nothing has been written
            then.
        StoppedError: the run could not be finished; the same call resumes.
    """
    settings = settings or ExtractSettings()
    console = console or Console(quiet=True)
    budget = TimeBudget(settings.time_budget)
    rows = read_manifest(manifest)
    folder = FeatureFolder(Path(features))
    settings = with_model_settings(settings, console)
    is_part = settings.part is not None
    with (
        locked(folder, is_shared=is_part),
        client_when_needed(settings, folder.jobs, lambda line: say(console, line)) as get_client,
    ):
        if is_part:
            return _extract_part(folder, rows, settings, get_client, budget, console)
        extraction = settle(folder, settings, console, get_client)
        remove_remains(folder)
        work = prepare(folder, rows, settings, extraction, get_client, console)
        tasks = tasks_to_do(work.tasks, folder)
        if not tasks:
            return write_report(work.store, work.rows, None, console)
        if settings.finish:
            raise StoppedError(
                f"{folder.root}: {len(tasks):,} of {len(work.tasks):,} tasks have no shard, "
                f"{tasks[0].name} for one; run their parts again, or all by leaving out "
                "--finish"
            )
        crew = work.crew or hire(folder, extraction, settings, [], tasks, get_client, console)
        finished = _run(folder, tasks, work, extraction, settings, crew, budget, console)
        remove_remains(folder)  # of workers that died
        return write_report(work.store, work.rows, finished, console)


def _extract_part(
    folder: FeatureFolder,
    rows: list[VideoRow],
    settings: ExtractSettings,
    get_client: GetClient,
    budget: TimeBudget,
    console: Console,
) -> ExtractReport:
    """Runs each Nth task, while other parts may run on other hosts; the first of them plans."""
    number, num_parts = settings.parts
    with planning(folder):  # of unlike hosts, the first one's precision is the folder's
        extraction = settle(folder, settings, console, get_client)
        create_folder(folder, extraction, settings)
    work = what_is_planned(folder, rows, settings)
    if work is None:
        with planning(folder):
            work = prepare(folder, rows, settings, extraction, get_client, console)
    own = work.tasks[number::num_parts]
    tasks = tasks_to_do(own, folder)
    say(
        console,
        f"part {settings.part}: {len(own):,} of {len(work.tasks):,} tasks; "
        f"{len(own) - len(tasks):,} are done",
    )
    finished = None
    if tasks:
        crew = work.crew or hire(folder, extraction, settings, [], tasks, get_client, console)
        finished = _run(folder, tasks, work, extraction, settings, crew, budget, console)
    num_left = len(tasks_to_do(work.tasks, folder))
    if num_left:
        return report_of_part(folder, finished, num_left, console)
    with planning(folder):
        return write_report(work.store, work.rows, finished, console)


def _run(
    folder: FeatureFolder,
    tasks: list[Task],
    work: Work,
    extraction: Extraction,
    settings: ExtractSettings,
    crew: Crew,
    budget: TimeBudget,
    console: Console,
) -> Finished:
    """Runs tasks, the largest first; what failed is noted however that ends."""
    from ..extract.task import Job

    workers, tuning = crew.workers, crew.tuning
    job = Job(
        folder=str(folder.root.absolute()),
        device=workers.device,
        num_threads=workers.num_threads,
        num_children=tuning.num_children,
        limits=settings.limits,
        batch_size=settings.batch_size,
        compile=settings.compile,
        decoder=settings.decoder,
        settings={**settings.record, "versions": extraction.records["versions"]},
    )
    num_videos = len({row.video_id for task in tasks for row in task.rows})
    num_frames = sum(task.num_frames for task in tasks)
    seconds = num_frames / (tuning.worker_fps * workers.num_workers)
    say(
        console,
        f"{num_videos:,} videos, {num_frames:,} frames in {len(tasks):,} tasks: "
        f"about {in_words(seconds)}",
    )
    limit = FailureLimit(settings.max_failures, len(work.rows))
    reports: list[TaskReport] = []

    counts: Counter[str] = Counter()  # videos by status, and workers

    def note(num_workers: int) -> None:
        counts["workers"] = num_workers
        told = ["workers", *(status for status in ("partial", "failed") if counts[status])]
        progress.note(", ".join(f"{counts[name]:,} {name}" for name in told))

    def finish(report: "TaskReport") -> None:
        reports.append(report)
        counts.update(report.num_videos)
        note(counts["workers"])
        spent = ", ".join(f"{stage} {seconds:,.1f}" for stage, seconds in report.seconds.items())
        say_more(console, f"task {report.task}: {report.num_frames:,} frames; seconds: {spent}")
        limit.count(report.num_failed, report.example)

    def may_begin(task: Task) -> bool:  # a worker has two tasks, one after the other
        return budget.seconds_left > THREADS_PER_WORKER * task.num_frames / tuning.worker_fps

    start = time.monotonic()
    ordered = sorted(tasks, key=lambda task: -task.num_frames)
    try:
        with CountProgress("extract", "frames", num_frames, console) as progress:
            run_tasks(
                crew.client,
                ordered,
                job,
                num_workers=workers.num_workers,
                on_progress=lambda more: progress.count(more.num_frames, more.num_unplanned_frames),
                on_finished=finish,
                on_workers=note,
                may_begin=may_begin,
                seconds_left=budget.seconds_left,
            )
    except (KeyboardInterrupt, VtnpipeError) as error:
        say(console, f"{len(reports):,} of {len(tasks):,} tasks are finished and stay so")
        with contextlib.suppress(VtnpipeError, OSError):  # the first fault is the one to tell
            note_failures(work.store, work.rows)
        if isinstance(error, VtnpipeError) and not folder.extraction.exists():
            raise StoppedError(
                f"{folder.root}: is gone; mount it again, and the same command resumes"
            ) from error
        raise
    return Finished(
        reports=reports, seconds=time.monotonic() - start, workers=workers, tuning=tuning
    )
