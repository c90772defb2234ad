"""`vtnpipe plan`: write the plan that `extract` will run, and describe the work."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from ..extract.backbone import load_backbone
from ..extract.decode.pool import DecoderPool
from ..extract.decode.protocol import Chunk, DecodeRequest
from ..extract.decode.sampling import Sampling
from ..extract.task import set_num_threads
from ..manifests.errors import EXIT_OK, EXIT_WITH_FAILURES
from ..manifests.feature_folder import Extraction, FeatureFolder
from ..manifests.lock import locked
from ..manifests.manifest import read_manifest, with_image_rate
from ..manifests.plan import Task, with_file_state
from .console import counts_text, duration_text, say, say_some
from .extraction.feature_spec import resolve_spec, with_model_settings
from .extraction.planning import Plan, plan_extraction
from .extraction.probing import (
    ProbedRow,
    file_properties,
    file_states,
    planning_pool,
    probe_rows,
)
from .extraction.settings import ExtractSettings
from .extraction.workers import Workers, local_workers
from .options import settings_options
from .settings import check_unset

MAX_PROPERTIES = 6  # values of each file property in a line
MEASURE_SECONDS = 1.0
MAX_DECODED_FRAMES = 256


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    """Result of planning.

    Attributes:
        plan: tasks of the folder.
        probed: all rows of the manifest, with their quick probes.
        seconds: predicted duration of the pending tasks on this machine; None if it would run
            elsewhere, or if there is nothing to do.
    """

    plan: Plan
    probed: list[ProbedRow]
    seconds: float | None

    @property
    def exit_code(self) -> int:
        """1 if a file cannot be opened."""
        is_readable = all(one.error is None for one in self.probed)
        return EXIT_OK if is_readable else EXIT_WITH_FAILURES


def plan(
    manifest: str | Path,
    features: str | Path,
    settings: ExtractSettings | None = None,
    *,
    console: Console | None = None,
) -> PlanReport:
    """Probe a manifest's videos, write the plan of their extraction, and describe it.

    `extract` with the same arguments runs the plan.

    Args:
        manifest: CSV file.
        features: feature folder; created if missing.
        settings: settings of `extract`; by default `ExtractSettings()`.
        console: for the description; by default nothing is printed.

    Raises:
        VtnpipeError: the manifest, a setting or the folder is invalid.
        StoppedError: so many files cannot be opened that `extract` would stop; nothing is planned.
    """
    settings = settings or ExtractSettings()
    check_unset(settings, ["part", "finish"], "`vtnpipe plan` plans for all parts")
    console = console or Console(quiet=True)
    rows = with_image_rate(read_manifest(manifest), settings.image_fps)
    folder = FeatureFolder(Path(features))
    settings = with_model_settings(settings, console)
    with locked(folder), planning_pool(rows, settings) as pool:
        pool.start()  # while the backbone is created
        new = resolve_spec(folder, settings, console)
        state_of = file_states(rows, settings)
        probed = probe_rows(
            [with_file_state(row, state_of) for row in rows],
            Sampling.from_spec(new.extraction.spec),
            pool,
            settings,
            with_orientation=True,
        )
        say(console, *_describe_videos(probed, new.extraction))
        unreadable = [
            f"unreadable  {one.row.video_id}: {one.error.reason}: {one.error}"
            for one in probed
            if one.error is not None
        ]
        say_some(console, unreadable)
        found = plan_extraction(folder, rows, settings, new, pool, console, probed=probed)
    tasks = found.pending
    seconds = None
    say(console, *_describe_tasks(tasks))
    if tasks and settings.is_here:
        num_frames = sum(task.num_frames for task in tasks)
        workers = local_workers(settings, new.device, num_frames)
        rate = measure_rate(folder, new.extraction, tasks, workers)
        seconds = num_frames / (workers.num_workers * rate)
        say(
            console,
            f"time        about {duration_text(seconds)} for {num_frames:,} frames: "
            f"{workers.num_workers} workers, {rate:,.1f} frames/s each, measured here",
        )
    return PlanReport(plan=found, probed=probed, seconds=seconds)


def measure_rate(
    folder: FeatureFolder, extraction: Extraction, tasks: Sequence[Task], workers: Workers
) -> float:
    """Measure frames per second of one worker for a few seconds, in this process.

    It is the lower of the backbone's rate on random images and the decoder processes' rate on the
    first readable video.
    """
    device = "cuda:0" if workers.device == "cuda" else workers.device
    set_num_threads(device, workers.num_threads)
    backbone = load_backbone(
        folder.backbone, extraction.spec, device, num_threads=workers.num_threads
    )
    views, batch_size = backbone.transform.views, tasks[0].computation.batch_size
    num_frames = max(1, batch_size // len(views))
    shape = (num_frames, len(views), *backbone.transform.preprocessing.input_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8).to(backbone.transform.device)
    backbone.features(images)
    start, num_batches = time.perf_counter(), 0
    while time.perf_counter() - start < MEASURE_SECONDS:
        for pending in [backbone.start(images) for _ in range(backbone.num_threads)]:
            pending.wait()
        num_batches += backbone.num_threads
    rate = num_batches * num_frames / (time.perf_counter() - start)
    decode_rate = _measure_decoder(extraction, tasks)
    if decode_rate is None:
        return rate
    return min(rate, workers.num_decoder_processes * decode_rate)


def _measure_decoder(extraction: Extraction, tasks: Sequence[Task]) -> float | None:
    """Return wanted frames per second of one decoder process; None if no video is long enough."""
    row = next((row for task in tasks for row in task.rows if row.num_frames > 1), None)
    if row is None:
        return None
    sampling = Sampling.from_spec(extraction.spec)
    request = DecodeRequest(row.path, row.start, row.end, sampling)
    num_frames, start, last = 0, 0.0, 0.0
    with DecoderPool(1) as pool:
        for _, event in pool.decode([request]):
            if not isinstance(event, Chunk):
                continue
            last = time.perf_counter()
            if not start:
                start = last  # opening the file is not decoding
            else:
                num_frames += len(event.frame_index)
            if num_frames >= MAX_DECODED_FRAMES:
                break
    return num_frames / (last - start) if num_frames and last > start else None


def _describe_videos(probed: Sequence[ProbedRow], extraction: Extraction) -> Iterator[str]:
    """Yield lines about the videos of the manifest, those that are extracted already included."""
    readable = [one for one in probed if one.probe is not None]
    num_frames = sum(one.row.num_frames for one in readable)
    counted = sum(one.row.num_frames for one in readable if one.probe and one.probe.is_counted)
    seconds = sum(map(_seconds, readable))
    shape = " x ".join(map(str, extraction.row_shape))
    yield f"videos      {len(probed):,}, {duration_text(seconds)}"
    yield (
        f"frames      {num_frames:,}; {counted:,} by their files' index, "
        f"{num_frames - counted:,} estimated"
    )
    yield (
        f"features    {shape} {extraction.spec.feature_dtype} per frame: "
        f"{num_frames * extraction.bytes_per_frame / 2**20:,.1f} MiB"
    )
    properties = file_properties(probed)
    for name in ("container", "codec", "size", "frames/s", "rotation", "estimate"):
        title = name if name in ("frames/s", "rotation") else f"{name}s"
        yield f"{title:10}  {counts_text(properties.get(name, {}), MAX_PROPERTIES)}"


def _seconds(one: ProbedRow) -> float:
    assert one.probe is not None
    end = one.probe.seconds if one.row.end is None else min(one.row.end, one.probe.seconds)
    return end - (one.row.start or 0.0)


def _describe_tasks(tasks: Sequence[Task]) -> Iterator[str]:
    """Yield a line about the pending tasks."""
    if not tasks:
        yield "tasks       none: all videos have been extracted"
        return
    cut = {row.video_id: row.num_parts for task in tasks for row in task.rows if row.num_parts > 1}
    largest = max(task.num_frames for task in tasks)
    yield (
        f"tasks       {len(tasks):,} of at most {largest:,} frames; {len(cut):,} long videos in "
        f"{sum(cut.values()):,} parts"
    )


@click.command("plan")
@click.argument("manifest")
@click.argument("features")
@settings_options(ExtractSettings)
def command(manifest: str, features: str, console: Console, **options: Any) -> int:
    """Probe every video in MANIFEST, and write the plan of their extraction into FEATURES.

    Prints the number of frames, the size of the features and the time that extraction will take.
    The options are those of `vtnpipe extract`, which then runs the plan. The exit code is 1 if a
    file cannot be opened.
    """
    return plan(manifest, features, ExtractSettings(**options), console=console).exit_code
