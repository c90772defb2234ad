"""`vtnpipe extract`: stage one from a manifest to a feature folder; the same command again resumes.

What decides a stored value (the identity) is settled first, in this process: device, precision,
backbone and its weights. Then the files of rows that no plan holds yet are looked at, workers are
started and measured, the rows are divided into tasks, and every task without a shard is run.
"""

import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..extract.choices import Decoder, Precision, Store, Views
from ..manifests.errors import SettingsError, StoppedError
from ..manifests.folder import FeatureFolder, locked, planning
from ..manifests.plan import Task
from ..manifests.videos import VideoRow, read_manifest
from .cluster import GetClient, client_when_needed, run_tasks
from .cluster_settings import ClusterSettings
from .extract_report import ExtractReport, Finished, report_of_part, write_report
from .extraction import DEFAULT_BACKBONE, Extraction, settle, with_model_settings
from .options import above, at_least, auto_or_at_least, setting
from .preparation import Crew, hire, prepare, remove_remains, tasks_to_do
from .progress import CountProgress, in_words, say

if TYPE_CHECKING:
    from ..extract.worker import TaskReport

_PART = re.compile(r"([1-9][0-9]*)/([1-9][0-9]*)")


def _is_part(value: str) -> str:
    """The rule that a value of --part breaks."""
    found = _PART.fullmatch(value)
    is_one = found is not None and int(found[1]) <= int(found[2])
    return "" if is_one else "it must be I/N, from 1/N to N/N"


@dataclass(frozen=True, kw_only=True)
class ExtractSettings(ClusterSettings):
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
        None,
        help="Worker processes, of this machine or of each batch job; by default one per core, or "
        "one per GPU.",
        check=at_least(1),
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

    part: str | None = setting(
        None,
        help="Run only each Nth task, from the Ith on: for job arrays, whose jobs share the folder "
        "and need no scheduler. The last to end writes the report.",
        check=_is_part,
        metavar="I/N",
    )
    finish: bool = setting(
        False, help="Run nothing: write the report of parts, or say what they still have to do."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None and (self.finish or not self.is_here):
            raise SettingsError(
                f"--part {self.part} with --finish, --cluster or --scheduler: a part runs on its "
                "own machine; leave out one of the two"
            )
        if self.fps is not None and self.every != 1:
            raise SettingsError(
                f"--fps {self.fps:g} with --every {self.every}: frames are chosen by time or by "
                "count; leave out one of the two"
            )

    @property
    def parts(self) -> tuple[int, int]:
        """Which part this is, from 0, and of how many."""
        number, of = (self.part or "1/1").split("/")
        return int(number) - 1, int(of)

    @property
    def record(self) -> dict[str, Any]:
        """What is kept with the features: not where they were made, nor a job's environment."""
        elsewhere = {field.name for field in fields(ClusterSettings)} | {"part", "finish"}
        return {name: value for name, value in asdict(self).items() if name not in elsewhere}


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
    with client_when_needed(settings, folder.jobs, lambda line: say(console, line)) as get_client:
        extraction = settle(folder, settings, console, get_client)
        if settings.part is not None:
            return _extract_part(folder, rows, settings, extraction, get_client, console)
        with locked(folder):
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
            finished = _run(folder, tasks, extraction, settings, crew, console)
            remove_remains(folder)  # of workers that died
            return write_report(work.store, work.rows, finished, console)


def _extract_part(
    folder: FeatureFolder,
    rows: list[VideoRow],
    settings: ExtractSettings,
    extraction: Extraction,
    get_client: GetClient,
    console: Console,
) -> ExtractReport:
    """Runs each Nth task, while other parts may run on other hosts; the first of them plans."""
    number, num_parts = settings.parts
    with locked(folder, is_shared=True):
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
            finished = _run(folder, tasks, extraction, settings, crew, console)
        num_left = len(tasks_to_do(work.tasks, folder))
        if num_left:
            return report_of_part(folder, finished, num_left, console)
        with planning(folder):
            return write_report(work.store, work.rows, finished, console)


def _run(
    folder: FeatureFolder,
    tasks: list[Task],
    extraction: Extraction,
    settings: ExtractSettings,
    crew: Crew,
    console: Console,
) -> Finished:
    """Runs tasks, the largest first."""
    from ..extract.worker import Job

    workers, tuning = crew.workers, crew.tuning
    job = Job(
        folder=str(folder.root.absolute()),
        device=workers.device,
        num_threads=workers.num_threads,
        num_children=tuning.num_children,
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
    reports: list[TaskReport] = []
    start = time.monotonic()
    ordered = sorted(tasks, key=lambda task: -task.num_frames)
    with CountProgress("extract", "frames", num_frames, console) as progress:
        run_tasks(
            crew.client,
            ordered,
            job,
            num_workers=workers.num_workers,
            on_progress=lambda more: progress.count(more.num_frames, more.num_unplanned_frames),
            on_finished=reports.append,
        )
    return Finished(
        reports=reports, seconds=time.monotonic() - start, workers=workers, tuning=tuning
    )
