"""`vtnpipe extract`: stage one from a manifest to a feature folder; the same command again resumes.

What decides a stored value (the identity) is settled first, in this process: device, precision,
backbone and its weights. Then the rows that no plan holds yet are planned, and every task without a
shard runs on Dask.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ..extract.choices import Decoder, Precision, Store
from ..manifests.files import remove_temporaries, write_bytes
from ..manifests.folder import (
    FeatureFolder,
    check_identity,
    locked,
    read_extraction,
    write_extraction,
)
from ..manifests.plan import Task, pack, read_plans, rows_to_plan, write_plan
from ..manifests.videos import VideoRow, read_manifest, write_manifest
from .extract_report import ExtractReport, write_report
from .extraction import DEFAULT_BACKBONE, Extraction, settle, with_backbone_name
from .options import at_least, check_settings, setting
from .progress import FrameProgress, say

if TYPE_CHECKING:
    from ..extract.worker import TaskReport


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
    batch_size: int = setting(
        32, help="Frames that go through the backbone at once.", check=at_least(1)
    )
    workers: int | None = setting(
        None, help="Worker processes; by default one per core, or one per GPU.", check=at_least(1)
    )
    threads: int | None = setting(
        None,
        help="Of each worker on a CPU; by default the cores divided by the workers.",
        check=at_least(1),
    )
    redo_changed: bool = setting(
        False, help="Extract videos again whose file or span has changed since."
    )

    def __post_init__(self) -> None:
        check_settings(self)


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
    settings = with_backbone_name(settings, console)
    extraction = settle(folder, settings, console)
    with locked(folder):
        _create(folder, extraction)
        tasks = _plan(folder, rows, settings)
        all_rows = _refresh_manifest(folder, rows)
        pending = [task for task in tasks if not task.shard(folder).exists()]
        reports: list[TaskReport] = []
        start = time.monotonic()
        if pending:
            reports = _run(folder, pending, extraction, settings, console)
        return write_report(
            folder, all_rows, reports, time.monotonic() - start, console, is_idle=not pending
        )


def _create(folder: FeatureFolder, extraction: Extraction) -> None:
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


def _plan(folder: FeatureFolder, rows: list[VideoRow], settings: ExtractSettings) -> list[Task]:
    """All tasks of the folder, after a plan for the rows that no plan holds."""
    from ..manifests.shards import open_features

    fingerprint = read_extraction(folder)["fingerprint"]
    tasks = read_plans(folder, fingerprint)
    statuses = open_features(folder.root).statuses if tasks else {}
    new = rows_to_plan(rows, tasks, statuses, redo_changed=settings.redo_changed)
    return tasks + (write_plan(folder, pack(new), fingerprint) if new else [])


def _refresh_manifest(folder: FeatureFolder, rows: list[VideoRow]) -> list[VideoRow]:
    """Writes manifest.csv: the rows given, then those of earlier runs; returns them."""
    given = {row.video_id for row in rows}
    earlier = read_manifest(folder.manifest) if folder.manifest.exists() else []
    rows = rows + [row for row in earlier if row.video_id not in given]
    write_manifest(rows, folder.manifest)
    return rows


def _run(
    folder: FeatureFolder,
    tasks: list[Task],
    extraction: Extraction,
    settings: ExtractSettings,
    console: Console,
) -> list["TaskReport"]:
    from ..extract.worker import Job
    from .cluster import num_cpus, num_gpus, open_client, run_tasks

    is_cpu = extraction.device == "cpu"
    num_workers = settings.workers or (num_cpus() if is_cpu else num_gpus(extraction.device))
    num_workers = min(num_workers, len(tasks))
    job = Job(
        folder=str(folder.root.absolute()),
        device=extraction.device,
        num_threads=settings.threads or max(1, num_cpus() // num_workers),
        num_children=1 if is_cpu else max(1, min(8, num_cpus() // num_workers - 1)),
        batch_size=settings.batch_size,
        decoder=settings.decoder,
        settings={**asdict(settings), "versions": extraction.records["versions"]},
    )
    num_videos = sum(len(task.rows) for task in tasks)
    reports: list[TaskReport] = []
    with open_client(num_workers) as client, FrameProgress(num_videos, console) as progress:
        say(
            console,
            f"{num_videos:,} videos in {len(tasks):,} tasks; {num_workers} workers; "
            f"dashboard {client.dashboard_link}",
        )
        run_tasks(client, tasks, job, on_progress=progress.add, on_finished=reports.append)
    remove_temporaries(folder.shards)  # of workers that died
    return reports
