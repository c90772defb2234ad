"""What an extraction does before its work: the folder, what is left to do, who does it, and the
plan.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ...manifests.atomic import remove_temporaries, write_bytes
from ...manifests.errors import FeaturesError, SettingsError, StoppedError, StorageError
from ...manifests.feature_folder import FeatureFolder, check_identity, write_extraction
from ...manifests.manifest import VideoRow, read_manifest, write_manifest
from ...manifests.plan import PlannedRow, Task, TaskSize, read_plans, write_plan
from ...manifests.replanning import at_present_paths, rows_to_plan
from ..console import say
from ..dask_cluster.client import GetClient, dashboard
from .feature_spec import Extraction
from .giving_up import FailureLimit
from .planning import LookedAt, divide, kinds_of, look_at_files, most_frames, task_size
from .tuning import Tuning, tune
from .workers import Workers, choose_workers, workers_elsewhere

if TYPE_CHECKING:
    from ...manifests.feature_store import FeatureStore
    from .settings import ExtractSettings


@dataclass(frozen=True, kw_only=True)
class Crew:
    """Who does the work: a client of the workers, what they are, and what was measured."""

    client: Any
    workers: Workers
    tuning: Tuning


@dataclass(frozen=True, kw_only=True)
class Work:
    """What there is to do.

    Attributes:
        tasks: all of the folder, of all plans.
        store: what was stored before.
        rows: of the folder's manifest.
        crew: who planned new tasks; None where there were none.
    """

    tasks: list[Task]
    store: "FeatureStore"
    rows: list[VideoRow]
    crew: Crew | None


def prepare(
    folder: FeatureFolder,
    rows: list[VideoRow],
    settings: "ExtractSettings",
    extraction: Extraction,
    get_client: GetClient,
    console: Console,
) -> Work:
    """Makes the folder if it is new, and plans the rows that no plan holds yet.

    Raises:
        VtnpipeError: the folder holds something else, or a file has changed.
        StoppedError: there is something to plan, and the settings say to finish.
    """
    create_folder(folder, extraction, settings)
    store, tasks, new = _look_into(folder, rows, settings)
    all_rows = _refresh_manifest(folder, rows)
    crew = None
    if new and settings.finish:
        raise StoppedError(
            f"{folder.root}: {len(new):,} videos are in no plan yet, {new[0].video_id!r} for one; "
            "run the parts, or all by leaving out --finish"
        )
    if new:
        pending = tasks_to_do(tasks, folder)
        looked_at = look_at_files(new, extraction.sampling, settings.limits)
        _check_failures(looked_at, len(rows), settings)
        crew = hire(folder, extraction, settings, looked_at, pending, get_client, console)
        size = size_of_tasks(looked_at, extraction, settings, crew)
        planned = divide(
            looked_at, extraction.sampling, size, settings.limits, may_cut=settings.may_cut
        )
        fingerprint = store.extraction["fingerprint"]
        kinds = kinds_of(looked_at)
        tasks += write_plan(folder, planned, fingerprint, crew.tuning.speed, kinds)
    return Work(tasks=tasks, store=store, rows=all_rows, crew=crew)


def what_is_planned(
    folder: FeatureFolder, rows: list[VideoRow], settings: "ExtractSettings"
) -> Work | None:
    """What there is to do where plans hold all rows already; None where there is more to plan.

    Raises:
        VtnpipeError: the folder holds something else, or a file has changed.
    """
    store, tasks, new = _look_into(folder, rows, settings)
    if new or not folder.manifest.exists():
        return None
    noted = read_manifest(folder.manifest)
    if not set(rows) <= set(noted):
        return None  # a label has changed
    return Work(tasks=tasks, store=store, rows=noted, crew=None)


def _look_into(
    folder: FeatureFolder, rows: list[VideoRow], settings: "ExtractSettings"
) -> tuple["FeatureStore", list[Task], list[PlannedRow]]:
    """What is stored, the tasks of all plans, and the rows that are still to be planned."""
    from ...manifests.shards import open_features

    store = open_features(folder.root)
    tasks = read_plans(folder, store.extraction["fingerprint"])
    paths = {row.video_id: row.path for row in rows}
    pending = {task.name: at_present_paths(task, paths) for task in tasks_to_do(tasks, folder)}
    tasks = [pending.get(task.name, task) for task in tasks]
    new = rows_to_plan(
        rows,
        tasks,
        store.outcomes,
        redo_changed=settings.redo_changed,
        retry=settings.reasons_to_retry,
        pending={row.video_id for task in pending.values() for row in task.rows},
        counting=store.plans,
    )
    if settings.decoder == "decord" and any(
        row.cut for task in pending.values() for row in task.rows
    ):
        raise SettingsError(
            "--decoder decord: the plan cuts long videos into parts, which it would get wrong; "
            "give --decoder auto, or extract into a new folder"
        )
    return store, tasks, new


def _check_failures(
    looked_at: list[LookedAt], num_videos: int, settings: "ExtractSettings"
) -> None:
    """Refuses to plan when too many files can't be opened.

    Raises:
        StoppedError: they can't.
    """
    unread = [one for one in looked_at if one.glance is None]
    limit = FailureLimit(settings.max_failures, num_videos)
    limit.count(Counter(one.reason for one in unread), unread[0].message if unread else "")


def create_folder(
    folder: FeatureFolder, extraction: Extraction, settings: "ExtractSettings"
) -> None:
    """Makes the folder: weights, then extraction.json.

    Raises:
        SettingsError: its shards would be too large.
        FeaturesError: it can't be written.
    """
    check_shard_frames(settings, extraction)
    if folder.extraction.exists():
        check_identity(folder, extraction.identity)  # another run may have made it since
    else:
        assert extraction.weights is not None
        try:
            write_bytes(extraction.weights, folder.backbone)
            write_extraction(folder, extraction.identity, **extraction.records)
        except StorageError as error:
            raise FeaturesError(f"{error}; nothing has been extracted yet") from None
    for path in (folder.plans, folder.shards):
        path.mkdir(exist_ok=True)


def remove_remains(folder: FeatureFolder) -> None:
    """Removes what killed runs left; only where no other run is at work."""
    for path in (folder.root, folder.plans, folder.shards):
        remove_temporaries(path)


def tasks_to_do(tasks: Sequence[Task], folder: FeatureFolder) -> list[Task]:
    """Those without a shard."""
    return [task for task in tasks if not task.shard(folder).exists()]


def _refresh_manifest(folder: FeatureFolder, rows: list[VideoRow]) -> list[VideoRow]:
    """Writes manifest.csv: the rows given, then those of earlier runs; returns them."""
    given = {row.video_id for row in rows}
    earlier = read_manifest(folder.manifest) if folder.manifest.exists() else []
    rows = rows + [row for row in earlier if row.video_id not in given]
    write_manifest(rows, folder.manifest)
    return rows


def hire(
    folder: FeatureFolder,
    extraction: Extraction,
    settings: "ExtractSettings",
    looked_at: list[LookedAt],
    pending: list[Task],
    get_client: GetClient,
    console: Console,
) -> Crew:
    """Starts workers, or finds those that are there, and measures what they can do.

    Args:
        folder: with extraction.json and the weights.
        extraction: what it is for.
        settings: where they leave a choice, it is made here.
        looked_at: rows that are to be planned.
        pending: tasks of earlier plans.
        get_client: gives the run's client.
        console: for the reasons.
    """
    opened = sorted(
        (one.glance.width * one.glance.height, index)
        for index, one in enumerate(looked_at)
        if one.glance is not None
    )
    sample = looked_at[opened[len(opened) // 2][1]] if opened else None
    if settings.is_here:
        num_frames = sum(one.row.num_frames for one in looked_at)
        num_frames += sum(task.num_frames for task in pending)
        workers = choose_workers(settings, extraction.device, num_frames)
        client = get_client(workers.num_workers)
    else:
        client = get_client(settings.workers)
        workers = workers_elsewhere(client, settings, extraction.device)
    tuning = tune(
        client,
        folder,
        workers,
        settings,
        speed=pending[0].speed if pending else None,
        sample=sample,
        sampling=extraction.sampling,
    )
    say(console, workers.reason, *tuning.reasons, dashboard(client))
    return Crew(client=client, workers=workers, tuning=tuning)


def size_of_tasks(
    looked_at: list[LookedAt],
    extraction: Extraction,
    settings: "ExtractSettings",
    crew: Crew,
) -> TaskSize:
    """How many frames a task gets; `create_folder` has refused what would be too many."""
    if settings.shard_frames == "auto":
        return task_size(
            sum(one.row.num_frames for one in looked_at),
            frames_per_second=crew.tuning.worker_fps,
            bytes_per_frame=extraction.bytes_per_frame,
            num_workers=settings.parts[1] * crew.workers.num_workers,
        )
    return TaskSize(int(settings.shard_frames))


def check_shard_frames(settings: "ExtractSettings", extraction: Extraction) -> None:
    """Refuses shards that would be too large.

    Raises:
        SettingsError: as many features as `--shard-frames` asks for are too much for one shard.
    """
    most = most_frames(extraction.bytes_per_frame)
    if settings.shard_frames != "auto" and int(settings.shard_frames) > most:
        raise SettingsError(
            f"--shard-frames {settings.shard_frames}: features of {extraction.bytes_per_frame} "
            f"bytes a frame would make a shard of more than 256 MiB; give at most {most}, or auto"
        )
