"""`vtnpipe extract`: stage one, from a manifest to a feature folder; the same command resumes.

The specification of the features is resolved and the tasks are planned in this process; then Dask
workers run every task without a shard.
"""

import contextlib
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from ..extract.batching import TaskProgress
from ..extract.task import TaskReport, WorkerSettings, release_worker, start_decoders
from ..manifests.atomic import remove_temporaries
from ..manifests.errors import StoppedError, VtnpipeError, counted
from ..manifests.feature_folder import FeatureFolder
from ..manifests.lock import locked, planning_lock
from ..manifests.manifest import VideoRow, read_manifest, with_image_rate
from ..manifests.plan import Task, pending_tasks
from .console import CountProgress, say, say_details
from .dask_cluster.client import dashboard_lines, open_client
from .extraction.failure_limit import FailureLimit
from .extraction.feature_spec import (
    NewExtraction,
    package_versions,
    resolve_spec,
    with_model_settings,
)
from .extraction.planning import (
    Plan,
    create_folder,
    existing_plan,
    plan_extraction,
)
from .extraction.probing import planning_pool
from .extraction.scheduler import run_tasks
from .extraction.settings import ExtractSettings
from .extraction.summary import (
    ExtractReport,
    FinishedRun,
    note_failures,
    part_summary,
    write_summary,
)
from .extraction.workers import Workers, local_workers, remote_workers
from .options import settings_options


def extract(
    manifest: str | Path,
    features: str | Path,
    settings: ExtractSettings | None = None,
    *,
    console: Console | None = None,
) -> ExtractReport:
    """Extract the features of a manifest's videos into a folder; resume what is there.

    Args:
        manifest: CSV file.
        features: feature folder; created if missing.
        settings: by default `ExtractSettings()`.
        console: for progress and results; by default nothing is printed.

    Raises:
        VtnpipeError: the manifest, a setting or the folder is invalid; nothing has been written.
        StoppedError: the run could not be finished; the same call resumes.
    """
    settings = settings or ExtractSettings()
    console = console or Console(quiet=True)
    rows = with_image_rate(read_manifest(manifest), settings.image_fps)
    folder = FeatureFolder(Path(features))
    settings = with_model_settings(settings, console)
    if settings.part is not None:
        with locked(folder, is_shared=True):
            return _extract_part(folder, rows, settings, console)
    with locked(folder):
        with planning_pool(rows, settings) as pool:
            if not folder.extraction.exists():
                pool.start()  # while the backbone is created
            new = resolve_spec(folder, settings, console)
            _remove_leftovers(folder)
            plan = plan_extraction(folder, rows, settings, new, pool, console)
        tasks = plan.pending
        if not tasks:
            return write_summary(plan.store, plan.rows, None, console)
        if settings.finish:
            raise StoppedError(
                f"{folder.root}: {len(tasks):,} of {len(plan.tasks):,} tasks have no shard, "
                f"{tasks[0].name} for one; run their parts again, or all by leaving out --finish"
            )
        run = _run(tasks, plan, settings, new, console)
        _remove_leftovers(folder)  # of workers that died
        return write_summary(plan.store, plan.rows, run, console)


def _extract_part(
    folder: FeatureFolder, rows: list[VideoRow], settings: ExtractSettings, console: Console
) -> ExtractReport:
    """Run every Nth task, while other parts may run on other hosts; the first part plans."""
    index, num_parts = settings.part_of
    with planning_lock(folder):  # on unlike hosts, the first one's precision is the folder's
        new = resolve_spec(folder, settings, console)
        create_folder(folder, new, settings)
    plan = existing_plan(folder, rows, settings)
    if plan is None:
        with planning_lock(folder), planning_pool(rows, settings) as pool:
            plan = plan_extraction(folder, rows, settings, new, pool, console)
    own = plan.tasks[index::num_parts]
    tasks = pending_tasks(own, folder)
    say(
        console,
        f"part {settings.part}: {len(own):,} of {counted(len(plan.tasks), 'task')}; "
        f"{len(own) - len(tasks):,} are done",
    )
    run = _run(tasks, plan, settings, new, console) if tasks else None
    if num_left := len(plan.pending):
        return part_summary(folder, run, num_left, console)
    with planning_lock(folder):
        return write_summary(plan.store, plan.rows, run, console)


def _run(
    tasks: list[Task],
    plan: Plan,
    settings: ExtractSettings,
    new: NewExtraction,
    console: Console,
) -> FinishedRun:
    """Run tasks, the largest first; write failures.csv however that ends."""
    folder = plan.store.folder
    num_videos = len({row.video_id for task in tasks for row in task.rows})
    num_frames = sum(task.num_frames for task in tasks)
    say(
        console,
        f"{counted(num_videos, 'video')}, {counted(num_frames, 'frame')} in "
        f"{counted(len(tasks), 'task')}",
    )
    limit = FailureLimit(settings.max_failures, len(plan.rows))
    reports: list[TaskReport] = []
    counts: Counter[str] = Counter()  # videos by status, and workers

    def show_counts() -> None:
        names = ["workers", *(name for name in ("partial", "failed") if counts[name])]
        progress.note(", ".join(f"{counts[name]:,} {name}" for name in names))

    def on_workers(num_workers: int) -> None:
        counts["workers"] = num_workers
        show_counts()

    def on_finished(report: TaskReport) -> None:
        reports.append(report)
        counts.update(report.num_videos)
        show_counts()
        spent = ", ".join(f"{stage} {seconds:,.1f}" for stage, seconds in report.seconds.items())
        say_details(
            console, f"task {report.task}: {counted(report.num_frames, 'frame')}; seconds: {spent}"
        )
        limit.count(report.num_failed, report.example)

    def on_progress(more: TaskProgress) -> None:
        progress.count(more.num_frames, more.num_unplanned_frames)

    with contextlib.ExitStack() as stack:
        workers = None
        if settings.is_here:
            workers = local_workers(settings, new.device, num_frames)
        is_thread = workers is not None and workers.num_workers == 1  # of this process
        if workers is not None and is_thread:
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            start_decoders(_worker_settings(folder, settings, workers, new.num_engines))
        client = stack.enter_context(
            open_client(
                settings,
                num_workers=workers.num_workers if workers else 1,
                logs=folder.jobs,
                say=lambda line: say(console, line),
            )
        )
        if is_thread:
            stack.callback(release_worker)  # before the cluster waits for its tasks
        workers = workers or remote_workers(client, settings, new.device)
        say(console, workers.description, *dashboard_lines(client, is_here=settings.is_here))
        start = time.monotonic()
        try:
            with CountProgress("extract", "frames", num_frames, console) as progress:
                run_tasks(
                    client,
                    sorted(tasks, key=lambda task: -task.num_frames),
                    _worker_settings(folder, settings, workers, new.num_engines),
                    num_workers=workers.num_workers,
                    on_progress=on_progress,
                    on_finished=on_finished,
                    on_workers=on_workers,
                )
        except (KeyboardInterrupt, VtnpipeError) as error:
            say(console, f"{len(reports):,} of {len(tasks):,} tasks are finished")
            with contextlib.suppress(VtnpipeError, OSError):  # the first error is the one to tell
                note_failures(plan.store, plan.rows)
            if isinstance(error, VtnpipeError) and not folder.extraction.exists():
                raise StoppedError(
                    f"{folder.root}: the folder is gone; mount it again, and the same command "
                    "resumes"
                ) from error
            raise
        seconds = time.monotonic() - start
    return FinishedRun(reports=reports, seconds=seconds, workers=workers)


def _worker_settings(
    folder: FeatureFolder, settings: ExtractSettings, workers: Workers, num_engines: int
) -> WorkerSettings:
    return WorkerSettings(
        folder=str(folder.root.absolute()),
        device=workers.device,
        num_threads=workers.num_threads,
        num_decoder_processes=workers.num_decoder_processes,
        limits=settings.limits,
        batch_size=settings.batch_size,
        is_compiled=None if settings.compile == "auto" else settings.compile == "yes",
        decoder=settings.decoder,
        engines=workers.device if num_engines else "",
        record={**settings.record, "versions": package_versions()},
    )


def _remove_leftovers(folder: FeatureFolder) -> None:
    """Remove temporary files of killed runs; only if no other run is writing."""
    for path in (folder.root, folder.plans, folder.shards):
        remove_temporaries(path)


@click.command("extract")
@click.argument("manifest")
@click.argument("features")
@settings_options(ExtractSettings)
def command(manifest: str, features: str, console: Console, **options: Any) -> int:
    """Run a frozen backbone over every frame of the videos in MANIFEST, into the folder FEATURES.

    The same command resumes: finished shards stay, and new rows of the manifest are added.
    """
    return extract(manifest, features, ExtractSettings(**options), console=console).exit_code
