"""`vtnpipe extract`: stage one from a manifest to a feature folder; the same command again resumes.

What decides a stored value (the identity) is settled first, in this process: device, precision,
backbone and its weights. Then the files of rows that no plan holds yet are looked at, workers are
started and measured, the rows are divided into tasks, and every task without a shard is run.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..extract.choices import Decoder, Precision, Store, Views
from ..manifests.errors import SettingsError
from ..manifests.files import remove_temporaries, write_bytes
from ..manifests.folder import (
    FeatureFolder,
    check_identity,
    locked,
    write_extraction,
)
from ..manifests.plan import PlannedRow, Task, TaskSize, read_plans, rows_to_plan, write_plan
from ..manifests.videos import VideoRow, read_manifest, write_manifest
from .extract_report import ExtractReport, Finished, write_report
from .extraction import DEFAULT_BACKBONE, Extraction, settle, with_model_settings
from .options import above, at_least, auto_or_at_least, check_settings, setting
from .planning import LookedAt, divide, look_at_files, most_frames, task_size
from .progress import CountProgress, in_words, say
from .tuning import Tuning, Workers, choose_workers, tune

if TYPE_CHECKING:
    from ..extract.worker import TaskReport
    from ..manifests.store import FeatureStore


@dataclass(frozen=True, kw_only=True)
class ExtractSettings:
    """The settings of `vtnpipe extract`."""

    backbone: str | None = setting(
        None,
        help=f"A timm name, hf-hub: names included, or package.module:factory; by default the "
        f"model's that --weights names, else {DEFAULT_BACKBONE}.",
        metavar="NAME",
    )
    weights: str = setting(
        "pretrained",
        help="pretrained, none (random, always the same), a safetensors or PyTorch file, or a "
        "model folder, whose backbone and preprocessing are taken.",
        metavar="pretrained|none|FILE|MODEL",
    )
    precision: Precision = setting(
        "auto", help="Of the backbone. auto: bfloat16 where the machine has it, or the folder's."
    )
    store: Store = setting("float16", help="Of the stored features.")
    device: str = setting("auto", help="Of the backbone.", metavar="auto|cpu|cuda|cuda:N")
    decoder: Decoder = setting(
        "auto", help="auto: decord where it is known to be right, else PyAV."
    )
    fps: float | None = setting(
        None,
        help="Only the frames nearest to times so far apart; by default, every frame.",
        check=above(0),
    )
    every: int = setting(1, help="Only each so many frames.", check=at_least(1))
    views: Views = setting(
        "centre",
        help="Of each frame; flip adds the mirrored centre, three-crop is left, centre and right.",
    )
    pool: str | None = setting(
        None,
        help="How a timm model makes one vector of a frame, where it offers more than its own way: "
        "token, avg, max, avgmax, ...",
        metavar="NAME",
    )
    shard_frames: str = setting(
        "auto",
        help="Frames of a task, whose features become one shard; auto: one to two minutes of work.",
        check=auto_or_at_least(1),
        metavar="auto|N",
    )
    batch_size: int | None = setting(
        None,
        help="Images that go through the backbone at once; by default, measured.",
        check=at_least(1),
    )
    compile: bool = setting(False, help="Compile the backbone: minutes at first, faster then.")
    workers: int | None = setting(
        None, help="Worker processes; by default one per core, or one per GPU.", check=at_least(1)
    )
    threads: int | None = setting(
        None,
        help="Of each worker on a CPU; by default the cores divided by the workers.",
        check=at_least(1),
    )
    decoding_children: int | None = setting(
        None,
        help="Processes of each worker that decode; by default, as many as keep the backbone busy.",
        check=at_least(1),
    )
    redo_changed: bool = setting(
        False, help="Extract videos again whose file or span has changed since."
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.fps is not None and self.every != 1:
            raise SettingsError(
                f"--fps {self.fps:g} with --every {self.every}: frames are chosen by time or by "
                "count; leave out one of the two"
            )


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
    rows = read_manifest(manifest)
    folder = FeatureFolder(Path(features))
    settings = with_model_settings(settings, console)
    extraction = settle(folder, settings, console)
    with locked(folder):
        create_folder(folder, extraction)
        tasks, new, store = _planned(folder, rows, settings)
        all_rows = _refresh_manifest(folder, rows)
        pending = [task for task in tasks if not task.shard(folder).exists()]
        if not pending and not new:
            return write_report(store, all_rows, None, console)
        looked_at = look_at_files(new, extraction.sampling)
        with open_workers(folder, extraction, settings, looked_at, pending, console) as opened:
            client, workers, tuning = opened
            if new:
                size = size_of_tasks(looked_at, extraction, settings, workers, tuning)
                planned = divide(looked_at, extraction.sampling, size)
                fingerprint = store.extraction["fingerprint"]
                pending += write_plan(folder, planned, fingerprint, tuning.speed)
            finished = _run(client, folder, pending, extraction, settings, workers, tuning, console)
        remove_temporaries(folder.shards)  # of workers that died
        return write_report(store, all_rows, finished, console)


def create_folder(folder: FeatureFolder, extraction: Extraction) -> None:
    """Makes the folder: weights, then extraction.json; removes what a killed run left."""
    remove_temporaries(folder.root)
    if folder.extraction.exists():
        check_identity(folder, extraction.identity)  # another run may have made it since
    else:
        assert extraction.weights is not None
        write_bytes(extraction.weights, folder.backbone)
        write_extraction(folder, extraction.identity, **extraction.records)
    for path in (folder.plans, folder.shards):
        path.mkdir(exist_ok=True)
        remove_temporaries(path)


def _planned(
    folder: FeatureFolder, rows: list[VideoRow], settings: ExtractSettings
) -> tuple[list[Task], list[PlannedRow], "FeatureStore"]:
    """All tasks of the folder, the rows that no plan holds, and what is stored."""
    from ..manifests.shards import open_features

    store = open_features(folder.root)
    tasks = read_plans(folder, store.extraction["fingerprint"])
    new = rows_to_plan(rows, tasks, store.statuses, redo_changed=settings.redo_changed)
    return tasks, new, store


def _refresh_manifest(folder: FeatureFolder, rows: list[VideoRow]) -> list[VideoRow]:
    """Writes manifest.csv: the rows given, then those of earlier runs; returns them."""
    given = {row.video_id for row in rows}
    earlier = read_manifest(folder.manifest) if folder.manifest.exists() else []
    rows = rows + [row for row in earlier if row.video_id not in given]
    write_manifest(rows, folder.manifest)
    return rows


@contextmanager
def open_workers(
    folder: FeatureFolder,
    extraction: Extraction,
    settings: ExtractSettings,
    looked_at: list[LookedAt],
    pending: list[Task],
    console: Console,
) -> Iterator[tuple[Any, Workers, Tuning]]:
    """Starts workers, and measures what they can do; yields their client, and both.

    Args:
        folder: with extraction.json and the weights.
        extraction: what it is for.
        settings: where they leave a choice, it is made here.
        looked_at: rows that are to be planned.
        pending: tasks of earlier plans.
        console: for the reasons.
    """
    from .cluster import open_client

    num_frames = sum(one.row.num_frames for one in looked_at)
    num_frames += sum(task.num_frames for task in pending)
    workers = choose_workers(settings, extraction.device, num_frames)
    opened = sorted(
        (one.glance.width * one.glance.height, index)
        for index, one in enumerate(looked_at)
        if one.glance is not None
    )
    sample = looked_at[opened[len(opened) // 2][1]] if opened else None
    with open_client(workers.num_workers) as client:
        tuning = tune(
            client,
            folder,
            workers,
            settings,
            speed=pending[0].speed if pending else None,
            sample=sample,
            sampling=extraction.sampling,
        )
        say(console, workers.reason, *tuning.reasons, f"dashboard {client.dashboard_link}")
        yield client, workers, tuning


def size_of_tasks(
    looked_at: list[LookedAt],
    extraction: Extraction,
    settings: ExtractSettings,
    workers: Workers,
    tuning: Tuning,
) -> TaskSize:
    """How many frames a task gets.

    Raises:
        SettingsError: as many features as `--shard-frames` asks for are too much for one shard.
    """
    if settings.shard_frames == "auto":
        return task_size(
            sum(one.row.num_frames for one in looked_at),
            frames_per_second=tuning.worker_fps,
            bytes_per_frame=extraction.bytes_per_frame,
            num_workers=workers.num_workers,
        )
    most = most_frames(extraction.bytes_per_frame)
    if int(settings.shard_frames) > most:
        raise SettingsError(
            f"--shard-frames {settings.shard_frames}: features of {extraction.bytes_per_frame} "
            f"bytes a frame would make a shard of more than 256 MiB; give at most {most}, or auto"
        )
    return TaskSize(int(settings.shard_frames))


def _run(
    client: Any,
    folder: FeatureFolder,
    tasks: list[Task],
    extraction: Extraction,
    settings: ExtractSettings,
    workers: Workers,
    tuning: Tuning,
    console: Console,
) -> Finished:
    """Runs tasks, the largest first."""
    from ..extract.worker import Job
    from .cluster import run_tasks

    job = Job(
        folder=str(folder.root.absolute()),
        device=workers.device,
        num_threads=workers.num_threads,
        num_children=tuning.num_children,
        batch_size=settings.batch_size,
        compile=settings.compile,
        decoder=settings.decoder,
        settings={**asdict(settings), "versions": extraction.records["versions"]},
    )
    num_videos = len({row.video_id for task in tasks for row in task.rows})
    num_frames = sum(task.num_frames for task in tasks)
    seconds = num_frames / (tuning.worker_fps * workers.num_workers)
    say(
        console,
        f"{num_videos:,} videos, {num_frames:,} frames in {len(tasks):,} tasks: "
        f"about {in_words(seconds)}",
    )
    reports: list[TaskReport] = []
    start = time.monotonic()
    ordered = sorted(tasks, key=lambda task: -task.num_frames)
    with CountProgress("extract", "frames", num_frames, console) as progress:
        run_tasks(
            client,
            ordered,
            job,
            on_progress=lambda more: progress.count(more.num_frames, more.num_unplanned_frames),
            on_finished=reports.append,
        )
    return Finished(
        reports=reports, seconds=time.monotonic() - start, workers=workers, tuning=tuning
    )
